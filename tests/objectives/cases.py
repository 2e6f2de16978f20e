# SPDX-License-Identifier: Apache-2.0
"""Tasks, batches and outputs that the tests of objectives/ are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from google.protobuf import text_format
from torch import Tensor

from tzgen.config.tasks import TaskSpec, task_specs
from tzgen.data.batch import Batch, Ragged
from tzgen.models.base import Outputs
from tzgen.protos import model_pb2

BCE = "losses { binary_cross_entropy {} }"


def model_of(*tasks: str, more: str = "") -> model_pb2.ModelConfig:
    """A ModelConfig of mmoe with these bodies of task_towers; `more` is ModelConfig text."""
    towers = " ".join(f"task_towers {{ {task} }}" for task in tasks)
    return text_format.Parse(f"mmoe {{ {towers} }} {more}", model_pb2.ModelConfig())


def hstu_of(*tasks: str, more: str = "") -> model_pb2.ModelConfig:
    """A ModelConfig of dlrm_hstu with these bodies of task_configs; `more` is DlrmHSTU text."""
    configs = " ".join(f"task_configs {{ {task} }}" for task in tasks)
    text = f"dlrm_hstu {{ fusion_mtl_tower {{ {configs} }} {more} }}"
    return text_format.Parse(text, model_pb2.ModelConfig())


def task_of(body: str, name: str = "click", label: str = "y") -> TaskSpec:
    return task_specs(model_of(f'tower_name: "{name}" label_name: "{label}" {body}'))[0]


def rows_batch(
    labels: Mapping[str, Sequence[float] | Tensor],
    *,
    weights: Mapping[str, Tensor] | None = None,
    raw_ids: Mapping[str, Tensor] | None = None,
) -> Batch:
    """One sample a row."""
    tensors = {name: torch.as_tensor(label) for name, label in labels.items()}
    return Batch(
        num_rows=next(iter(tensors.values())).size(0),
        labels=dict(tensors),
        weights=dict(weights or {}),
        raw_ids=dict(raw_ids or {}),
    )


def ragged(values: Sequence[float] | Tensor, lengths: Sequence[int]) -> Ragged:
    return Ragged(
        torch.as_tensor(values), torch.tensor(lengths, dtype=torch.long), max(lengths, default=0)
    )


def outputs_of(logits: Mapping[str, Tensor], lengths: Sequence[int] | None = None) -> Outputs:
    repeat = None if lengths is None else torch.tensor(lengths, dtype=torch.long)
    return Outputs(logits=dict(logits), repeat=repeat)
