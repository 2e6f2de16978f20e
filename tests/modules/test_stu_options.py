# SPDX-License-Identifier: Apache-2.0
"""Presets, and the mask that follows from the options."""

from __future__ import annotations

import pytest
from hstu_configs import hstu

from tzgen.models.hstu_options import hstu_options
from tzgen.modules.stu_options import PRESETS, mask_spec
from tzgen.ops.hstu_attention import MaskSpec
from tzgen.protos import module_pb2


def mask(stu: str = "", extra: str = "", contextual_len: int = 2) -> MaskSpec:
    made = hstu_options(hstu(stu, extra=extra))
    return mask_spec(made.stu, contextual_len, made.mtgr)


def test_presets_are_those_of_the_schema() -> None:
    assert set(PRESETS) == set(module_pb2.STU.Preset.keys())
    assert PRESETS["PAPER"].alpha(16) == 1.0 and PRESETS["PRODUCTION"].alpha(16) == 0.25


@pytest.mark.parametrize(
    ("stu", "want"),
    [
        ("", MaskSpec(2)),
        ("contextual_seq_len: 5", MaskSpec(5)),
        ("append_stable: true", MaskSpec(2, append_stable=True)),
        ("sla_k2: 4", MaskSpec(2, sla_k2=4)),
        ("max_attn_len: 4 full_attn_tail: 2", MaskSpec(2, 4, full_attn_tail=2)),
    ],
)
def test_the_mask_reads_every_field(stu: str, want: MaskSpec) -> None:
    assert mask(stu) == want


def test_without_a_timestamp_mask_nothing_is_real_time() -> None:
    assert mask(extra="mtgr { realtime_len: 3 }").realtime_len == 3
    assert mask(extra="mtgr { timestamp_mask: false realtime_len: 3 }") == MaskSpec(2)
