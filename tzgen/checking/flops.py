# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a forward on real rows: matrix products, a multiply-add counts two.

torch counts its own products; those inside `tzgen::` ops are counted here, attention only over the
pairs that the mask lets through, as a kernel that skips the rest computes it. Element-wise work
(norms, activations, pooling) is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tzgen.ops.jagged_dense_bmm
import tzgen.ops.softmax_attention
import tzgen.ops.stu_linear  # noqa: F401  the imports register the ops
from tzgen.ops.hstu_attention.mask import MaskSpec, visible

QUERIES = 1024  # rows of a mask that are looked at together

Formula = Callable[..., int]


def flop_counter() -> FlopCounterMode:
    """A counter that knows the ops of tzgen; `counts_of` reads it."""
    mapping = {getattr(torch.ops.tzgen, name): formula for name, formula in FORMULAS.items()}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def attention_flops(*args: Any, out_val: Any = None) -> int:
    """q.k and weights.v of every visible pair and head."""
    given = _named("hstu_attention", args)
    q, v = given["q"], given["v"]
    spec = MaskSpec(**{field.name: given[field.name] for field in fields(MaskSpec)})
    pairs = visible_pairs(given["offsets"], given["num_targets"], spec, given["timestamps"])
    return 2 * pairs * q.size(1) * (q.size(2) + v.size(2))


def jagged_bmm_flops(*args: Any, out_val: Any = None) -> int:
    """[L, K] times a [K, M] of its row each."""
    given = _named("jagged_dense_bmm", args)
    return 2 * given["jagged"].numel() * int(given["dense"].size(2))


def softmax_flops(*args: Any, out_val: Any = None) -> int:
    """q.k and weights.v of every visible pair and head."""
    given = _named("softmax_attention", args)
    q, v, offsets = given["q"], given["v"], given["offsets"]
    if given["mask"] is None:
        keys = offsets if given["key_offsets"] is None else given["key_offsets"]
        pairs = int((torch.diff(offsets) * torch.diff(keys)).sum())
    else:
        spec = MaskSpec(*given["mask"])
        pairs = visible_pairs(offsets, given["num_targets"], spec, None)
    return 2 * pairs * q.size(1) * (q.size(2) + v.size(2))


def stu_input_flops(*args: Any, out_val: Any = None) -> int:
    """[L, D] times the projection to those of u, v, q and k that are wanted."""
    given = _named("stu_input", args)
    letters = zip("uvqk", given["widths"], strict=True)
    width = sum(width for letter, width in letters if letter in given["wanted"])
    return 2 * given["x"].numel() * width


def stu_output_flops(*args: Any, out_val: Any = None) -> int:
    """The gated [L, parts * H * hidden_dim] times the output projection."""
    given = _named("stu_output", args)
    return 2 * int(given["x"].size(0)) * given["weight"].numel()


_ALL = (attention_flops, jagged_bmm_flops, softmax_flops, stu_input_flops, stu_output_flops)
# FlopCounterMode hands over tensors, not only their shapes, where this is set.
for _formula in _ALL:
    _formula._get_raw = True  # type: ignore[attr-defined]

# Forward ops of training with matrix products inside; a test holds that there are no others.
FORMULAS: Mapping[str, Formula] = MappingProxyType(
    {
        "hstu_attention": attention_flops,
        "jagged_dense_bmm": jagged_bmm_flops,
        "softmax_attention": softmax_flops,
        "stu_input": stu_input_flops,
        "stu_output": stu_output_flops,
    }
)


def visible_pairs(
    offsets: Tensor, num_targets: Tensor | None, spec: MaskSpec, timestamps: Tensor | None
) -> int:
    """Pairs (i, j) of all rows with i seeing j."""
    lengths = torch.diff(offsets).tolist()
    targets = [0] * len(lengths) if num_targets is None else num_targets.tolist()
    if spec.timestamp_mask and timestamps is not None:
        times = [one.cpu() for one in torch.split(timestamps, lengths)]
        shapes = zip(lengths, targets, times, strict=True)
        return sum(_pairs(length, few, spec, time) for length, few, time in shapes)
    alike = Counter(zip(lengths, targets, strict=True))
    return sum(times * _pairs(*shape, spec, None) for shape, times in alike.items())


def _pairs(length: int, num_targets: int, spec: MaskSpec, times: Tensor | None) -> int:
    j = torch.arange(length)
    end = torch.tensor(length - num_targets)
    total = 0
    for i in torch.split(j, QUERIES):
        time_i = None if times is None else times[i][:, None]
        time_j = None if times is None else times[None, :]
        total += int(visible(i[:, None], j[None, :], end, spec, time_i, time_j).sum())
    return total


def _named(op: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """Arguments of an op by the names of its schema; the dispatcher leaves out default values."""
    wanted = getattr(torch.ops.tzgen, op).default._schema.arguments
    given = dict(zip((argument.name for argument in wanted), args, strict=False))
    return {one.name: given.get(one.name, one.default_value) for one in wanted}
