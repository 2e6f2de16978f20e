# SPDX-License-Identifier: Apache-2.0
"""Softmax attention by torch's own variable-length Flash Attention, on CUDA, where it can say it.

It is an op of torch with its own autograd and fake parts. It knows no bias, no targets and no
contextual prefix; a row without keys gives zeros.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from tzgen.ops.hstu_attention.mask import MaskSpec
from tzgen.ops.softmax_attention.call import Call

WIDEST_HEAD = 256


def refusal(q: Tensor, v: Tensor, call: Call) -> str:
    """Why it cannot compute this; "" where it can."""
    if not q.is_cuda:
        return f"it needs a CUDA device, and q lies on {q.device.type}"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return "this torch has no torch.nn.attention.varlen"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes float16 and bfloat16, not {q.dtype}"
    if q.size(2) != v.size(2) or q.size(2) % 8 != 0 or q.size(2) > WIDEST_HEAD:
        return f"q and v need one width, a multiple of 8 up to {WIDEST_HEAD}"
    if call.position_bias is not None:
        return "it takes no bias"
    if call.num_targets is not None:
        return "it takes no targets"
    window = 0 if call.mask is None else call.mask.max_attn_len
    if call.mask not in (None, MaskSpec(max_attn_len=window)):
        return "of masks it knows causal and max_attn_len"
    return ""


def attend(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """[Lq, H, d] x [Lk, H, d] x [Lk, H, d] -> [Lq, H, d]."""
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, -1)
    if call.mask is not None:
        window = (call.mask.max_attn_len or -1, 0)
    out = varlen_attn(
        q,
        k,
        v,
        call.offsets.to(torch.int32),
        call.key_offsets.to(torch.int32),
        call.max_len,
        call.max_key_len,
        scale=call.scale,
        window_size=window,
    )
    assert isinstance(out, Tensor), "no auxiliary outputs were asked for"
    return out
