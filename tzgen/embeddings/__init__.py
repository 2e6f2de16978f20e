# SPDX-License-Identifier: Apache-2.0
"""Embedding tables, feature groups and sparse optimizers, in two engines with the same numbers.

`local` is torch only; `torchrec` (sharded, fused) is imported when it is asked for: `sharding` and
`torchrec_*` are the only modules that need TorchRec.
"""

from tzgen.data.batch import Ragged
from tzgen.embeddings.accumulate import DetachedGroups, row_bounds, split_groups
from tzgen.embeddings.assemble import REPEAT, Groups
from tzgen.embeddings.group import EmbeddingGroup
from tzgen.embeddings.optimizer_spec import OptimizerSpec, check_optimizer, optimizer_spec
from tzgen.embeddings.sparse_optimizer import SparseOptimizer, sparse_optimizer
from tzgen.embeddings.tables import LocalTables, dense_parameters, model_state

__all__ = [
    "REPEAT",
    "DetachedGroups",
    "EmbeddingGroup",
    "Groups",
    "LocalTables",
    "OptimizerSpec",
    "Ragged",
    "SparseOptimizer",
    "check_optimizer",
    "dense_parameters",
    "model_state",
    "optimizer_spec",
    "row_bounds",
    "sparse_optimizer",
    "split_groups",
]
