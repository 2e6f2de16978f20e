# SPDX-License-Identifier: Apache-2.0
"""A stack is its layers in turn; what it does behind a cache is compared in test_stu_cache.py."""

from __future__ import annotations

import pytest
import torch
from hstu_configs import hstu

from tzgen.config.options import options
from tzgen.modules.stu import STUOptions, STUStack
from tzgen.modules.stu_cache import continued
from tzgen.modules.stu_options import Truncation


def stack_of(truncation: Truncation | None = None) -> STUStack:
    stu = options(STUOptions, hstu().stu)
    return STUStack(stu, num_layers=3, max_seq_len=50, truncation=truncation).eval()


def test_stack_is_layers_in_order_with_their_own_weights() -> None:
    stack, lengths = stack_of(), torch.tensor([5, 4])
    x = torch.randn(9, stack.layers[0].uvqk.in_features)
    tokens = continued(
        x,
        lengths,
        cached=torch.zeros(2, dtype=torch.int64),
        targets=False,
        timestamps=torch.arange(9),
        query_time=torch.full((2,), 99),
        max_new=5,
        contextual_len=0,
    )
    got, swapped = stack(tokens).x, x
    for layer in stack.layers:
        x = layer(x, tokens.offsets, max_len=5, num_targets=tokens.num_targets)
    for layer in reversed(stack.layers):
        swapped = layer(swapped, tokens.offsets, max_len=5, num_targets=tokens.num_targets)
    torch.testing.assert_close(got, x)
    assert (got - swapped).abs().max() > 1e-3


@pytest.mark.parametrize("split", [0, 3])
def test_a_truncation_leaves_layers_on_both_sides(split: int) -> None:
    with pytest.raises(ValueError, match=f"attn_truncation_split_layer {split} .* between 0 and 3"):
        stack_of(Truncation(split_layer=split, tail_len=2))
