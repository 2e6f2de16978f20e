# SPDX-License-Identifier: Apache-2.0
"""Problems of config, model and widths come together, before anything is built."""

from __future__ import annotations

from typing import Any

import pytest

from checking.worlds import CPU, HSTU, TOWER
from tzgen.checking.lint import Lint, engine_of, lint, lint_section
from tzgen.config import apply_overrides, parse_pipeline
from tzgen.errors import Problem


def config_of(text: str, *overrides: str) -> Any:
    config = parse_pipeline(text)
    apply_overrides(config, overrides)
    return config


def found(text: str, *overrides: str, strict: bool = False) -> list[str]:
    refused = lint(config_of(text, *overrides), strict=strict, device=CPU).refused
    return [str(problem) for problem in refused]


@pytest.mark.parametrize("text", [HSTU, TOWER], ids=["hstu", "tower"])
def test_good_configs_have_no_problems(text: str) -> None:
    assert found(text) == []


def test_every_problem_at_once() -> None:
    told = found(
        HSTU,
        "train_config.num_steps=",
        "model_config.dlrm_hstu.hstu.stu.num_heads=0",
        "feature_configs[2].id_feature.num_buckets=0",
    )
    assert len(told) >= 3
    assert any("num_steps" in text for text in told)
    assert any("num_heads" in text for text in told)
    assert any("num_buckets" in text for text in told)


def test_widths_of_the_model_are_checked() -> None:
    (told,) = found(HSTU, "feature_configs[2].id_feature.embedding_dim=16")
    assert "contextual" in told and "[16, 12]" in told


def test_what_fbgemm_needs_is_asked_only_of_torchrec() -> None:
    narrow = "feature_configs[0].id_feature.embedding_dim=5"
    (told,) = found(TOWER, narrow, "train_config.embedding_engine=TORCHREC")
    assert "multiple of 4" in told
    assert found(TOWER, narrow, "train_config.embedding_engine=LOCAL") == []


def test_width_problems_of_tables_and_model_come_together() -> None:
    narrow = "feature_configs[2].id_feature.embedding_dim=6"
    told = found(HSTU, narrow, "train_config.embedding_engine=TORCHREC")
    assert len(told) == 2
    assert "[6, 12]" in told[0] and "multiple of 4" in told[1]


def test_sparse_optimizers_that_the_engine_lacks() -> None:
    adam = "train_config.sparse_optimizer={ adam_optimizer { lr: 0.1 } }"
    (told,) = found(TOWER, adam, "train_config.embedding_engine=TORCHREC")
    assert told.startswith("train_config.sparse_optimizer: found adam_optimizer")
    assert found(TOWER, adam, "train_config.embedding_engine=LOCAL") == []


def test_engine_of() -> None:
    engine = "train_config.embedding_engine="
    assert engine_of(config_of(TOWER, engine + "LOCAL")) == "local"
    assert engine_of(config_of(TOWER, engine + "TORCHREC")) == "torchrec"
    assert engine_of(config_of(TOWER)) in ("local", "torchrec")


def test_strict_refuses_what_is_replaced() -> None:
    cutlass = "model_config.kernel=CUTLASS"
    result = lint(config_of(HSTU, cutlass), strict=False, device=CPU)
    assert result.refused == () and "CUTLASS" in result.replaced[0]
    (told,) = found(HSTU, cutlass, strict=True)
    assert told.startswith("--strict: found model_config.kernel (CUTLASS)")


def test_a_config_without_train_config_is_no_problem() -> None:
    config = config_of(TOWER)
    config.ClearField("train_config")
    assert lint(config, strict=False, device=CPU).refused == ()


def test_section_shows_each_problem_with_its_remedy() -> None:
    problem = Problem("a.b", "12", "at most 10", "Lower it.")
    shown = lint_section(config_of(HSTU), Lint((problem,), ("r 1",), ("n 1", "n 2")), "x.config")
    head, *lines = shown.split("\n")
    assert head.startswith("== config x.config =")
    assert "  tasks     click, like" in lines
    assert "  features  5 features in 4 groups" in lines
    assert "  found     1 problem, 1 replaced, 2 notes" in lines
    assert "   1. a.b" in lines
    assert "      found     12" in lines
    assert "      remedy    Lower it." in lines
    assert "    - r 1" in lines and "    - n 2" in lines
