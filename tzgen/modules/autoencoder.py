# SPDX-License-Identifier: Apache-2.0
"""The RQ-VAE's encoder and decoder, and LETTER's clusters of codes.

Both networks end in a plain Linear, so that the code space and the reconstruction have any sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tzgen.modules.kmeans import KMeansOptions, balanced_nearest, kmeans
from tzgen.modules.mlp import MLP


class Projector(nn.Module):
    """[N, in_features] -> hidden ReLU layers -> Linear -> [N, out_features]."""

    def __init__(
        self, in_features: int, hidden: Sequence[int], out_features: int, *, dropout: float
    ) -> None:
        super().__init__()
        self.hidden: nn.Module = nn.Identity()
        if hidden:
            self.hidden = MLP(in_features, hidden_units=hidden, dropout_ratio=(dropout,))
            in_features = hidden[-1]
        self.last = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.hidden(x))
        return out


class CodeClusters(nn.Module):
    """Clusters of each level's codes, of equal size, made anew every `interval` optimizer steps.

    LETTER (Wang et al. 2024), diversity: -log exp(e_c . e_p) / sum_{j != c} exp(e_c . e_j), p a
    random other code of c's cluster; mean over levels.
    """

    def __init__(self, codebook: Sequence[int], *, num_clusters: int, interval: int) -> None:
        super().__init__()
        self.num_clusters, self.interval = num_clusters, interval
        self._clustered = False  # since the last step
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for level, size in enumerate(codebook):
            self.register_buffer(f"cluster_{level}", torch.zeros(size, dtype=torch.int64))

    def forward(self, codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
        """codes int64 [N, S] -> [N]; training steps cluster when it is time."""
        if self.training and not self._clustered:
            if int(self.get_buffer("steps")) % self.interval == 0:
                self._cluster(codebooks)
            self._clustered = True
        terms = [self._level(codes[:, s], book, s) for s, book in enumerate(codebooks)]
        return torch.stack(terms).mean(0)

    def end_step(self) -> None:
        """After every optimizer step."""
        self.get_buffer("steps").add_(1)
        self._clustered = False

    @torch.no_grad()
    def _cluster(self, codebooks: Sequence[Tensor]) -> None:
        for level, book in enumerate(codebooks):
            k = min(self.num_clusters, book.size(0))
            fit = kmeans(book.detach(), k, KMeansOptions(niter=10, balanced=True, seed=level))
            self.get_buffer(f"cluster_{level}").copy_(balanced_nearest(book, fit.centroids))

    def _level(self, code: Tensor, book: Tensor, level: int) -> Tensor:
        cluster = self.get_buffer(f"cluster_{level}")
        same = cluster[code].unsqueeze(1) == cluster.unsqueeze(0)  # [N, K]
        own = torch.nn.functional.one_hot(code, book.size(0)).to(torch.bool)
        others = same & ~own
        alone = ~others.any(1)  # the only code of its cluster: any other one
        chosen = torch.multinomial((others | (alone.unsqueeze(1) & ~own)).to(book.dtype), 1)
        scores = (book.index_select(0, code) @ book.t()).masked_fill(own, -torch.inf)
        return torch.logsumexp(scores, 1) - scores.gather(1, chosen).squeeze(1)
