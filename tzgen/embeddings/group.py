# SPDX-License-Identifier: Apache-2.0
"""EmbeddingGroup: a batch becomes the groups that a model reads, through one of two engines.

B rows, L steps of all rows, N candidates of all rows, W width of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tzgen.data.batch import Batch
from tzgen.embeddings.assemble import Assembler, Groups
from tzgen.embeddings.batches import CheckedParse, Parse
from tzgen.embeddings.plan import FeatureLike, make_plan
from tzgen.embeddings.tables import EmbeddingTables, LocalTables
from tzgen.embeddings.torchrec_import import require_torchrec
from tzgen.errors import UserError
from tzgen.protos.model_pb2 import FeatureGroupConfig

ENGINES = ("local", "torchrec")


class EmbeddingGroup(nn.Module):
    """Feature groups of a config: tables of one engine, then everything else.

    forward(batch) gives {name: value}:
      DEEP, WIDE "g"     float32 [B, W]: pooled ids, numbers, then the outputs of sequence encoders
      SEQUENCE,          Ragged, values [L, W] (int64 where all features are integers) and, when the
      JAGGED_SEQUENCE    group has features of one value a row, "g.query" [B, Wq];
                         without any sequence feature "g" is a vector group
    Widths of single features, in configured order, are in `widths` under the same names.

    pointwise=True and a group `candidate`: its sequence features are taken one candidate a row.
    "candidate" is then [N, W], every vector group is repeated to [N, W], a query is [N, Wq], a DIN
    attends once a candidate, and "candidate.lengths" int64 [B] (REPEAT) says how many candidates
    each row has. Other sequences stay one a row. Without a group `candidate` rows are samples.
    """

    def __init__(
        self,
        features: Sequence[FeatureLike],
        feature_groups: Sequence[FeatureGroupConfig],
        *,
        engine: str,
        pointwise: bool = False,
        device: torch.device | None = None,
        seed: int = 0,
        wide_embedding_dim: int | None = None,
        wide_init_fn: str = "",
    ) -> None:
        """`device` is where local tables and encoders are made; torchrec tables wait for `shard`.

        Raises ConfigError for groups that cannot be built, UserError when memory does not suffice.
        """
        super().__init__()
        if engine not in ENGINES:
            raise UserError(f"embedding engine {engine!r} is unknown; there are {ENGINES}")
        self.engine = engine
        self.plan = make_plan(
            features,
            feature_groups,
            pointwise=pointwise,
            wide_embedding_dim=wide_embedding_dim,
            wide_init_fn=wide_init_fn,
            fused=engine == "torchrec",
        )
        self.tables = self._make_tables(seed, device or torch.device("cpu"))
        value_dims = {feature.name: feature.value_dim for feature in features}
        self.assemble = Assembler(self.plan, value_dims, device)
        self.widths = self.assemble.widths()

    def _make_tables(self, seed: int, device: torch.device) -> EmbeddingTables:
        if self.engine == "local":
            return LocalTables(self.plan, seed=seed, device=device)
        require_torchrec()
        from tzgen.embeddings.torchrec_tables import TorchrecTables

        return TorchrecTables(self.plan, seed=seed)

    def forward(self, batch: Batch) -> Groups:
        groups: Groups = self.assemble(batch, self.tables(batch))
        return groups

    def attach_kjts(self, parse: Parse) -> Parse:
        """The parser for loader workers: batches are checked, and carry KJTs for torchrec."""
        checked = CheckedParse.of(self.plan, parse)
        if self.engine == "local":
            return checked
        from tzgen.embeddings.layout import collections_of
        from tzgen.embeddings.torchrec_batch import KjtParse

        return KjtParse(checked, collections_of(self.plan))
