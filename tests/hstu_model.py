# SPDX-License-Identifier: Apache-2.0
"""A small DlrmHSTU for tests: its config, the model in float64, and groups as they arrive."""

from __future__ import annotations

import torch
from dense_hstu import User, random_users
from google.protobuf import text_format
from hstu_configs import hstu
from torch import Tensor

from tzgen.config.tasks import task_specs
from tzgen.embeddings import Groups, Ragged
from tzgen.models.base import MODELS
from tzgen.models.dlrm_hstu import DlrmHSTU
from tzgen.protos import model_pb2, module_pb2

SIZES = [(5, 3), (0, 2), (9, 1), (4, 0), (1, 4)]
WIDTHS = {"contextual": (4, 4), "uih": (4, 2), "candidate": (4, 2, 2)}
TASKS = """
    fusion_mtl_tower {
      mlp { hidden_units: 6 }
      task_configs { task_name: "click" label_name: "a" losses { binary_cross_entropy {} } }
      task_configs { task_name: "kind" label_name: "k" num_class: 3
                     losses { softmax_cross_entropy {} } }
    }"""


def config(message: module_pb2.HSTU | None = None, extra: str = "") -> model_pb2.ModelConfig:
    """A model with every group."""
    made = text_format.Parse(
        f"dlrm_hstu {{ max_seq_len: 24 item_embedding_hidden_dim: 7 {TASKS} {extra} }}",
        model_pb2.ModelConfig(),
    )
    made.dlrm_hstu.hstu.CopyFrom(message or hstu())
    kinds = {"contextual": model_pb2.DEEP}
    for name in (
        "contextual",
        "uih",
        "candidate",
        "uih_action",
        "uih_watchtime",
        "uih_timestamp",
        "candidate_timestamp",
    ):
        made.feature_groups.add(
            group_name=name, group_type=kinds.get(name, model_pb2.JAGGED_SEQUENCE)
        )
    return made


def model(made: model_pb2.ModelConfig, widths: dict[str, tuple[int, ...]] = WIDTHS) -> DlrmHSTU:
    """In float64, with parameters away from their neutral initial values."""
    torch.manual_seed(4)
    built = MODELS["dlrm_hstu"](
        made.dlrm_hstu, widths=widths, tasks=task_specs(made), kernel="PYTORCH"
    )
    assert isinstance(built, DlrmHSTU)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return built.double()


def people(sizes: list[tuple[int, int]] = SIZES, seed: int = 0) -> list[User]:
    return random_users(sizes, candidate_dim=8, contextual=(2, 4), seed=seed)


def groups(users: list[User]) -> Groups:
    """What EmbeddingGroup gives: raw features keep their last dimension."""
    lengths = torch.tensor([len(user.times) for user in users])
    counts = torch.tensor([len(user.candidate_times) for user in users])

    def history(values: list[object], dtype: torch.dtype = torch.int64) -> Ragged:
        column = torch.tensor(values, dtype=dtype).view(-1, 1)
        return Ragged(column, lengths, int(lengths.max()))

    requests = torch.tensor([t for user in users for t in user.candidate_times], dtype=torch.int64)
    return {
        "contextual": torch.stack([user.contextual.flatten() for user in users]),
        "uih": Ragged(torch.cat([u.uih for u in users]), lengths, int(lengths.max())),
        "candidate": Ragged(torch.cat([u.candidates for u in users]), counts, int(counts.max())),
        "uih_action": history([a for u in users for a in u.actions]),
        "uih_watchtime": history([w for u in users for w in u.watchtimes], torch.float32),
        "uih_timestamp": history([t for u in users for t in u.times]),
        "candidate_timestamp": Ragged(requests.view(-1, 1), counts, int(counts.max())),
    }


def logits(built: DlrmHSTU, users: list[User]) -> Tensor:
    """[T, 4]: click, kind."""
    out = built(groups(users)).logits
    return torch.cat([out["click"].unsqueeze(1), out["kind"]], dim=1)
