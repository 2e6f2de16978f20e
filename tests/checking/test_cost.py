# SPDX-License-Identifier: Apache-2.0
"""Parameters and bytes against the modules and optimizers that training really makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import text_format

from checking.worlds import CPU, TOWER, tower_rows, tried, world
from tzgen.build import build_pipeline
from tzgen.checking import cost
from tzgen.checking.cost import cost_section, dense_parts, dense_state_bytes, table_parts, total
from tzgen.checking.dry_run import DryRun
from tzgen.embeddings import dense_parameters, optimizer_spec, sparse_optimizer
from tzgen.protos import optimizer_pb2
from tzgen.train.optimizers import Average, DenseOptimizer

DENSE = [
    "sgd_optimizer { lr: 0.1 }",
    "sgd_optimizer { lr: 0.1 momentum: 0.9 }",
    "adagrad_optimizer { lr: 0.1 }",
    "adam_optimizer { lr: 0.1 }",
    "adam_optimizer { lr: 0.1 } ema { decay: 0.9 }",
    "adamw_optimizer { lr: 0.1 amsgrad: true }",
    "adadelta_optimizer { lr: 0.1 }",
    "rmsprop_optimizer { lr: 0.1 }",
    "adam_optimizer {} part_optimizers { sgd_optimizer {} regex_pattern: '.*bias' }",
]


def test_parts_add_up_to_the_model(hstu: DryRun, tower: DryRun) -> None:
    for run in (hstu, tower):
        parts = dense_parts(run)
        everything = sum(p.numel() for _, p in dense_parameters(run.module))
        assert sum(part.parameters for part in parts) == everything
        assert sum(part.weight_bytes for part in parts) == 4 * everything
        flops = sum(part.flops or 0 for part in parts)
        assert flops == total(parts, "total", run).flops == sum(run.flops["Global"].values()) / 4


def test_names_of_the_parts(hstu: DryRun, tower: DryRun) -> None:
    names = [part.name for part in dense_parts(hstu)]
    # l2norm_postprocessor has nothing to list
    assert names == [
        "transducer.preprocessor",
        "transducer.positions",
        "transducer.stack",
        "item_mlp",
        "tower",
    ]
    assert [part.name for part in dense_parts(tower)] == ["towers"]


def test_feature_encoders_are_a_part(tmp_path: Path) -> None:
    encoded = 'feature_name: "age" value_dim: 3 embedding_dim: 2 mlp {}'
    run = tried(tmp_path, TOWER.replace('feature_name: "age" value_dim: 3', encoded), tower_rows())
    first = dense_parts(run)[0]
    assert first.name == "feature encoders" and first.parameters == 3 * 2
    assert first.flops == 2 * 3 * 2


def test_tables_largest_first(hstu: DryRun) -> None:
    item, user, city = table_parts(hstu)
    assert (item.name, item.shape) == ("item", "50 x 8 FP32")
    assert (item.parameters, item.weight_bytes) == (400, 1600)
    assert item.optimizer_bytes == 4 * 50, "rowwise: one number a row"
    assert (user.shape, user.optimizer_bytes) == ("9 x 12 FP32, frozen", 0)
    assert (city.name, city.optimizer_bytes) == ("city_emb", 4 * 7)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam", "lamb"])
def test_table_state_is_what_the_optimizer_allocates(tmp_path: Path, name: str) -> None:
    text = TOWER.replace("adagrad_optimizer", f"{name}_optimizer", 1)
    text = text.replace("num_steps: 3", "num_steps: 3 embedding_engine: LOCAL")
    config, _ = world(tmp_path, text, tower_rows())
    run = tried(tmp_path, text, tower_rows())
    module = build_pipeline(config, engine="local").module
    state = sparse_optimizer(module, optimizer_spec(config.train_config.sparse_optimizer)).state()
    held = sum(tensor.numel() * 4 for tensor in state.values() if tensor.dim())
    assert sum(part.optimizer_bytes for part in table_parts(run)) == held


@pytest.mark.parametrize("text", DENSE)
def test_dense_state_is_what_the_optimizer_allocates(tmp_path: Path, text: str) -> None:
    config, _ = world(tmp_path, TOWER, tower_rows())
    message = text_format.Parse(text, optimizer_pb2.DenseOptimizer())
    config.train_config.dense_optimizer.CopyFrom(message)
    module = build_pipeline(config, engine="local").module
    parameters = dict(dense_parameters(module))
    optimizer = DenseOptimizer(message, parameters.items())
    held: dict[str, Any] = {}
    if message.HasField("ema"):
        held |= Average(message.ema.decay, optimizer.parameters).state()
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held |= {k: v for k, v in optimizer.state().items() if not k.endswith(".step")}
    expected = sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    assert sum(dense_state_bytes(config, parameters).values()) == expected


def test_without_training_there_is_no_state(tmp_path: Path) -> None:
    config, _ = world(tmp_path, TOWER, tower_rows())
    config.ClearField("train_config")
    module = build_pipeline(config, engine="local").module
    assert set(dense_state_bytes(config, dict(dense_parameters(module))).values()) == {0}


def test_section(hstu: DryRun) -> None:
    lines = [" ".join(line.split()) for line in cost_section(hstu, CPU).split("\n")]
    assert "item 50 x 8 FP32 400 1.6 KiB 200 B" in lines
    everything = 400 + 108 + 84 + sum(p.numel() for _, p in dense_parameters(hstu.module))
    assert any(line.startswith(f"total {everything:,} ") for line in lines)
    assert any(line.startswith("sum ") and line.endswith("cpu: fits") for line in lines)
    assert any("attention over visible pairs is" in line for line in lines)


def test_small_tables_share_a_row(tower: DryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {name: table_parts(tower)[0] for name in "abcde"}
    monkeypatch.setattr(cost, "SHOWN_TABLES", 3)
    shown = cost._shown(list(plan.values()))
    assert [part.name for part in shown[3:]] == ["2 more tables"]
    assert shown[3].parameters == 2 * 36


def test_too_little_memory_is_said(hstu: DryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "available_bytes", lambda device: 100)
    assert "DOES NOT FIT" in cost_section(hstu, CPU)


def test_activations_are_scaled_to_the_batch(tmp_path: Path) -> None:
    run = tried(tmp_path, TOWER, tower_rows())
    run.pipeline.config.data_config.batch_size = 400
    lines = [" ".join(line.split()) for line in cost_section(run, CPU).split("\n")]
    (line,) = [one for one in lines if one.startswith("kept for backward, 400 rows")]
    from tzgen.checking import text

    assert line.endswith(text.size(run.saved_bytes * 100))
