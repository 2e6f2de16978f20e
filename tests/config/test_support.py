# SPDX-License-Identifier: Apache-2.0
"""Nothing that is set is ignored in silence: honoured, replaced with a sentence, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tzgen.config import apply_overrides, parse_pipeline, replaced, unsupported, validate
from tzgen.config import support as support_table
from tzgen.config.schema import is_map, messages_of
from tzgen.config.support import EARLIER, MODELS, TABLE, Status, support_of

from .sample import DLRM_HSTU, MMOE

STU = "model_config.dlrm_hstu.hstu.stu"


def edited(*overrides: str, text: str = DLRM_HSTU) -> Any:
    config = parse_pipeline(text)
    apply_overrides(config, overrides)
    return config


def test_every_key_of_the_table_is_in_the_schema() -> None:
    known = messages_of()
    for key, support in TABLE.items():
        assert support.text.endswith("."), key
        name, _, value = key.partition("=")
        message, field = name.split(".")
        owners = list(known.values()) if message == "*" else [known[message]]
        fields = [owner.fields_by_name[field] for owner in owners if field in owner.fields_by_name]
        assert fields, key
        if value and fields[0].enum_type is not None:
            assert value in fields[0].enum_type.values_by_name, key


def test_models_are_members_of_the_oneof() -> None:
    members = messages_of()["ModelConfig"].oneofs_by_name["model"].fields
    assert set(MODELS) <= {field.name for field in members}


def test_every_other_model_gives_exactly_one_named_refusal() -> None:
    members = messages_of()["ModelConfig"].oneofs_by_name["model"].fields
    others = [field.name for field in members if field.name not in MODELS]
    assert len(others) > 25
    for name in others:
        config = parse_pipeline(MMOE)
        getattr(config.model_config, name).SetInParent()
        config.data_config.dataset_type = 1  # refused by itself: must not add a second problem
        (problem,) = validate(config)
        assert problem.path == f"model_config.{name}"
        assert problem.value == f"the model {name}"
        assert all(model in problem.expected for model in MODELS)


def test_no_model_is_one_problem() -> None:
    (problem,) = validate(parse_pipeline(""))
    assert problem.path == "model_config"


@pytest.mark.parametrize(
    "override",
    [
        "data_config.dataset_type=OdpsDataset",
        "data_config.dataset_type=OdpsDatasetV1",
        "data_config.dataset_type=KafkaDataset",
        "data_config.negative_sampler={}",
        "data_config.tdm_sampler={}",
        "data_config.sample_mask_prob=0.1",
        "feature_configs[0].id_feature.zch={ zch_size: 3 }",
        "feature_configs[0].id_feature.dynamicemb={}",
        "feature_configs[0].custom_feature={ feature_name: 'user_id' }",
        "feature_configs[0].kv_dot_product={ feature_name: 'user_id' }",
        "feature_configs[0].sequence_combine_feature={ feature_name: 'user_id' }",
        "train_config.grad_scaler={}",
        "train_config.mixed_precision=FP16",
        "train_config.delta_embedding_dump_config={}",
        "train_config.save_checkpoints_timestamp_interval=60",
        "train_config.sparse_optimizer.adagrad_optimizer={}|train_config.sparse_optimizer.ftrl_optimizer={}",
        "model_config.variational_dropout={}",
        "export_config.export_format=HF",
        "prompt_config={}",
    ],
)
def test_refused_fields(override: str) -> None:
    before = unsupported(edited())
    assert before == []
    overrides = override.split("|")
    found = unsupported(edited(*overrides))
    path = overrides[-1].split("=")[0]
    assert [problem.path for problem in found] == [path]
    assert found[0].remedy == table_text(path, found[0].value)


def test_fields_that_belong_together_are_refused_once() -> None:
    pair = ("data_config.sample_mask_prob=0.5", "data_config.negative_sample_mask_prob=0.25")
    other = "model_config.variational_dropout={}"
    found = {problem.path: problem.value for problem in unsupported(edited(*pair, other))}
    assert found == {
        "data_config.sample_mask_prob": "0.5, negative_sample_mask_prob 0.25",
        "model_config.variational_dropout": "variational_dropout { ... }",
    }


def table_text(path: str, value: str) -> str:
    """The sentence of the entry that matches the last field of a path."""
    field = path.split(".")[-1]
    for key, support in TABLE.items():
        name, _, wanted = key.partition("=")
        if name.split(".")[1] == field and wanted in ("", value):
            return support.text
    raise AssertionError(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model_config.kernel=CUTLASS", "model_config.kernel (CUTLASS)"),
        (f"{STU}.sort_by_length=false", "order of work"),
        ("data_config.fg_encoded=false", "fg_mode"),
        ("data_config.shuffle_buffer_size=7", "shuffle_window"),
        ("data_config.in_order=false", "in order"),
        ("feature_configs[1].sequence_feature.sequence_pk=x", "Processor"),
    ],
)
def test_replaced_fields_are_told_and_are_no_problem(override: str, said: str) -> None:
    config = edited(override)
    (told,) = replaced(config)
    assert said in told
    assert validate(config) == []


def test_triton_is_replaced_only_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = edited("model_config.kernel=TRITON")
    for runs, told in ((False, 1), (True, 0)):
        monkeypatch.setattr(support_table, "triton_runs", lambda runs=runs: runs)
        assert len(replaced(config)) == told
    assert validate(config) == []


def test_a_field_that_holds_its_default_asks_for_nothing() -> None:
    assert replaced(edited("data_config.in_order=true", f"{STU}.sort_by_length=true")) == []
    assert unsupported(edited(f"{STU}.sort_by_length=true", "data_config.sample_mask_prob=0")) == []


def test_earlier_forms_of_torcheasyrec_are_refused_where_nothing_rewrites_them() -> None:
    known = messages_of()
    earlier = [
        (message.name, field)
        for message in known.values()
        for field in message.fields
        if field.number >= EARLIER
    ]
    assert earlier
    for name, field in earlier:
        assert support_of(name, field.name, field.number).status is Status.REFUSED


# Read through descriptors: every field of an optimizer goes to its constructor.
GENERIC = ("optimizer.proto",)


def test_every_honoured_field_is_read() -> None:
    """A field of a supported model that no source file names would be ignored in silence."""
    root = Path(__file__).resolve().parent.parent.parent / "tzgen"
    judges = (
        "support",
        "difference",
        "allowlists",
        "compatibility",
        "flags",
        "predict",
    )  # name, not read
    sources = [
        path.read_text()
        for path in root.rglob("*.py")
        if "protos" not in path.parts
        and path.stem not in judges
        and not path.stem.startswith("validate")
    ]
    words = set(re.findall(r"\w+", "\n".join(sources)))
    by_value = {key.partition("=")[0] for key in TABLE if "=" in key}
    unread = [
        f"{message.name}.{field.name}"
        for message, field in _supported_fields()
        if field.name.removeprefix("sequence_") not in words
        and field.name not in words
        and f"{message.name}.{field.name}" not in by_value
        and not message.file.name.endswith(GENERIC)
    ]
    assert unread == []


def _supported_fields() -> Iterator[tuple[Any, Any]]:
    """Fields that are honoured, below messages that are."""
    pending, done = [messages_of()["PipelineConfig"]], set()
    while pending:
        message = pending.pop()
        if message.full_name in done or message.full_name.startswith("google."):
            continue
        done.add(message.full_name)
        for field in message.fields:
            other = message.name == "ModelConfig" and field.containing_oneof is not None
            if other and field.name not in MODELS:
                continue
            if support_of(message.name, field.name, field.number).status is Status.HONOURED:
                yield message, field
                if field.message_type is not None and not is_map(field):
                    pending.append(field.message_type)
