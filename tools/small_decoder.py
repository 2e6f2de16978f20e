# SPDX-License-Identifier: Apache-2.0
"""A small decoder with random weights for bench_decode.py: how a model gives `step` to a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tzgen.decoding import BeamState

WIDTH, HEADS, LAYERS = 128, 4, 2


class Decoder(nn.Module):
    """Pre-norm decoder with a cache per beam and cross-attention to states shared by the beams."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(WIDTH))
        self.codes = nn.ModuleList([nn.Embedding(size, WIDTH) for size in sizes])
        self.heads = nn.ModuleList([nn.Linear(WIDTH, size) for size in sizes])
        self.norms = nn.ModuleList([nn.RMSNorm(WIDTH) for _ in range(3 * LAYERS + 1)])
        self.qkv = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH) for _ in range(LAYERS)])
        self.query = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
        self.out = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2 * LAYERS)])
        self.up = nn.ModuleList([nn.Linear(WIDTH, 4 * WIDTH) for _ in range(LAYERS)])
        self.down = nn.ModuleList([nn.Linear(4 * WIDTH, WIDTH) for _ in range(LAYERS)])

    def searcher(self, shared: Sequence[tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        """The step function of one batch; shared: keys and values [B, H, S, d] of every layer."""
        batch = shared[0][0].size(0)
        cache: list[tuple[Tensor, Tensor]] = []

        def split(x: Tensor) -> Tensor:
            return x.view(x.size(0), -1, HEADS, WIDTH // HEADS).transpose(1, 2)

        def step(level: int, state: BeamState) -> Tensor:
            if level:
                x = self.codes[level - 1](state.tokens)
            else:
                x = self.start.expand(batch, WIDTH)
            before = list(cache)
            cache.clear()
            for layer in range(LAYERS):
                q, k, v = map(split, self.qkv[layer](self.norms[3 * layer](x)).chunk(3, -1))
                if level:
                    k = torch.cat([state.reorder(before[layer][0]), k], 2)
                    v = torch.cat([state.reorder(before[layer][1]), v], 2)
                cache.append((k, v))
                own = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, WIDTH)
                x = x + self.out[2 * layer](own)
                q = self.query[layer](self.norms[3 * layer + 1](x)).view(batch, -1, WIDTH)
                crossed = scaled_dot_product_attention(split(q), *shared[layer])
                x = x + self.out[2 * layer + 1](crossed.transpose(1, 2).reshape(-1, WIDTH))
                hidden = self.up[layer](self.norms[3 * layer + 2](x)).relu()
                x = x + self.down[layer](hidden)
            return self.heads[level](self.norms[-1](x))

        return step
