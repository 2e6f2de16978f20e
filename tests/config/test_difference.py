# SPDX-License-Identifier: Apache-2.0
"""What a config means here and not in TorchEasyRec is listed, and only that."""

from __future__ import annotations

import pytest

from tzgen.config import apply_overrides, differences, parse_pipeline
from tzgen.config.difference import Difference, table

from .sample import DLRM_HSTU, MMOE

STU = "model_config.dlrm_hstu.hstu.stu"
POST = "model_config.dlrm_hstu.hstu.output_postprocessor"


def found(text: str, *overrides: str) -> dict[str, Difference]:
    config = parse_pipeline(text)
    apply_overrides(config, overrides)
    return {row.path: row for row in differences(config)}


@pytest.mark.parametrize(
    ("text", "override", "path", "status", "said"),
    [
        (
            DLRM_HSTU,
            "data_config.shuffle=true",
            "data_config.shuffle",
            "different",
            "whole batches",
        ),
        (DLRM_HSTU, f"{STU}.sla_k1=9", f"{STU}.sla_k1", "different", "see themselves"),
        (DLRM_HSTU, f"{STU}.sla_k2=9", f"{STU}.sla_k2", "different", "see themselves"),
        (DLRM_HSTU, f"{STU}.max_attn_len=9", f"{STU}.max_attn_len", "different", "contextual"),
        (
            DLRM_HSTU,
            "train_config.gradient_accumulation_steps=2",
            "train_config.gradient_accumulation_steps",
            "different",
            "micro-batch",
        ),
        (
            DLRM_HSTU,
            "train_config.fine_tune_checkpoint=x",
            "train_config.fine_tune_checkpoint",
            "different",
            "cannot be read",
        ),
        (DLRM_HSTU, "model_config.kernel=", "model_config.kernel", "different", "AUTO"),
        (DLRM_HSTU, "model_config.kernel=AUTO", "model_config.kernel", "addition", "no value AUTO"),
        (DLRM_HSTU, "model_config.kernel=CUTLASS", "model_config.kernel", "replaced", "CUTLASS"),
        (
            DLRM_HSTU,
            f"{STU}.relative_bias={{}}",
            f"{STU}.relative_bias",
            "addition",
            "no such field",
        ),
        (
            MMOE,
            "feature_configs[0].id_feature.weighted=true",
            "feature_configs[0].id_feature.weighted",
            "different",
            "use_weight",
        ),
        (DLRM_HSTU, "train_config.seed=1", "train_config.seed", "addition", "no such field"),
        (DLRM_HSTU, "export_config={}", "export_config", "different", "TorchScript"),
        (
            DLRM_HSTU,
            f"{POST}={{ timestamp_layernorm_postprocessor {{}} }}",
            f"{POST}.timestamp_layernorm_postprocessor",
            "different",
            "3.14",
        ),
        (
            MMOE,
            "data_config.fg_mode=FG_BUCKETIZE",
            "feature_configs[0].id_feature.hash_bucket_size",
            "different",
            "xxh64",
        ),
    ],
)
def test_each_difference_appears_with_its_cause(
    text: str, override: str, path: str, status: str, said: str
) -> None:
    before = found(text).get(path)
    row = found(text, override)[path]
    assert row.status == status
    assert said in row.text
    assert before is None or text == MMOE  # the override is its cause


def test_ready_columns_are_not_hashed() -> None:
    assert "data_config.fg_mode" in found(MMOE)
    rows = found(MMOE, "data_config.fg_mode=FG_NONE")
    assert not any("hash" in path or "fg_mode" in path for path in rows)


def test_time_and_action_columns_stay_integers() -> None:
    paths = [path for path, row in found(DLRM_HSTU).items() if "int64" in row.text]
    assert paths == [
        "feature_configs[1].sequence_feature.features[1].raw_feature",
        "feature_configs[1].sequence_feature.features[2].raw_feature",
        "feature_configs[2].sequence_feature.features[1].raw_feature",
    ]


def test_binned_auc_is_the_same_and_exact_is_not() -> None:
    rows = found(MMOE)
    towers = "model_config.mmoe.task_towers"
    assert f"{towers}[0].metrics[0].auc" not in rows  # thresholds: 200, as there
    assert rows[f"{towers}[1].metrics[0].auc"].status == "different"


def test_an_unsupported_model_is_listed_once() -> None:
    config = parse_pipeline("model_config { deepfm {} }")
    rows = [row for row in differences(config) if row.status == "refused"]
    assert [row.path for row in rows] == ["model_config.deepfm"]


def test_table_puts_refusals_first() -> None:
    rows = [Difference("b", "different", "B."), Difference("a", "refused", "A.")]
    assert table(rows).splitlines() == [
        "refused    a",
        "           A.",
        "different  b",
        "           B.",
    ]
