# SPDX-License-Identifier: Apache-2.0
"""One level of a trie-constrained beam search in one pass over the logits, in C++ on CPUs.

B rows, K live beams, V codes, n nodes, k beams kept. `tzgen.decoding` does the same in torch on any
device, and imports nothing: whoever calls `beam_search` hands this over as `level_op`. Only legal
children are looked at, so that the cost follows the catalogue and not B * K * V, but for the sum
of exponentials over all codes, which `renormalize` does without.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tzgen.ops import native
from tzgen.ops.native.build import REMEDY

__all__ = ["level_op", "trie_level"]

Result = tuple[Tensor, Tensor, Tensor, Tensor]


def level_op(device: torch.device | str) -> Callable[..., Result] | None:
    """What to pass to `beam_search` on this device; None where torch has to do."""
    return trie_level if torch.device(device).type == "cpu" and native.available() else None


def trie_level(
    logits: Tensor,
    scores: Tensor,
    nodes: Tensor,
    *,
    tokens: Tensor,
    indptr: Tensor,
    alive: Tensor | None,
    choice: Tensor | None,
    dead_nodes: Tensor | None,
    dead_parents: Tensor | None,
    num_nodes: int,
    width: int,
    renormalize: bool,
) -> Result:
    """The k = width best children: scores, nodes, the beams they continue, codes; [B, k] each.

    logits: float32 [B, K, V]; scores: float32 [B, K] of the beams; nodes: int64 [B, K], where they
    stand; tokens, indptr: `Level`'s, int32 and int64; alive: bfloat16 [S, >= n] {0, -inf} with
    choice int64 [B]; dead_nodes, dead_parents: int64 [B, M], see `tzgen.decoding.seen`.

    Results ascend by node. Equal scores at the cut: the lower node. Places left over have the score
    -inf and the node n = num_nodes.
    """
    if logits.dtype != torch.float32 or logits.dim() != 3 or logits.shape[:2] != nodes.shape:
        raise ValueError(
            f"trie_level wants float32 logits [B, K, V] of nodes [B, K]; got {logits.dtype} "
            f"{tuple(logits.shape)} and {tuple(nodes.shape)}"
        )
    if tokens.dtype != torch.int32:
        raise ValueError(
            f"trie_level wants int32 tokens, of at most 2^31 codes; got {tokens.dtype}"
        )
    if not native.available():
        raise RuntimeError(f"the native library is not built: {REMEDY}")
    extra = [
        None if part is None else part.contiguous()
        for part in (alive, choice, dead_nodes, dead_parents)
    ]
    return torch.ops.tzgen_native.trie_level(
        logits, scores, nodes, tokens, indptr, *extra, num_nodes, width, renormalize
    )
