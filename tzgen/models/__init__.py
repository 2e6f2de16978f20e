# SPDX-License-Identifier: Apache-2.0
"""One file a model, architecture only. Importing this package registers them in `base.MODELS`."""

from tzgen.models import dlrm_hstu as dlrm_hstu
