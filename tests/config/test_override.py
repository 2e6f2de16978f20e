# SPDX-License-Identifier: Apache-2.0
"""--set and --edit_config_json: typed, located, refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tzgen.config import apply_edit_json, apply_overrides, dump, parse_pipeline, set_field
from tzgen.errors import ConfigError, UserError

from .sample import DLRM_HSTU, MMOE


@pytest.fixture
def config() -> Any:
    return parse_pipeline(DLRM_HSTU)


def refused(config: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(config, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_scalars_are_typed(config: Any) -> None:
    apply_overrides(
        config,
        [
            "model_dir=experiments/a=b c",
            'data_config.delimiter="\\t"',
            "data_config.shuffle=True",
            "data_config.pin_memory=false",
            "train_config.dense_optimizer.adam_optimizer.lr=1e-4",
            "model_config.kernel=AUTO",
            "train_config.seed=0x10",
        ],
    )
    assert config.model_dir == "experiments/a=b c"
    assert config.data_config.delimiter == "\t"
    assert config.data_config.shuffle is True
    assert config.data_config.pin_memory is False
    assert config.train_config.dense_optimizer.adam_optimizer.lr == pytest.approx(1e-4)
    assert config.model_config.kernel == 1000
    assert config.train_config.seed == 16


def test_repeated_fields(config: Any) -> None:
    stu = "model_config.dlrm_hstu.hstu.input_preprocessor.contextual_preprocessor.action_encoder"
    weights = f"{stu}.simple_action_encoder.action_weights"
    apply_overrides(
        config,
        [
            "feature_configs[0].id_feature.num_buckets=10",
            "feature_configs[-1].sequence_feature.features[0].id_feature.num_buckets=77",
            f"{weights}[1]=8",
            f"{weights}[+]=16",
            "data_config.label_fields[+]=other",
            "data_config.sample_weight_fields=[]",
            "model_config.dlrm_hstu.fusion_mtl_tower.mlp.hidden_units=[7, 8]",
        ],
    )
    assert config.feature_configs[0].id_feature.num_buckets == 10
    assert config.feature_configs[2].sequence_feature.features[0].id_feature.num_buckets == 77
    preprocessor = config.model_config.dlrm_hstu.hstu.input_preprocessor.contextual_preprocessor
    assert list(preprocessor.action_encoder.simple_action_encoder.action_weights) == [1, 8, 16]
    assert list(config.data_config.label_fields) == ["cand_seq__action", "other"]
    assert not config.data_config.sample_weight_fields
    assert list(config.model_config.dlrm_hstu.fusion_mtl_tower.mlp.hidden_units) == [7, 8]


def test_several_elements_by_range_and_by_value() -> None:
    config = parse_pipeline(MMOE)
    apply_overrides(
        config,
        [
            "model_config.mmoe.task_towers[:].weight=0.5",
            "feature_configs[id_feature.feature_name=user_id].id_feature.embedding_dim=64",
            "model_config.mmoe.task_towers[tower_name=buy].weight=2",
        ],
    )
    assert [tower.weight for tower in config.model_config.mmoe.task_towers] == [0.5, 2.0]
    assert config.feature_configs[0].id_feature.embedding_dim == 64
    assert config.feature_configs[4].sequence_id_feature.embedding_dim == 8


def test_messages_lists_of_messages_and_appending_below(config: Any) -> None:
    apply_overrides(
        config,
        [
            "train_config.dense_optimizer={sgd_optimizer { lr: 0.5 }}",
            "train_config.early_stopping={}",
            "model_config.dlrm_hstu.fusion_mtl_tower.task_configs[+].task_name=third",
            "feature_configs[+]={ raw_feature { feature_name: 'x' } }",
            "data_config.input_fields=[{input_name: 'a'}, {input_name: 'b'}]",
        ],
    )
    assert config.train_config.dense_optimizer.sgd_optimizer.lr == 0.5
    assert not config.train_config.dense_optimizer.HasField("exponential_decay_learning_rate")
    assert config.train_config.HasField("early_stopping")
    assert config.model_config.dlrm_hstu.fusion_mtl_tower.task_configs[2].task_name == "third"
    assert config.feature_configs[3].raw_feature.feature_name == "x"
    assert [field.input_name for field in config.data_config.input_fields] == ["a", "b"]


def test_maps(config: Any) -> None:
    path = "feature_configs[0].id_feature.vocab_dict"
    apply_overrides(config, [f'{path}["a b"]=3', f"{path}[c]=4"])
    assert dict(config.feature_configs[0].id_feature.vocab_dict) == {"a b": 3, "c": 4}
    assert "expected uint64" in refused(config, f"{path}[d]=x")[0]


def test_nothing_unsets_but_empties_a_string(config: Any) -> None:
    apply_overrides(
        config, ["train_config.num_epochs=", "train_config.mixed_precision=", "eval_config="]
    )
    assert not config.train_config.HasField("num_epochs")
    assert config.train_config.HasField("mixed_precision")
    assert config.train_config.mixed_precision == ""


def test_a_oneof_is_replaced_only_as_a_whole(config: Any) -> None:
    (told,) = refused(config, "model_config.mmoe.num_expert=4")
    assert "dlrm_hstu is set" in told and "...mmoe={ ... }" in told
    assert config.model_config.WhichOneof("model") == "dlrm_hstu"
    set_field(config, "model_config.mmoe", "{ num_expert: 4 }")
    assert config.model_config.WhichOneof("model") == "mmoe"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train_config.num_step=1", "Did you mean 'num_steps'?"),
        ("trainconfig.num_steps=1", "Did you mean 'train_config'?"),
        ("data_config.batch_size=many", "expected uint32"),
        ("data_config.batch_size=-1", "between 0 and 4294967295"),
        ("data_config.shuffle=2", "true or false"),
        ("model_config.kernel=TRITN", "Did you mean 'TRITON'?"),
        ("feature_configs.id_feature.num_buckets=1", "feature_configs[0]"),
        ("feature_configs[9].id_feature.num_buckets=1", "one of the 3 entries"),
        ("feature_configs[-4].id_feature.num_buckets=1", "one of the 3 entries"),
        ("feature_configs[x].id_feature.num_buckets=1", "a number, '+', a range"),
        ("feature_configs[id_feature.feature_name>=3].id_feature.num_buckets=1", "a range a:b"),
        ("feature_configs[id_feature.feature_name=no].id_feature.num_buckets=1", "3 entries"),
        ("data_config[0].batch_size=1", "data_config is no list"),
        ("data_config.batch_size[0]=1", "batch_size is no list"),
        ("data_config.batch_size.x=1", "batch_size has no fields"),
        ("data_config.label_fields=a", "append with label_fields[+]"),
        ("data_config.label_fields=[a]", "expected string"),
        ("data_config=3", "message DataConfig"),
        ("data_config={ batchsize: 3 }", "Did you mean 'batch_size'?"),
        ("data_config={ batch_size: 3 shufle: true }", "Did you mean 'shuffle'?"),
        ("data_config..batch_size=1", "field names joined by '.'"),
        ("data_config.batch_size", "no '='"),
        ("=3", "field names"),
    ],
)
def test_refusals(config: Any, override: str, said: str) -> None:
    (told,) = refused(config, override)
    assert said in told
    assert told.startswith("--set ")


def test_all_wrong_overrides_are_told_at_once(config: Any) -> None:
    told = refused(config, "a=1", "data_config.batch_size=x", "data_config={ a: 1 b: 2 }")
    assert len(told) == 4


def test_edit_config_json_is_torcheasyrecs() -> None:
    config = parse_pipeline(MMOE)
    apply_edit_json(
        config,
        json.dumps(
            {
                "train_config.num_steps": 5,
                "data_config.shuffle": True,
                "model_dir": "a;b",
                "data_config.label_fields": ["x", 'y"'],
                "feature_configs[0].id_feature.embedding_dim": "16",
                "model_config.mmoe.expert_mlp": {"hidden_units": [3], "activation": "nn.SiLU"},
                "data_config.batch_size; data_config.num_workers": "8; 2",
                "model_config.mmoe.task_towers[0].mlp": "{ hidden_units: 4 }",
            }
        ),
    )
    assert config.train_config.num_steps == 5
    assert config.data_config.shuffle
    assert config.model_dir == "a;b"
    assert list(config.data_config.label_fields) == ["x", 'y"']
    assert config.feature_configs[0].id_feature.embedding_dim == 16
    assert list(config.model_config.mmoe.expert_mlp.hidden_units) == [3]
    assert config.model_config.mmoe.expert_mlp.activation == "nn.SiLU"
    assert (config.data_config.batch_size, config.data_config.num_workers) == (8, 2)
    assert list(config.model_config.mmoe.task_towers[0].mlp.hidden_units) == [4]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{nope", "line 1, column 2"),
        ("[1]", "an object of path"),
        ('{"data_config.batch_sizes": 1}', "Did you mean 'batch_size'?"),
        ('{"model_dir;train_input_path": "a"}', "2 paths and 1 values"),
    ],
)
def test_edit_config_json_refusals(config: Any, text: str, said: str) -> None:
    with pytest.raises(UserError, match="--edit_config_json") as caught:
        apply_edit_json(config, text)
    assert said in str(caught.value)


def test_set_field_equals_the_text(config: Any) -> None:
    set_field(config, "model_config.dlrm_hstu.max_seq_len", "65")
    assert dump(config) == dump(
        parse_pipeline(DLRM_HSTU.replace("max_seq_len: 64", "max_seq_len: 65"))
    )
