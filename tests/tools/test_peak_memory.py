# SPDX-License-Identifier: Apache-2.0
"""Peak memory: an allocation of known size is seen, whatever this or the parent process held."""

from __future__ import annotations

import sys
from pathlib import Path

import peak_memory
import pytest

MIB = 1 << 20
TOOLS = Path(peak_memory.__file__).parent
needs_linux = pytest.mark.skipif(not peak_memory.measurable(), reason="needs Linux's /proc")

# holds 100 MiB before, then takes 64 MiB and frees them in what is measured
CHILD = f"""
import sys
sys.path.insert(0, {str(TOOLS)!r})
import peak_memory
MIB = 1 << 20
high = bytearray(b"1") * (100 * MIB)
{{before}}
peak_memory.tell(peak_memory.growth(lambda: len(bytearray(b"1") * ({{size}} * MIB))))
"""


def child(size: int, before: str = "") -> int:
    return peak_memory.told([sys.executable, "-c", CHILD.format(size=size, before=before)])


@needs_linux
@pytest.mark.parametrize("before", ["", "del high"], ids=["held", "freed"])
@pytest.mark.parametrize("size", [0, 64])
def test_sees_what_is_touched_and_freed(size: int, before: str) -> None:
    assert abs(child(size, before) - size * MIB) < 2 * MIB


@needs_linux
def test_a_higher_peak_of_the_parent_hides_nothing() -> None:
    import resource

    high = bytearray(b"1") * (300 * MIB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > len(high)
    del high
    assert abs(child(64) - 64 * MIB) < 2 * MIB


@needs_linux
def test_one_measurement_leaves_the_next_alone() -> None:
    large, small = (
        peak_memory.growth(lambda size=size: len(bytearray(b"1") * (size * MIB)))
        for size in (96, 32)
    )
    assert abs(large - 96 * MIB) < 2 * MIB and abs(small - 32 * MIB) < 2 * MIB


@pytest.mark.parametrize("code", ["raise SystemExit('no room')", "print(5)"])
def test_a_process_that_tells_nothing_is_an_error(code: str) -> None:
    with pytest.raises(SystemExit, match="told 0 numbers") as caught:
        peak_memory.told([sys.executable, "-c", code])
    assert "no room" in str(caught.value) or "\n5" in str(caught.value)
