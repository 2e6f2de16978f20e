# SPDX-License-Identifier: Apache-2.0
"""One file a model, architecture only. Importing this package registers them in `base.MODELS`."""

from tzgen.models import dlrm_hstu as dlrm_hstu
from tzgen.models import genrec as genrec
from tzgen.models import mmoe as mmoe
from tzgen.models import ple as ple
from tzgen.models import sid_opq as sid_opq
from tzgen.models import sid_rqkmeans as sid_rqkmeans
from tzgen.models import sid_rqvae as sid_rqvae
from tzgen.models import simple_multi_task as simple_multi_task
from tzgen.models import tiger as tiger
from tzgen.models import ultra_hstu as ultra_hstu
