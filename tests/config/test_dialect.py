# SPDX-License-Identifier: Apache-2.0
"""Older forms of TorchEasyRec's texts become today's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tzgen.config import features_of, groups_of, parse_pipeline, validate
from tzgen.config.dialect import modernise
from tzgen.config.schema import walk
from tzgen.protos import pipeline_pb2

TEXTS = Path(__file__).resolve().parent.parent / "integration" / "texts"
SEQUENCE = """
feature_configs {
  sequence_feature {
    sequence_name: "seen" features { id_feature { feature_name: "clip" num_buckets: 9 } }
  }
}
feature_configs { id_feature { feature_name: "user" num_buckets: 9 } }
"""


def text(group: str, more: str = "") -> pipeline_pb2.PipelineConfig:
    groups = (
        f'feature_groups {{ group_name: "g" feature_names: "{group}" group_type: JAGGED_SEQUENCE }}'
    )
    return parse_pipeline(f"{SEQUENCE} {more} model_config {{ {groups} mmoe {{}} }}")


def test_underscores_name_sequences_where_groups_say_so() -> None:
    config = text("seen_clip")
    assert config.data_config.sequence_separator == "_"
    assert "seen_clip" in [ref.name for ref in features_of(config)]


@pytest.mark.parametrize(
    ("group", "more"),
    [
        ("seen__clip", ""),
        ("absent", ""),
        (
            "seen_clip",
            'feature_configs { sequence_id_feature { feature_name: "seen_clip" num_buckets: 9 } }',
        ),
        ("seen_clip", 'data_config { sequence_separator: "__" }'),
    ],
    ids=["today", "a typo", "another feature of that name", "said explicitly"],
)
def test_underscores_are_inferred_from_nothing_else(group: str, more: str) -> None:
    config = text(group, more)
    assert config.data_config.sequence_separator == "__"
    assert modernise(config) == []


def test_the_first_dlrm_hstu_becomes_groups_and_labels() -> None:
    config = parse_pipeline((TEXTS / "dlrm_hstu_first.config").read_text())
    groups = {group.name: (group.kind, group.feature_names) for group in groups_of(config)}
    jagged = "JAGGED_SEQUENCE"
    assert groups == {
        "contextual": ("DEEP", ("member", "degree")),
        "uih": (jagged, ("clip",)),
        "candidate": (jagged, ("new_clip",)),
        "uih_action": (jagged, ("action",)),
        "uih_watchtime": (jagged, ("seconds",)),
        "uih_timestamp": (jagged, ("at",)),
        "candidate_timestamp": (jagged, ("asked_at",)),
    }
    assert list(config.data_config.label_fields) == ["new_action", "new_seconds"]
    kinds = {ref.name: ref.kind for ref in features_of(config)}
    assert kinds["action"] == kinds["at"] == kinds["asked_at"] == "raw_feature"
    assert "new_action" not in kinds
    preprocessor = config.model_config.dlrm_hstu.hstu.input_preprocessor.contextual_preprocessor
    simple = preprocessor.action_encoder.simple_action_encoder
    assert (simple.action_embedding_dim, list(simple.action_weights)) == (4, [1, 2, 4])
    assert preprocessor.content_encoder.WhichOneof("content_encoder") == "slice_content_encoder"
    config.data_config.dataset_type = 2
    assert validate(config) == []


@pytest.mark.parametrize("name", ["dlrm_hstu_first", "dlrm_hstu_rtp"])
def test_what_is_rewritten_once_stays(name: str) -> None:
    config = parse_pipeline((TEXTS / f"{name}.config").read_text())
    before = config.SerializeToString(deterministic=True)
    assert modernise(config) == []
    assert config.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("path", sorted(TEXTS.glob("*.config")), ids=lambda path: path.stem)
def test_older_names_are_gone(path: Path) -> None:
    """Fields from 2000 up are TorchEasyRec's earlier ones: no layer above reads them."""
    config = parse_pipeline(path.read_text())
    left = [f.name for _, m in walk(config) for f, _ in m.ListFields() if f.number >= 2000]
    assert left == []
