# SPDX-License-Identifier: Apache-2.0
"""What the tests of mmoe, ple and simple_multi_task share: configs, groups, models."""

from __future__ import annotations

import torch
from google.protobuf import text_format

from tzgen.config.tasks import task_specs
from tzgen.embeddings import Groups
from tzgen.models import MODELS, Model
from tzgen.protos import model_pb2

WIDTHS = {"user": (4, 2), "candidate": (3,)}
TOWERS = """
task_towers { tower_name: "ctr" label_name: "c" mlp { hidden_units: [5] } losses { binary_cross_entropy {} } }
task_towers { tower_name: "kind" label_name: "k" num_class: 3 losses { softmax_cross_entropy {} } }
"""
GROUPS = """
feature_groups { group_name: "user" feature_names: "u" group_type: DEEP }
feature_groups { group_name: "candidate" feature_names: "i" group_type: JAGGED_SEQUENCE }
"""


def config_of(
    model: str, body: str = "", towers: str = TOWERS, groups: str = GROUPS
) -> model_pb2.ModelConfig:
    return text_format.Parse(f"{model} {{ {body} {towers} }} {groups}", model_pb2.ModelConfig())


def model_of(
    config: model_pb2.ModelConfig, widths: dict[str, tuple[int, ...]] | None = None
) -> Model:
    name = config.WhichOneof("model")
    return MODELS[name](
        getattr(config, name), widths=widths or WIDTHS, tasks=task_specs(config), kernel="PYTORCH"
    )


def groups_of(count: int = 5, repeat: list[int] | None = None) -> Groups:
    made: Groups = {"user": torch.randn(count, 6), "candidate": torch.randn(count, 3)}
    if repeat is not None:
        made["candidate.lengths"] = torch.tensor(repeat)
    return made
