# SPDX-License-Identifier: Apache-2.0
"""What `python -m tzgen.check` finds out and says; only --plot writes a file."""

from tzgen.checking.report import check_and_report

__all__ = ["check_and_report"]
