# SPDX-License-Identifier: Apache-2.0
"""SidOpq: optimised product quantization of item vectors, fitted at the end of one pass.

    y = x R;  c_p = nearest centroid of part p to y's part p

Codes have no order: the first is no coarser than the last. Source: Ge et al. 2013, as in RPG and
VQ-Rec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from google.protobuf.message import Message
from torch import nn

from tzgen.config.tasks import TaskSpec
from tzgen.embeddings import Groups
from tzgen.errors import Problem
from tzgen.models.base import MODELS, Outputs
from tzgen.models.sid_base import FittedTokenizer, main_group, told_as
from tzgen.modules.product_quantizer import opq_rotation, product_codes


@MODELS.register("sid_opq")
class SidOpq(FittedTokenizer):
    """The tokenizer of the module docstring: `rotation` [D, D], `books` [S, K, D / S]."""

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        dim, parts = sum(widths[self.group]), len(self.codebook)
        self.rotation = nn.Parameter(torch.eye(dim), requires_grad=False)
        books = torch.zeros(parts, config.codebook_size, dim // parts)
        self.books = nn.Parameter(books, requires_grad=False)
        self.rounds = config.rounds

    def fit(self) -> None:
        with told_as("model_config.sid_opq.codebook_size"):
            rotation, books = opq_rotation(
                self.sample.rows(),
                parts=len(self.codebook),
                size=self.codebook[0],
                options=self.kmeans,
                rounds=self.rounds,
            )
        self.rotation.copy_(rotation)
        self.books.copy_(books)

    def forward(self, groups: Groups) -> Outputs:
        x = self.item_vectors(groups, self.group)
        rotation, books = self.rotation, self.books
        codes = product_codes(x, rotation, books)
        parts = [books[part].index_select(0, codes[:, part]) for part in range(books.size(0))]
        decoded = torch.cat(parts, dim=1) @ rotation.t()
        return Outputs({}, {"inputs": x, "decoded": decoded}, decoded={"codes": codes})

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        problems = super().check(model_config, widths)
        config = model_config.sid_opq
        if config.faiss_kmeans_kwargs.spherical:
            problems.append(
                Problem(
                    "model_config.sid_opq.faiss_kmeans_kwargs.spherical",
                    "true",
                    "false: the lengths of a vector's parts tell items apart",
                    "Remove it.",
                )
            )
        if widths is not None and not problems:
            dim = sum(widths[main_group(config, tuple(widths))])
            if dim % config.num_subvectors:
                problems.append(
                    Problem(
                        "model_config.sid_opq.num_subvectors",
                        str(config.num_subvectors),
                        f"a divisor of {dim}, the width of the items' vectors",
                        "Change it.",
                    )
                )
        return problems
