# SPDX-License-Identifier: Apache-2.0
"""Tasks are found wherever a model keeps them, with the schema's defaults."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf import text_format

from tzgen.config.tasks import TaskSpec, task_specs
from tzgen.errors import ConfigError
from tzgen.protos import model_pb2


def parse(text: str) -> model_pb2.ModelConfig:
    return text_format.Parse(text, model_pb2.ModelConfig())


def test_task_configs_of_a_fusion_tower() -> None:
    config = parse(
        """dlrm_hstu { fusion_mtl_tower {
          task_configs { task_name: "is_click" label_name: "action" task_bitmask: 4
            losses { binary_cross_entropy {} } metrics { auc {} } metrics { grouped_auc {} }
            train_metrics { auc {} } weight: 0.5 sample_weight_name: "w"
            task_space_indicator_label: "seen" in_task_space_weight: 2 out_task_space_weight: 0
            pareto_min_loss_weight: 0.25 }
          task_configs { task_name: "watch" label_name: "seconds" losses { l2_loss {} } } } }"""
    )
    click, watch = task_specs(config)
    assert (click.name, click.label_name, click.task_bitmask) == ("is_click", "action", 4)
    assert [metric.WhichOneof("metric") for metric in click.metrics] == ["auc", "grouped_auc"]
    assert len(click.train_metrics) == 1
    assert (click.weight, click.sample_weight_name, click.pareto_min_loss_weight) == (
        0.5,
        "w",
        0.25,
    )
    assert click.task_space_indicator_label == "seen"
    assert (click.in_task_space_weight, click.out_task_space_weight) == (2.0, 0.0)
    defaults = TaskSpec("watch", "seconds", losses=watch.losses)
    assert watch == defaults  # the dataclass and the schema have the same defaults
    assert (click.suffix, click.output, watch.output) == ("_is_click", "binary", "regression")


@pytest.mark.parametrize("model", ["mmoe", "ple", "simple_multi_task", "dbmtl", "dc2vr", "pepnet"])
def test_task_towers(model: str) -> None:
    body = 'tower_name: "cvr" label_name: "buy" num_class: 3 losses { softmax_cross_entropy {} }'
    (task,) = task_specs(parse(f"{model} {{ task_towers {{ {body} }} }}"))
    assert (task.name, task.label_name, task.num_class) == ("cvr", "buy", 3)
    assert (task.output, task.task_bitmask, task.in_task_space_weight) == ("classes", 0, 1.0)


def test_a_single_task_model_has_one_unnamed_task() -> None:
    config = parse("deepfm {} num_class: 2 losses { jrc_loss {} } metrics { auc {} }")
    (task,) = task_specs(config, label_fields=["clk", "buy"])
    assert (task.name, task.suffix, task.label_name, task.num_class) == ("", "", "clk", 2)
    assert task.weight == 1.0
    assert task_specs(parse("deepfm {}")) == ()


def test_labels_by_position_where_a_tower_names_none() -> None:
    towers = 'task_towers { tower_name: "a" } task_towers { tower_name: "b" label_name: "x" }'
    tasks = task_specs(parse(f"dbmtl {{ {towers} }}"), label_fields=["first", "second"])
    assert [task.label_name for task in tasks] == ["first", "x"]


def test_a_list_wise_loss_takes_the_meaning_of_the_other() -> None:
    def output(losses: str) -> str:
        towers = f'task_towers {{ tower_name: "a" label_name: "y" {losses} }}'
        return task_specs(parse(f"mmoe {{ {towers} }}"))[0].output

    listwise = "losses { listwise_rank_loss {} }"
    assert output(listwise) == "score"
    assert output(f"{listwise} losses {{ binary_focal_loss {{}} }}") == "binary"
    with pytest.raises(ConfigError, match="binary_cross_entropy, l2_loss"):
        output("losses { binary_cross_entropy {} } losses { l2_loss {} }")


def test_tasks_need_no_torch() -> None:
    code = "import sys, tzgen.config.tasks\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
