# SPDX-License-Identifier: Apache-2.0
"""Each rule: a config that breaks it gives that problem at that path, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tzgen.config import apply_overrides, check, notes, parse_pipeline, validate
from tzgen.errors import ConfigError, Problem

from .sample import DLRM_HSTU, MMOE

HSTU = "model_config.dlrm_hstu.hstu"
PRE = f"{HSTU}.input_preprocessor.contextual_preprocessor"
TASK = "model_config.dlrm_hstu.fusion_mtl_tower.task_configs"
TOWER = "model_config.mmoe.task_towers"
UIH = "feature_configs[1].sequence_feature"
GROUP = "model_config.feature_groups"
ADAM = "train_config.dense_optimizer"


def edited(text: str, *overrides: str) -> Any:
    config = parse_pipeline(text)
    apply_overrides(config, overrides)
    return config


def test_a_path_is_asked_for_only_where_it_is_used() -> None:
    config = parse_pipeline(DLRM_HSTU)
    apply_overrides(config, ["train_input_path= ", "model_dir=", "eval_input_path="])
    assert [problem.path for problem in validate(config)] == ["train_input_path", "model_dir"]
    assert validate(config, ()) == []
    (problem,) = validate(config, ("eval_input_path",))
    assert problem.path == "eval_input_path" and "--eval_input_path" in problem.remedy
    with pytest.raises(ConfigError, match="model_dir"):
        check(config, paths=("model_dir",))


def test_the_candidates_of_a_row_are_a_session() -> None:
    config = parse_pipeline(DLRM_HSTU)
    task = "model_config.dlrm_hstu.fusion_mtl_tower.task_configs[0]"
    jrc = f"{task}.losses[0]={{ jrc_loss {{}} }}"
    apply_overrides(config, [jrc, f"{task}.num_class=2", f"{task}.metrics=[{{ auc {{}} }}]"])
    assert validate(config) == []


@pytest.mark.parametrize("text", [DLRM_HSTU, MMOE], ids=["dlrm_hstu", "mmoe"])
def test_the_samples_are_right(text: str) -> None:
    assert validate(parse_pipeline(text)) == []
    check(parse_pipeline(text))


# (overrides of the ranker, separated by |; path of the one problem; a part of what it says)
RANKER = [
    ("model_dir=", "model_dir", "--model_dir"),
    ("train_input_path= ", "train_input_path", "--train_input_path"),
    ("data_config.dataset_type=", "data_config.dataset_type", "OdpsDataset"),
    ("data_config.batch_size=0", "data_config.batch_size", "above 0"),
    ("data_config.eval_batch_size=0", "data_config.eval_batch_size", "above 0"),
    ("data_config.shuffle_window=0", "data_config.shuffle_window", "above 0"),
    ("data_config.batch_cost_size=9", "data_config.batch_cost_size", "both or neither"),
    ("data_config.sample_cost_field=c", "data_config.batch_cost_size", "both or neither"),
    (
        "data_config.label_fields[+]=cand_seq__action",
        "data_config.label_fields[1]",
        "each column once",
    ),
    ("data_config.input_fields[+]={}", "data_config.input_fields[1].input_name", "column name"),
    ("data_config.input_fields_str=a:INT;b", "data_config.input_fields_str", "name:TYPE"),
    ("data_config.input_fields_str=a:BIGNT", "data_config.input_fields_str", "'BIGINT'"),
    ("data_config.delimiter=ab", "data_config.delimiter", "one character"),
    # ---- training ----
    ("train_config.num_steps=3", "train_config.num_steps", "num_steps 3 and num_epochs 2"),
    ("train_config.num_epochs=", "train_config.num_steps", "neither"),
    ("train_config.num_epochs=0", "train_config.num_epochs", "above 0"),
    (f"{ADAM}=", ADAM, "adam_optimizer"),
    ("train_config.sparse_optimizer=", "train_config.sparse_optimizer", "rowwise_adagrad"),
    (
        f"{ADAM}.adam_optimizer.lr=-1",
        f"{ADAM}.adam_optimizer.lr",
        "0 or more",
    ),
    (
        f"{ADAM}.exponential_decay_learning_rate.decay_size=0",
        f"{ADAM}.exponential_decay_learning_rate.decay_size",
        "above 0",
    ),
    (
        "train_config.sparse_optimizer={ sgd_optimizer {} manual_step_learning_rate "
        "{ schedule_sizes: [1, 2] learning_rates: 0.1 } }",
        "train_config.sparse_optimizer.manual_step_learning_rate.learning_rates",
        "2 sizes and 1 rates",
    ),
    (
        "train_config.sparse_optimizer={ sgd_optimizer {} manual_step_learning_rate "
        "{ schedule_sizes: [2, 1] learning_rates: [0.1, 0.2] } }",
        "train_config.sparse_optimizer.manual_step_learning_rate.schedule_sizes",
        "ascending",
    ),
    (
        f"{ADAM}.part_optimizers[+]={{ sgd_optimizer {{}} regex_pattern: '(' }}",
        f"{ADAM}.part_optimizers[0].regex_pattern",
        "regular expression",
    ),
    (
        f"{ADAM}.part_optimizers[+]={{ regex_pattern: 'a' }}",
        f"{ADAM}.part_optimizers[0]",
        "no optimizer",
    ),
    ("train_config.early_stopping={}", "train_config.early_stopping.metric", "auc_is_click"),
    (
        "eval_input_path=|train_config.early_stopping.metric=auc_is_click",
        "train_config.early_stopping",
        "no eval_input_path",
    ),
    ("train_config.mixed_precision=bf16", "train_config.mixed_precision", "'BF16'"),
    (
        "train_config.tensorboard_summaries=['los']",
        "train_config.tensorboard_summaries",
        "'loss'",
    ),
    # ---- features ----
    ("feature_configs[+]={}", "feature_configs[3]", "id_feature"),
    (f"{UIH}.features[+]={{}}", f"{UIH}.features[3]", "id_feature"),
    (
        "feature_configs[0].id_feature.num_buckets=0",
        "feature_configs[0].id_feature",
        "no table size",
    ),
    (
        "feature_configs[0].id_feature.hash_bucket_size=9",
        "feature_configs[0].id_feature",
        "hash_bucket_size and num_buckets",
    ),
    (
        "feature_configs[0].id_feature.embedding_dim=0",
        "feature_configs[0].id_feature.embedding_dim",
        "a width above 0",
    ),
    (
        "feature_configs[0].id_feature.vocab_file=f|feature_configs[0].id_feature.num_buckets=0",
        "feature_configs[0].id_feature.default_bucketize_value",
        "not in vocab_file",
    ),
    (
        "feature_configs[0].id_feature.pooling=avg",
        "feature_configs[0].id_feature.pooling",
        "one of ('sum', 'mean')",
    ),
    (
        "feature_configs[0].id_feature.init_fn=nn.init.unifrm_",
        "feature_configs[0].id_feature.init_fn",
        "uniform_",
    ),
    (
        f"{UIH}.features[1].raw_feature.boundaries=[2, 1]|"
        f"{UIH}.features[1].raw_feature.embedding_dim=4",
        f"{UIH}.features[1].raw_feature.boundaries",
        "ascending",
    ),
    (
        f"{UIH}.features[1].raw_feature.autodis={{}}|{UIH}.features[1].raw_feature.embedding_dim=4",
        f"{UIH}.features[1].raw_feature.autodis.num_channels",
        "above 0",
    ),
    (
        f"{UIH}.features[1].raw_feature.mlp={{}}",
        f"{UIH}.features[1].raw_feature.embedding_dim",
        "a width above 0",
    ),
    (
        f"{UIH}.features[+]={{ raw_feature {{ feature_name: 'time' }} }}",
        f"{UIH}.features[3].raw_feature.feature_name",
        "features[2].raw_feature has it already",
    ),
    (
        f"{UIH}.features[0].id_feature.embedding_dim=32",
        "feature_configs[2].sequence_feature.features[0].id_feature.embedding_name",
        "embedding_dim 32 as in 'uih_seq__video_id'",
    ),
    (
        f"{UIH}.features[0].id_feature.num_buckets=499",
        "feature_configs[2].sequence_feature.features[0].id_feature.embedding_name",
        "rows 499",
    ),
    (
        f"{UIH}.features[0].id_feature.data_type=FP16",
        "feature_configs[2].sequence_feature.features[0].id_feature.embedding_name",
        "data_type FP16",
    ),
    (
        "feature_configs[2].sequence_feature.features[0].id_feature.init_fn='nn.init.zeros_'",
        "feature_configs[2].sequence_feature.features[0].id_feature.embedding_name",
        "init_fn 'nn.init.zeros_'",
    ),
    # ---- groups ----
    (
        f"{GROUP}[1].feature_names[0]=uih_seq__vido_id",
        f"{GROUP}[1].feature_names[0]",
        "Did you mean 'uih_seq__video_id'?",
    ),
    (f"{GROUP}[0].feature_names[+]=user_id", f"{GROUP}[0].feature_names[1]", "each feature once"),
    (f"{GROUP}[0].feature_names=[]", f"{GROUP}[0].feature_names", "without features"),
    (f"{GROUP}[0].group_name=uih", f"{GROUP}[1].group_name", f"{GROUP}[0] has it already"),
    (f"{GROUP}[0].group_name=", f"{GROUP}[0].group_name", "a name"),
    (f"{GROUP}[0].group_type=JAGGED_SEQUENCE", f"{GROUP}[0].feature_names", "is no sequence"),
    (
        "feature_configs[0].id_feature.stub_type=true",
        f"{GROUP}[0].feature_names[0]",
        "stub_type",
    ),
    (
        f"{GROUP}[1].feature_names[+]=cand_seq__video_id",
        f"{GROUP}[1].feature_names",
        "one length for all sequences",
    ),
    # ---- model ----
    (f"{HSTU}.stu.num_heads=0", f"{HSTU}.stu.num_heads", "above 0"),
    (f"{HSTU}.stu.embedding_dim=", f"{HSTU}.stu.embedding_dim", "found nothing"),
    (f"{HSTU}.stu.attention_dim=0", f"{HSTU}.stu.attention_dim", "above 0"),
    (f"{HSTU}.stu.hidden_dim=0", f"{HSTU}.stu.hidden_dim", "above 0"),
    (f"{HSTU}.stu.output_dropout_ratio=1", f"{HSTU}.stu.output_dropout_ratio", "[0, 1)"),
    (f"{HSTU}.stu.activated=uvx", f"{HSTU}.stu.activated", "letters of uvqk"),
    (f"{HSTU}.stu.scaling_seqlen=0", f"{HSTU}.stu.scaling_seqlen", "max_seq_len"),
    (f"{HSTU}.stu.append_stable=true", f"{HSTU}.stu.append_stable", "use_time_encoding"),
    (f"{HSTU}.stu.full_attn_tail=3", f"{HSTU}.stu.full_attn_tail", "set max_attn_len"),
    (
        f"{HSTU}.stu.sla_k2=3|{HSTU}.stu.max_attn_len=9",
        f"{HSTU}.stu.max_attn_len",
        "one kind of window",
    ),
    (f"{HSTU}.stu.sla_k1=3|{HSTU}.mtgr={{}}", f"{HSTU}.stu.sla_k1", "timestamp_mask: false"),
    (
        f"{HSTU}.attn_truncation_split_layer=1",
        f"{HSTU}.attn_truncation_tail_len",
        "both fields or neither",
    ),
    (
        f"{HSTU}.attn_truncation_tail_len=5",
        f"{HSTU}.attn_truncation_split_layer",
        "both fields or neither",
    ),
    (
        f"{HSTU}.attn_truncation_split_layer=2|{HSTU}.attn_truncation_tail_len=5",
        f"{HSTU}.attn_truncation_split_layer",
        "a number from 1 to 1",
    ),
    (
        f"{HSTU}.attn_truncation_split_layer=1|{HSTU}.attn_truncation_tail_len=5|"
        f"{HSTU}.attn_num_layers=1",
        f"{HSTU}.attn_truncation_split_layer",
        "at least two layers",
    ),
    (
        f"{HSTU}.stu.relative_bias.num_time_buckets=0",
        f"{HSTU}.stu.relative_bias.num_time_buckets",
        "above 0",
    ),
    (f"{HSTU}.attn_num_layers=0", f"{HSTU}.attn_num_layers", "above 0"),
    (f"{HSTU}.positional_encoder=", f"{HSTU}.positional_encoder", "positional_encoder { ... }"),
    (
        f"{HSTU}.positional_encoder.num_time_buckets=0",
        f"{HSTU}.positional_encoder.num_time_buckets",
        "use_time_encoding needs it",
    ),
    (
        f"{HSTU}.positional_encoder.time_bucket_fn=log2",
        f"{HSTU}.positional_encoder.time_bucket_fn",
        "sqrt",
    ),
    (
        f"{HSTU}.output_postprocessor={{}}",
        f"{HSTU}.output_postprocessor",
        "layernorm_postprocessor",
    ),
    (
        f"{HSTU}.output_postprocessor={{ timestamp_layernorm_postprocessor {{ "
        "time_duration_period_units: 3600 } }",
        f"{HSTU}.output_postprocessor.timestamp_layernorm_postprocessor.time_duration_period_units",
        "1 and 0 values",
    ),
    (f"{PRE}.content_mlp=", f"{PRE}.content_mlp", "content_mlp { ... }"),
    (f"{PRE}.content_encoder={{}}", f"{PRE}.content_encoder", "slice_content_encoder"),
    (f"{PRE}.action_encoder=", f"{PRE}.action_mlp", "no action_encoder"),
    (
        f"{PRE}.action_encoder.simple_action_encoder.action_weights=[]",
        f"{PRE}.action_encoder.simple_action_encoder.action_weights",
        "bitmasks",
    ),
    (
        f"{PRE}.action_encoder.simple_action_encoder.watchtime_to_action_thresholds=[3]",
        f"{PRE}.action_encoder.simple_action_encoder.watchtime_to_action_thresholds",
        "1 and 0 values",
    ),
    (
        f"{PRE}.content_encoder={{ mlp_content_encoder {{ uih_mlp {{ hidden_units: 3 }} "
        "target_mlp { hidden_units: 4 } } }",
        f"{PRE}.content_encoder.mlp_content_encoder.target_mlp",
        "3 and 4",
    ),
    (
        f"{HSTU}.input_preprocessor={{ uih_preprocessor {{}} }}",
        f"{HSTU}.input_preprocessor.uih_preprocessor",
        "hstu_match",
    ),
    (
        "model_config.dlrm_hstu.fusion_mtl_tower.mlp.activation=nn.Silu",
        "model_config.dlrm_hstu.fusion_mtl_tower.mlp.activation",
        "'SiLU'",
    ),
    (
        "model_config.dlrm_hstu.fusion_mtl_tower.mlp.hidden_units=[3, 0]",
        "model_config.dlrm_hstu.fusion_mtl_tower.mlp.hidden_units",
        "widths above 0",
    ),
    (
        "model_config.dlrm_hstu.fusion_mtl_tower.mlp.use_bn=true",
        "model_config.dlrm_hstu.fusion_mtl_tower.mlp.use_ln",
        "one norm",
    ),
    ("model_config.dlrm_hstu.max_seq_len=0", "model_config.dlrm_hstu.max_seq_len", "above 0"),
    # ---- tasks ----
    (
        "model_config.dlrm_hstu.fusion_mtl_tower.task_configs=[]",
        "model_config.dlrm_hstu",
        "no tasks",
    ),
    (f"{TASK}[1].task_name=is_click", f"{TASK}[1].task_name", f"{TASK}[0] has it already"),
    (f"{TASK}[0].task_name=", f"{TASK}[0].task_name", "probs_<name>"),
    (f"{TASK}[1].label_name=", f"{TASK}[1].label_name", "Known: cand_seq__action"),
    (f"{TASK}[0].losses[+]={{ l2_loss {{}} }}", "task 'is_click' losses", "Make two tasks"),
    (
        f"{TASK}[0].label_name=cand_seq__acton",
        f"{TASK}[0].label_name",
        "Did you mean 'cand_seq__action'?",
    ),
    (
        f"{TASK}[1].sample_weight_name=w",
        f"{TASK}[1].sample_weight_name",
        "one of data_config.sample_weight_fields",
    ),
    (
        f"{TASK}[0].task_space_indicator_label=x",
        f"{TASK}[0].task_space_indicator_label",
        "data_config.label_fields",
    ),
    (f"{TASK}[0].losses=[]", f"{TASK}[0].losses", "at least one loss"),
    (f"{TASK}[0].losses[0]={{}}", f"{TASK}[0].losses[0]", "a loss"),
    (f"{TASK}[0].num_class=0", f"{TASK}[0].num_class", "at least 1"),
    (f"{TASK}[0].metrics[0]={{}}", f"{TASK}[0].metrics[0]", "a metric"),
    (
        f"{TASK}[0].metrics[1].grouped_auc.grouping_key=",
        f"{TASK}[0].metrics[1].grouped_auc.grouping_key",
        "user id",
    ),
    (
        f"{TASK}[0].losses[0]={{ softmax_cross_entropy {{}} }}",
        f"{TASK}[0].losses[0].softmax_cross_entropy",
        "two classes",
    ),
    (
        f"{TASK}[0].num_class=3|{TASK}[0].losses[0]={{ softmax_cross_entropy {{}} }}|"
        f"{TASK}[0].metrics=[{{ accuracy {{}} }}]",
        f"{TASK}[0].task_bitmask",
        "num_class 1 or 2",
    ),
    (f"{TASK}[0].weight=-1", f"{TASK}[0].weight", "0 or more"),
    (f"{TASK}[0].pareto_min_loss_weight=1", f"{TASK}[0].pareto_min_loss_weight", "[0, 1)"),
    (
        "data_config.input_fields[0].input_type=ARRAY_FLOAT|" + f"{TASK}[1].task_bitmask=0",
        f"{TASK}[0].task_bitmask",
        "declared ARRAY_FLOAT",
    ),
    (
        f"data_config.input_fields=[]|data_config.input_fields_str=cand_seq__action:STRING|"
        f"{TASK}[1].task_bitmask=0",
        f"{TASK}[0].task_bitmask",
        "declared STRING",
    ),
]

# The same for the pointwise model, whose features are generated.
POINTWISE = [
    (
        "feature_configs[0].id_feature.expression=",
        "feature_configs[0].id_feature.expression",
        "or read ready columns with FG_NONE",
    ),
    (
        "feature_configs[0].id_feature.expression=user_id",
        "feature_configs[0].id_feature.expression",
        "side:name",
    ),
    (
        "feature_configs[0].id_feature.expression=usr:user_id",
        "feature_configs[0].id_feature.expression",
        "Did you mean 'user'?",
    ),
    (
        "feature_configs[3].lookup_feature.key=",
        "feature_configs[3].lookup_feature.key",
        "found nothing",
    ),
    (
        "feature_configs[1].combo_feature.expression[1]=feature:agee",
        "feature_configs[1].combo_feature.expression",
        "Did you mean feature:age?",
    ),
    (
        "feature_configs[2].raw_feature.expression=feature:user_x_age",
        "feature_configs[1].combo_feature",
        "user_x_age -> age -> user_x_age",
    ),
    (
        "feature_configs[2].raw_feature.expression=feature:age",
        "feature_configs[2].raw_feature",
        "age -> age",
    ),
    (
        f"{GROUP}[0].sequence_encoders[0].pooling_encoder.input=histry",
        f"{GROUP}[0].sequence_encoders[0].pooling_encoder.input",
        "Did you mean 'history'?",
    ),
    (
        f"{GROUP}[0].sequence_encoders[0].pooling_encoder.pooling_type=max",
        f"{GROUP}[0].sequence_encoders[0].pooling_encoder.pooling_type",
        "mean",
    ),
    (f"{GROUP}[0].sequence_encoders[+]={{}}", f"{GROUP}[0].sequence_encoders[1]", "din_encoder"),
    (
        f"{GROUP}[0].sequence_groups[0].feature_names[0]=user_id",
        f"{GROUP}[0].sequence_groups[0].feature_names",
        "no sequence in 'history'",
    ),
    ("model_config.mmoe.num_expert=0", "model_config.mmoe.num_expert", "above 0"),
    ("model_config.mmoe.expert_mlp=", "model_config.mmoe.expert_mlp", "expert_mlp { ... }"),
    (
        "model_config.mmoe.expert_mlp.dropout_ratio=[0.1, 0.2, 0.3]",
        "model_config.mmoe.expert_mlp.dropout_ratio",
        "3 values for 2 layers",
    ),
    (
        "model_config.mmoe.expert_mlp.dropout_ratio=[1.5]",
        "model_config.mmoe.expert_mlp.dropout_ratio",
        "[0, 1)",
    ),
    (
        f"{TOWER}[0].losses[0]={{ jrc_loss {{ session_name: 'user_id' }} }}",
        f"{TOWER}[0].losses[0].jrc_loss",
        "num_class 2",
    ),
    (
        f"{TOWER}[0].losses[0]={{ jrc_loss {{}} }}|{TOWER}[0].num_class=2",
        f"{TOWER}[0].losses[0].jrc_loss.session_name",
        "a feature",
    ),
    (
        f"{TOWER}[1].num_class=3",
        f"{TOWER}[1].losses[0].binary_cross_entropy",
        "num_class 1",
    ),
    (
        f"{TOWER}[0].metrics=[{{ auc {{}} }}, {{ multiclass_auc {{}} }}]",
        f"{TOWER}[0].metrics[1].multiclass_auc",
        "a metric of this output",
    ),
    (
        f"{TOWER}[0].train_metrics=[{{ accuracy {{}} }}]|{TOWER}[0].losses[0]={{ l2_loss {{}} }}"
        f"|{TOWER}[0].metrics=[{{ mean_squared_error {{}} }}]",
        f"{TOWER}[0].train_metrics[0].accuracy",
        "accuracy with l2_loss",
    ),
    (
        "model_config.ple={ task_towers { tower_name: 'a' label_name: 'click' "
        "losses { l2_loss {} } } }",
        "model_config.ple.extraction_networks",
        "at least one level",
    ),
    (
        "model_config.ple={ extraction_networks { expert_num_per_task: 1 share_num: 1 "
        "task_expert_net { hidden_units: 3 } } task_towers { tower_name: 'a' label_name: 'click' "
        "losses { l2_loss {} } } }",
        "model_config.ple.extraction_networks[0].share_expert_net",
        "share_expert_net { ... }",
    ),
    (
        "model_config.simple_multi_task={}",
        "model_config.simple_multi_task",
        "no tasks",
    ),
]


def only_problem(text: str, overrides: str) -> Problem:
    problems = validate(edited(text, *overrides.split("|")))
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]


@pytest.mark.parametrize(("overrides", "path", "said"), RANKER)
def test_ranker(overrides: str, path: str, said: str) -> None:
    problem = only_problem(DLRM_HSTU, overrides)
    assert problem.path == path
    assert said in str(problem)


@pytest.mark.parametrize(("overrides", "path", "said"), POINTWISE)
def test_pointwise(overrides: str, path: str, said: str) -> None:
    problem = only_problem(MMOE, overrides)
    assert problem.path == path
    assert said in str(problem)


def test_all_problems_are_raised_together() -> None:
    overrides = [entry for row in RANKER[:4] for entry in row[0].split("|")]
    with pytest.raises(ConfigError) as caught:
        check(edited(DLRM_HSTU, *overrides), "x.config", [Problem("a", "b", "c", "d")])
    assert len(caught.value.problems) == 5
    assert str(caught.value).startswith("x.config: 5 problems")


def test_a_task_without_label_name_takes_the_label_field_of_its_position() -> None:
    assert validate(edited(DLRM_HSTU, f"{TASK}[0].label_name=")) == []


def test_ready_columns_need_no_expression() -> None:
    for mode in ("FG_NONE", "FG_BUCKETIZE"):
        config = edited(
            MMOE,
            f"data_config.fg_mode={mode}",
            "feature_configs[0].id_feature.expression=",
            "feature_configs[1].combo_feature.expression=['feature:user_x_age']",
        )
        assert validate(config) == []


def test_long_chains_and_one_cycle_among_them() -> None:
    config = edited(MMOE)
    for index in range(3000):  # deeper than the recursion limit
        feature = config.feature_configs.add().raw_feature
        feature.feature_name = f"f{index}"
        feature.expression = f"feature:f{index + 1}" if index < 2999 else "user:x"
    assert validate(config) == []
    config.feature_configs[-1].raw_feature.expression = "feature:f2997"
    (problem,) = validate(config)
    assert problem.value == "f2997 -> f2998 -> f2999 -> f2997"


def test_members_of_a_grouped_sequence_refer_to_each_other() -> None:
    config = edited(
        DLRM_HSTU,
        "data_config.fg_mode=FG_NORMAL",
        f"{UIH}.features[+]={{ raw_feature {{ feature_name: 'age' expression: 'feature:time' }} }}",
    )
    assert validate(config) == []
    apply_overrides(config, [f"{UIH}.features[2].raw_feature.expression=feature:age"])
    (problem,) = validate(config)
    assert "uih_seq__time -> uih_seq__age -> uih_seq__time" in problem.value


def test_interleaving_doubles_the_history() -> None:
    interleaved = (
        "{ contextual_interleave_preprocessor { content_encoder { slice_content_encoder {} } "
        "content_mlp { simple_mlp { hidden_dim: 4 } } } }"
    )
    pre = f"{HSTU}.input_preprocessor"
    config = edited(DLRM_HSTU, f"{pre}={interleaved}")
    assert any("'uih' keeps 100 tokens" in note for note in notes(config))
    apply_overrides(config, [f"{pre}.contextual_interleave_preprocessor.enable_interleaving=false"])
    assert not any("keeps" in note for note in notes(config))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("train_config=", "train_config is not set"),
        ("eval_input_path=", "eval_input_path is not set"),
        ("model_config.metrics[+].auc={}", "model_config.metrics is not read"),
        (f"{GROUP}[2].feature_names[0]=uih_seq__time", "'uih_seq__action' is in no group"),
        (
            f"{TASK}[0].metrics[1].grouped_auc.grouping_key=author",
            "'author' names a group of rows",
        ),
        (
            f"{UIH}.features[1].raw_feature.embedding_dim=4",
            "embedding_dim has no effect",
        ),
        ("model_config.dlrm_hstu.max_seq_len=60", "Nothing is cut: raise max_seq_len"),
        ("model_config.dlrm_hstu.max_seq_len=49", "keeps 50 tokens"),
    ],
)
def test_notes(overrides: str, said: str) -> None:
    config = edited(DLRM_HSTU, overrides)
    assert validate(config) == []
    (note,) = notes(config)
    assert said in note


def test_the_sample_has_nothing_to_note() -> None:
    assert notes(parse_pipeline(DLRM_HSTU)) == []


def test_one_of_two_features_may_say_how_their_table_is_sharded() -> None:
    asked = "embedding_constraints={ sharding_types: 'row_wise' }"
    other = asked.replace("row", "column")
    history, candidates = f"{UIH}.features[0].id_feature", "feature_configs[2].sequence_feature"
    candidates += ".features[0].id_feature"
    assert validate(edited(DLRM_HSTU, f"{history}.{asked}")) == []
    assert validate(edited(DLRM_HSTU, f"{history}.{asked}", f"{candidates}.{asked}")) == []
    (problem,) = validate(edited(DLRM_HSTU, f"{history}.{asked}", f"{candidates}.{other}"))
    assert problem.path == f"{candidates}.embedding_name"
    assert "embedding_constraints column_wise" in str(problem)
