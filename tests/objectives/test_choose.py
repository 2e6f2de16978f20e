# SPDX-License-Identifier: Apache-2.0
"""A model gets the objective and the metrics of what it measures."""

from __future__ import annotations

from google.protobuf import text_format
from torch import nn

from tzgen.config.tasks import task_specs
from tzgen.objectives import Objective, TaskMetrics, make_metrics, make_objective
from tzgen.objectives.sid_metrics import SidMetrics
from tzgen.objectives.sid_objective import SidObjective
from tzgen.protos.eval_pb2 import EvalConfig
from tzgen.protos.model_pb2 import ModelConfig


class Stub(nn.Module):
    def __init__(self, measures: str) -> None:
        super().__init__()
        self.measures, self.codebook = measures, (4, 4)


def test_tokenizers_measure_codes_and_rankers_tasks() -> None:
    config = text_format.Parse("sid_rqvae {} losses { recon_loss {} }", ModelConfig())
    assert task_specs(config) == ()
    assert isinstance(make_objective(Stub("codes"), (), config), SidObjective)  # type: ignore[arg-type]
    metrics = make_metrics(Stub("codes"), (), EvalConfig(), intervals=True)  # type: ignore[arg-type]
    assert isinstance(metrics, SidMetrics) and metrics.intervals() == {}
    task = 'task_towers { tower_name: "t" label_name: "y" losses { l2_loss {} } }'
    config = text_format.Parse(f"mmoe {{ {task} }}", ModelConfig())
    tasks = task_specs(config)
    assert type(make_objective(Stub("tasks"), tasks, config)) is Objective  # type: ignore[arg-type]
    metrics = make_metrics(Stub("tasks"), tasks, EvalConfig(), intervals=False)  # type: ignore[arg-type]
    assert isinstance(metrics, TaskMetrics)
