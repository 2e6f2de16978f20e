# SPDX-License-Identifier: Apache-2.0
"""Which config changes a resume accepts."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from tzgen.errors import ConfigError
from tzgen.protos.pipeline_pb2 import PipelineConfig
from tzgen.train.compatibility import changed_fields, require_compatible

TEXT = """
train_config { sparse_optimizer { sgd_optimizer { lr: 0.1 } } num_steps: 5 }
data_config { batch_size: 8 label_fields: "a" }
feature_configs { id_feature { feature_name: "u" num_buckets: 10 embedding_dim: 4 } }
model_config { mmoe {} }
"""


def parse(text: str) -> PipelineConfig:
    return text_format.Parse(text, PipelineConfig())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_steps: 5", "num_steps: 9"),
        ("batch_size: 8", "batch_size: 4"),
        ("batch_size: 8", "batch_size: 8 num_workers: 0"),
        ("num_steps: 5", "num_steps: 5 early_stopping { metric: 'auc' }"),
        ("mmoe {}", "mmoe {} kernel: PYTORCH"),
    ],
)
def test_how_long_and_how_fast_may_change(old: str, new: str) -> None:
    assert old in TEXT
    require_compatible(parse(TEXT), parse(TEXT.replace(old, new)), "ckpt")


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("dlrm_hstu", "score_micro_batch: 64"),
        ("sid_rqvae", "candidate_output_config { enabled: true topk: 8 }"),
        ("sid_rqkmeans", "candidate_output_config { enabled: true topk: 8 }"),
        ("tiger", "beam_search { beams: 99 } cold_items { input_path: 'x' }"),
        ("genrec", "beam_search { filter_seen: true } measure_invalid: true"),
    ],
)
def test_what_only_scoring_and_searching_read_may_change(model: str, field: str) -> None:
    old = parse(f"model_config {{ {model} {{}} }}")
    require_compatible(old, parse(f"model_config {{ {model} {{ {field} }} }}"), "ckpt")
    for name, other in (("tiger", "max_items: 9"), ("sid_rqvae", "embed_dim: 9")):
        with pytest.raises(ConfigError, match=other.split(":")[0]):
            require_compatible(
                parse(f"model_config {{ {name} {{}} }}"),
                parse(f"model_config {{ {name} {{ {other} }} }}"),
                "ckpt",
            )


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("lr: 0.1", "lr: 0.2", "train_config.sparse_optimizer.sgd_optimizer.lr"),
        ("sgd_optimizer", "adagrad_optimizer", "train_config.sparse_optimizer.sgd_optimizer"),
        ("num_steps: 5", "num_steps: 5 seed: 3", "train_config.seed"),
        ("num_buckets: 10", "num_buckets: 11", "feature_configs[0].id_feature.num_buckets"),
        ('label_fields: "a"', 'label_fields: "b"', "data_config.label_fields"),
        ("mmoe {}", "ple {}", "model_config.mmoe"),
        ("model_config {", "feature_configs {} model_config {", "feature_configs[1]"),
    ],
)
def test_what_decides_the_weights_is_refused_by_name(old: str, new: str, path: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError) as caught:
        require_compatible(parse(TEXT), parse(TEXT.replace(old, new)), "ckpt")
    assert path in {problem.path for problem in caught.value.problems}


def test_unset_equals_default() -> None:
    assert (
        list(
            changed_fields(
                parse(TEXT), parse(TEXT.replace("num_steps: 5", "num_steps: 5 seed: 42"))
            )
        )
        == []
    )
