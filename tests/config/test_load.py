# SPDX-License-Identifier: Apache-2.0
"""Files that load, and files that do not: each mistake with its place and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import json_format

from tzgen.config import config_hash, dump, load_pipeline, parse_pipeline
from tzgen.errors import ConfigError, UserError

from .sample import DLRM_HSTU, MMOE


def refused(text: str, name: str = "x.config") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(text, name)
    return caught.value


@pytest.mark.parametrize("name", ["a.config", "a.txt", "a.prototxt"])
def test_text_and_overrides(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(DLRM_HSTU)
    config = load_pipeline(path, ["data_config.batch_size=4", "model_config.kernel=TRITON"])
    assert config.data_config.batch_size == 4
    assert config.model_config.kernel == 0
    assert config.model_config.dlrm_hstu.max_seq_len == 64


def test_json_equals_text(tmp_path: Path) -> None:
    config = parse_pipeline(DLRM_HSTU)
    for keep_names in (True, False):  # proto names and camelCase
        path = tmp_path / "a.json"
        path.write_text(json_format.MessageToJson(config, preserving_proto_field_name=keep_names))
        assert load_pipeline(path) == config


def test_dump_round_trip_and_hash() -> None:
    config = parse_pipeline(MMOE)
    assert parse_pipeline(dump(config)) == config
    relaid = parse_pipeline(MMOE.replace("{ ", "{\n\n").replace(" }", "\n # end\n}"))
    assert config_hash(relaid) == config_hash(config)
    assert len(config_hash(config)) == 16
    config.train_config.num_steps = 101
    assert config_hash(relaid) != config_hash(config)


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "bom.config"
    path.write_bytes(b"\xef\xbb\xbf" + b'model_dir: "x"')
    assert load_pipeline(path).model_dir == "x"


def test_one_unknown_field_has_its_exact_place() -> None:
    text = 'model_dir: "x"\ndata_config {\n    batchsize: 3\n}\n'
    (problem,) = refused(text).problems
    assert problem.path == "line 3, column 5, data_config.batchsize"
    assert problem.value == "unknown field 'batchsize'"
    assert problem.expected == "a field of DataConfig"
    assert "Did you mean 'batch_size'?" in problem.remedy
    assert "num_workers" in problem.remedy  # the known ones are listed


def test_every_mistake_is_said_at_once() -> None:
    text = (
        DLRM_HSTU.replace("max_seq_len:", "max_seqlen:")
        .replace("use_ln: true", "use_lm: true")
        .replace("kernel: PYTORCH", "kernel: TRITN")
        .replace("num_epochs: 2", 'num_epochs: "two"')
        .replace("batch_size: 16", "batch_size: 16 batch_size: 17")
        .replace("slice_content_encoder {}", "slice_content_encoder {} pad_content_encoder {}")
    )
    error = refused(text)
    told = str(error)
    assert len(error.problems) == 6
    for near in ("'max_seq_len'", "'use_ln'", "'TRITON'"):
        assert f"Did you mean {near}?" in told
    lines = [int(p.path.split()[1].strip(",")) for p in error.problems]
    assert lines == sorted(lines)
    assert "pad_content_encoder beside slice_content_encoder" in told
    assert "batch_size: found a second value" in told
    assert told.startswith("x.config: 6 problems")


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("data_config { batch_size: -1 }", "data_config.batch_size", "between 0 and 4294967295"),
        ("data_config { batch_size: 1.5 }", "data_config.batch_size", "uint32"),
        ("data_config { shuffle: maybe }", "data_config.shuffle", "true or false"),
        ('data_config { label_fields: ["a", 3] }', "data_config.label_fields[1]", "string"),
        ("model_dir: 3", "model_dir", 'Quote it: model_dir: "3"'),
        ("model_config { mmoe: 3 }", "model_config.mmoe", "mmoe { ... }"),
        ("data_config: [ ]", "data_config", "message DataConfig"),
        ("feature_configs { id_feature { vocab_dict { key: 3 } } }", "vocab_dict.key", "string"),
        ("feature_configs {} feature_configs { x: 1 }", "feature_configs[1].x", "unknown field"),
        (
            "model_config { mmoe { hidden_units: 3 } }",
            "model_config.mmoe.hidden_units",
            "It is a field of expert_mlp { } inside MMoE",
        ),
        (
            "data_config { batch_size: 1 model_dir: 'x' }",
            "data_config.model_dir",
            "PipelineConfig has this field: is a closing brace missing",
        ),
    ],
)
def test_a_wrong_value_names_path_and_type(text: str, path: str, said: str) -> None:
    (problem,) = refused(text).problems
    assert problem.path.endswith(path)
    assert said in str(problem)


@pytest.mark.parametrize(
    ("text", "equals"),
    [
        ('model_dir: "x" model_dir: "x"', 'model_dir: "x"'),
        ("data_config { batch_size: 3 shuffle: true batch_size: 0x3 }", ""),
        ("data_config { shuffle: true } data_config { batch_size: 3 }", ""),
        ("data_config { shuffle: true batch_size: 3 } data_config { shuffle: 1 }", ""),
        ("model_config { kernel: TRITON kernel: TRITON }", "model_config { kernel: TRITON }"),
        (
            "model_config { mmoe { num_expert: 2 } mmoe { num_expert: 2 gate_mlp {} } }",
            "model_config { mmoe { num_expert: 2 gate_mlp {} } }",
        ),
        (
            'data_config { label_fields: "a" } data_config { label_fields: "a" }',
            'data_config { label_fields: ["a", "a"] }',
        ),
        (
            "model_dir: 'x' model_dir: 'x' feature_configs { id_feature { "
            "vocab_dict { key: 'a' value: 1 } vocab_dict { key: 'b' value: 2 } } }",
            "model_dir: 'x' feature_configs { id_feature { "
            "vocab_dict { key: 'a' value: 1 } vocab_dict { key: 'b' value: 2 } } }",
        ),
    ],
)
def test_what_is_said_twice_alike_is_merged(text: str, equals: str) -> None:
    assert parse_pipeline(text) == parse_pipeline(
        equals or "data_config { batch_size: 3 shuffle: true }"
    )


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ('model_dir: "x"\nmodel_dir: "y"', "line 2, column 1, model_dir", "value, 'y'"),
        (
            "data_config { batch_size: 3 } data_config { batch_size: 4 }",
            "line 1, column 45, data_config.batch_size",
            "once: 3 stands before",
        ),
        ("data_config { shuffle: true shuffle: 0 }", "data_config.shuffle", "value, false"),
        ("model_config { kernel: TRITON kernel: PYTORCH }", "kernel", "value, PYTORCH"),
        ("model_config { mmoe {} } model_config { ple {} }", "model_config.ple", "ple beside mmoe"),
    ],
)
def test_contradictions_are_refused(text: str, path: str, said: str) -> None:
    (problem,) = refused(text).problems
    assert problem.path.endswith(path)
    assert said in str(problem)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        (
            "data_config {\n  batch_size: 3\n",
            "line 2, column 15",
            "data_config, opened at line 1, column 13",
        ),
        ('model_dir: "x\n', "line 1, column 12", "missing ending quote"),
        ("}", "line 1, column 1", ""),
        ("model_dir", "line 1, column 1", ""),
        ("data_config { batch_size: 3 ]", "line 1", ""),
    ],
)
def test_broken_syntax_has_a_place(text: str, place: str, said: str) -> None:
    problems = refused(text).problems
    assert any(p.path.startswith(place) and said in str(p) for p in problems), problems


def test_json_mistakes_have_places() -> None:
    text = json.dumps(
        {
            "data_config": {"batchSize": 4, "label_field": ["a"], "shuffle": 1},
            "model_config": {"kernel": "TRI", "mmoe": {"expert_mlp": 4}, "ple": {}},
            "feature_configs": {"id_feature": {}},
        },
        indent=1,
    )
    problems = refused(text, "a.json").problems
    lines = text.split("\n")
    for problem in problems:
        line, column = int(problem.path.split()[1][:-1]), int(problem.path.split()[3][:-1])
        key = problem.path.split()[4].split(".")[-1].split("[")[0]
        assert key in lines[line - 1]
        assert column <= len(lines[line - 1])
    told = "\n".join(str(problem) for problem in problems)
    assert len(problems) == 6, told
    assert "Did you mean 'label_fields'?" in told
    assert "expected bool" in told and "Did you mean 'TRITON'?" in told
    assert "ple beside mmoe" in told and "Wrap it in [ ]" in told


def test_json_syntax_and_shape() -> None:
    (problem,) = refused('{"model_dir": "x",\n  nope}', "a.json").problems
    assert problem.path == "line 2, column 3"
    (problem,) = refused("[1]", "a.json").problems
    assert problem.expected == "a JSON object"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "ranker.config").write_text("")
    with pytest.raises(UserError, match=r"no file .*; .* holds ranker\.config"):
        load_pipeline(tmp_path / "rnker.config")
    with pytest.raises(UserError, match=r"no directory .*missing"):
        load_pipeline(tmp_path / "missing" / "x.config")
    with pytest.raises(UserError, match=r"is a directory.*ranker\.config"):
        load_pipeline(tmp_path)


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.config"
    path.write_bytes('# first\nmodel_dir: "é"'.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_pipeline(path)
    (problem,) = caught.value.problems
    assert problem.path == "line 2, byte 13"
    assert "0xe9" in problem.value


def test_an_empty_file_is_an_empty_config(tmp_path: Path) -> None:
    path = tmp_path / "empty.config"
    path.write_text("")
    assert dump(load_pipeline(path)) == ""
