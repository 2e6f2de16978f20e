# SPDX-License-Identifier: Apache-2.0
"""Configs in TorchEasyRec's vocabulary: supported models train as they are, others get one refusal.

texts/ holds one text for each way in which its users write such a model. Nothing in them is changed
but paths and dataset_type.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tzgen import build, train_eval
from tzgen.config import features_of, load_pipeline, parse_pipeline
from tzgen.config.schema import walk
from tzgen.config.support import GENERATORS, MODELS
from tzgen.features import create_features
from tzgen.features.synthesis import synthesise
from tzgen.protos import data_pb2, model_pb2

TEXTS = sorted((Path(__file__).parent / "texts").glob("*.config"))
READER = "data_config.dataset_type=ParquetDataset"
OTHERS = [
    field.name
    for field in model_pb2.ModelConfig.DESCRIPTOR.oneofs_by_name["model"].fields
    if field.name not in MODELS
]
# What stands around models in TorchEasyRec's texts and is refused by itself too.
AROUND = """
train_config {{
  mixed_precision: "FP16" grad_scaler {{}} sparse_optimizer {{ adagrad_optimizer {{ lr: 0.1 }} }}
}}
data_config {{
  dataset_type: OdpsDataset label_fields: "clk"
  negative_sampler {{ num_sample: 4 attr_fields: "item" }}
}}
feature_configs {{
  id_feature {{ feature_name: "item" expression: "item:item" zch {{ zch_size: 10 lru {{}} }} }}
}}
prompt_config {{ prompt: "{{{{item}}}}" }}
model_config {{
  feature_groups {{ group_name: "deep" feature_names: "absent" group_type: DEEP }}
  variational_dropout {{}}
  {name} {{}}
  losses {{ binary_cross_entropy {{}} }}
}}
"""
# Fields and enum values; what TorchEasyRec's texts that must train are made of is among them.
VOCABULARY = """
id_feature raw_feature combo_feature lookup_feature match_feature expr_feature overlap_feature
sequence_id_feature sequence_raw_feature sequence_feature sequence_groups din_encoder
pooling_encoder FG_NONE FG_NORMAL FG_DAG FG_BUCKETIZE fg_encoded fg_encoded_multival_sep
autodis mlp weighted normalizer boundaries vocab_list vocab_dict stub_type value_dim pooling
data_type init_fn trainable embedding_name embedding_constraints global_embedding_constraints
slice_content_encoder pad_content_encoder mlp_content_encoder contextual_preprocessor
contextual_interleave_preprocessor timestamp_layernorm_postprocessor layernorm_postprocessor
l2norm_postprocessor simple_mlp parameterized_mlp watchtime_to_action_thresholds max_attn_len
sla_k1 sla_k2 attn_truncation_split_layer attn_truncation_tail_len
concat_contextual_features sequence_timestamp_is_ascending use_time_encoding kernel
binary_cross_entropy softmax_cross_entropy l2_loss jrc_loss binary_focal_loss
auc grouped_auc normalized_entropy mean_absolute_error mean_squared_error multiclass_auc
accuracy recall_at_k xauc grouped_xauc train_metrics task_space_indicator_label
in_task_space_weight out_task_space_weight sample_weight_name pareto_min_loss_weight
constant_learning_rate exponential_decay_learning_rate cosine_annealing_learning_rate
manual_step_learning_rate part_optimizers mixed_precision gradient_accumulation_steps
grad_clipping extraction_networks share_expert_net gate_mlp num_expert
"""


def named(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_parses_and_is_valid(path: Path) -> None:
    config = load_pipeline(path, [READER])
    assert build.validate(config) == []
    assert features_of(config)


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_trains_two_steps(path: Path, tmp_path: Path) -> None:
    config = load_pipeline(path, [READER])
    micro_batches = max(config.train_config.gradient_accumulation_steps, 1)
    rows = 2 * config.data_config.batch_size * micro_batches
    features = create_features(config)
    pq.write_table(synthesise(config, features, rows, seed=1), tmp_path / "train.parquet")
    pq.write_table(synthesise(config, features, 20, seed=2), tmp_path / "eval.parquet")
    flags = {
        "pipeline_config_path": path,
        "set": READER,
        "train_input_path": tmp_path / "train.parquet",
        "eval_input_path": tmp_path / "eval.parquet",
        "model_dir": tmp_path / "model",
    }
    train_eval.main([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    assert (tmp_path / "model" / "model.ckpt-2" / "manifest.json").is_file()
    assert (tmp_path / "model" / "eval_result.txt").is_file()


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_get_one_refusal_by_name(name: str) -> None:
    problems = build.validate(parse_pipeline(AROUND.format(name=name)))
    assert [problem.path for problem in problems] == [f"model_config.{name}"]
    assert name in str(problems[0])
    assert all(supported in problems[0].expected for supported in MODELS)


def test_texts_cover_the_vocabulary() -> None:
    met: set[str] = set()
    for path in TEXTS:
        config = load_pipeline(path, [READER])
        met |= {data_pb2.FgMode.Name(config.data_config.fg_mode)}
        for _, message in walk(config):
            met |= {field.name for field, _ in message.ListFields()}
    # TorchEasyRec has no generators of semantic IDs: test_generator_verbs.py trains them
    assert {*VOCABULARY.split(), *MODELS} - met == set(GENERATORS)
