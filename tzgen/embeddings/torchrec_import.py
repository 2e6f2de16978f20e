# SPDX-License-Identifier: Apache-2.0
"""The one place that says what to do when TorchRec or fbgemm cannot be imported."""

from __future__ import annotations

import importlib

from tzgen.errors import UserError


def require_torchrec() -> None:
    """Raises UserError with the command to run; the local engine needs none of this."""
    try:
        importlib.import_module("torchrec")
    except ImportError as error:
        raise UserError(
            f"the torchrec engine needs TorchRec and fbgemm ({error}). On a CPU machine run "
            "`pip install -r requirements/cpu.txt` in the checkout, on a GPU machine "
            "`pip install torchrec==1.8.0 fbgemm-gpu==1.8.0`; or use the local engine."
        ) from error
    except OSError as error:
        raise UserError(
            "fbgemm-gpu's CUDA build is installed and cannot be loaded on this machine "
            f"({error}). Run `pip uninstall -y fbgemm-gpu && pip install fbgemm-gpu-cpu==1.8.0`, "
            "or `pip install -r requirements/cpu.txt` in the checkout; or use the local engine."
        ) from error
