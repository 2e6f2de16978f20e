# SPDX-License-Identifier: Apache-2.0
"""Features and groups under their full names."""

from __future__ import annotations

import pytest

from tzgen.config import features_of, fg_mode_of, groups_of, parse_pipeline, tables_of
from tzgen.protos import feature_pb2

from .sample import DLRM_HSTU, MMOE


def test_grouped_sequences_carry_their_sequence() -> None:
    refs = features_of(parse_pipeline(DLRM_HSTU))
    assert [ref.name for ref in refs] == [
        "user_id",
        "uih_seq__video_id",
        "uih_seq__action",
        "uih_seq__time",
        "cand_seq__video_id",
        "cand_seq__time",
    ]
    assert [ref.kind for ref in refs[:3]] == ["id_feature", "id_feature", "raw_feature"]
    assert [ref.is_sequence for ref in refs] == [False, True, True, True, True, True]
    assert refs[2].path == "feature_configs[1].sequence_feature.features[1].raw_feature"
    assert refs[2].sequence is not None and refs[2].sequence.sequence_name == "uih_seq"
    assert refs[2].prefix == "uih_seq__"
    assert (refs[0].prefix, refs[0].sequence) == ("", None)
    assert [ref.sequence_length for ref in refs] == [0, 50, 50, 50, 10, 10]


def test_separator_is_configurable() -> None:
    config = parse_pipeline(DLRM_HSTU)
    config.data_config.sequence_separator = "_"
    ref = features_of(config)[1]
    assert (ref.name, ref.prefix) == ("uih_seq_video_id", "uih_seq_")


def test_prefixed_sequences_have_the_plain_kind() -> None:
    ref = features_of(parse_pipeline(MMOE))[4]
    assert (ref.name, ref.kind, ref.is_sequence) == ("recent", "id_feature", True)
    assert ref.path == "feature_configs[4].sequence_id_feature"
    assert ref.sequence is None
    assert ref.sequence_length == 20


@pytest.mark.parametrize("form", ["FeatureConfig", "SeqFeatureConfig"])
def test_every_kind_of_the_schema_is_found(form: str) -> None:
    message = getattr(feature_pb2, form)
    for field in message.DESCRIPTOR.fields:
        if field.name == "sequence_feature":
            continue
        config = parse_pipeline("")
        if form == "FeatureConfig":
            entry = config.feature_configs.add()
        else:
            entry = config.feature_configs.add().sequence_feature.features.add()
        getattr(entry, field.name).feature_name = "f"
        (ref,) = features_of(config)
        assert ref.kind == field.name.removeprefix("sequence_")
        assert isinstance(ref.inputs(), tuple)
        assert isinstance(tables_of(ref), tuple)


def test_inputs_by_kind() -> None:
    refs = {ref.name: ref for ref in features_of(parse_pipeline(MMOE))}
    assert refs["user_x_age"].inputs() == (
        ("expression", "user:user_id"),
        ("expression", "feature:age"),
    )
    assert refs["clicks"].inputs() == (("map", "user:clicks"), ("key", "item:category"))


def test_an_entry_without_kind_is_left_out() -> None:
    assert (
        features_of(
            parse_pipeline(
                "feature_configs {} feature_configs { sequence_feature { features {} } }"
            )
        )
        == ()
    )


def test_groups_with_nested_ones_after_their_parent() -> None:
    groups = groups_of(parse_pipeline(MMOE))
    assert [(g.name, g.kind, g.parent) for g in groups] == [
        ("all", "DEEP", None),
        ("history", "SEQUENCE", "all"),
    ]
    assert groups[1].feature_names == ("recent",)
    assert groups[1].path == "model_config.feature_groups[0].sequence_groups[0]"
    unnamed = parse_pipeline(MMOE.replace('group_name: "history"', ""))
    assert groups_of(unnamed)[1].name == "all"
    kinds = {g.name: g.kind for g in groups_of(parse_pipeline(DLRM_HSTU))}
    assert kinds["uih"] == "JAGGED_SEQUENCE" and kinds["contextual"] == "DEEP"


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", "FG_NONE"),
        ("fg_encoded: true", "FG_NONE"),
        ("fg_encoded: false", "FG_NORMAL"),
        ("fg_encoded: false fg_mode: FG_BUCKETIZE", "FG_BUCKETIZE"),
        ("fg_mode: FG_DAG", "FG_DAG"),
    ],
)
def test_fg_mode_and_its_older_spelling(text: str, mode: str) -> None:
    assert fg_mode_of(parse_pipeline(f"data_config {{ {text} }}").data_config) == mode


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("", ()),
        ("hash_bucket_size: 0", ()),
        ("num_buckets: 3", ("num_buckets",)),
        ('vocab_list: "a" zch { }', ("vocab_list", "zch")),
        ('vocab_dict { key: "a" value: 1 } vocab_file: "f"', ("vocab_dict", "vocab_file")),
    ],
)
def test_table_sizes(text: str, tables: tuple[str, ...]) -> None:
    config = parse_pipeline(f'feature_configs {{ id_feature {{ feature_name: "f" {text} }} }}')
    (ref,) = features_of(config)
    assert tables_of(ref) == tables
