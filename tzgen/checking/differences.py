# SPDX-License-Identifier: Apache-2.0
"""--diff_torcheasyrec: what this config means here and not in TorchEasyRec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tzgen.checking import text
from tzgen.config import Difference

ORDER = ("refused", "replaced", "different", "addition")
MEANING = (
    ("refused", "not supported: remove it"),
    ("replaced", "accepted, and done by other means"),
    ("different", "accepted, and gives other numbers"),
    ("addition", "TorchEasyRec does not know it"),
)


def difference_section(found: Sequence[Difference]) -> str:
    """What this config means here and not in TorchEasyRec; equal texts share an entry."""
    counts = Counter(one.status for one in found)
    lines = text.table(
        ("status", "fields", "meaning"),
        [(name, str(counts[name]), told) for name, told in MEANING],
        align="lrl",
    )
    if not found:
        lines += ["", "  This config means the same in both."]
    for status in ORDER:
        texts = dict.fromkeys(one.text for one in found if one.status == status)
        if texts:
            lines += ["", f"  {status}"]
        for told in texts:
            paths = [one.path for one in found if (one.status, one.text) == (status, told)]
            lines += text.bullets([told])
            lines += [f"        {path}" for path in paths]
    return text.section("differences from TorchEasyRec", lines)
