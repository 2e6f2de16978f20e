# SPDX-License-Identifier: Apache-2.0
"""Configs that the tests start from: a ranker with histories, and a pointwise one."""

from __future__ import annotations

DLRM_HSTU = """\
train_input_path: "data/train/*.parquet"
eval_input_path: "data/eval/*.parquet"
model_dir: "experiments/sample"
train_config {
  sparse_optimizer {
    rowwise_adagrad_optimizer { lr: 0.01 }
    constant_learning_rate {}
  }
  dense_optimizer {
    adam_optimizer { lr: 0.001 }
    exponential_decay_learning_rate { decay_size: 100 }
  }
  num_epochs: 2
  mixed_precision: "BF16"
}
data_config {
  batch_size: 16
  dataset_type: ParquetDataset
  label_fields: "cand_seq__action"
  sample_weight_fields: "cand_seq__weight"
  input_fields { input_name: "cand_seq__action" input_type: ARRAY_INT64 }
}
feature_configs {
  id_feature {
    feature_name: "user_id"
    expression: "user:user_id"
    num_buckets: 1000
    embedding_dim: 8
  }
}
feature_configs {
  sequence_feature {
    sequence_name: "uih_seq"
    sequence_length: 50
    features {
      id_feature {
        feature_name: "video_id"
        expression: "user:video_id"
        num_buckets: 500
        embedding_dim: 16
        embedding_name: "video"
        init_fn: "nn.init.uniform_,a=-0.01,b=0.01"
      }
    }
    features { raw_feature { feature_name: "action" expression: "user:action" } }
    features { raw_feature { feature_name: "time" expression: "user:time" } }
  }
}
feature_configs {
  sequence_feature {
    sequence_name: "cand_seq"
    sequence_length: 10
    features {
      id_feature {
        feature_name: "video_id"
        expression: "item:video_id"
        num_buckets: 500
        embedding_dim: 16
        embedding_name: "video"
      }
    }
    features { raw_feature { feature_name: "time" expression: "item:time" } }
  }
}
model_config {
  feature_groups { group_name: "contextual" feature_names: "user_id" group_type: DEEP }
  feature_groups {
    group_name: "uih" feature_names: "uih_seq__video_id" group_type: JAGGED_SEQUENCE
  }
  feature_groups {
    group_name: "uih_action" feature_names: "uih_seq__action" group_type: JAGGED_SEQUENCE
  }
  feature_groups {
    group_name: "uih_timestamp" feature_names: "uih_seq__time" group_type: JAGGED_SEQUENCE
  }
  feature_groups {
    group_name: "candidate" feature_names: "cand_seq__video_id" group_type: JAGGED_SEQUENCE
  }
  feature_groups {
    group_name: "candidate_timestamp" feature_names: "cand_seq__time" group_type: JAGGED_SEQUENCE
  }
  dlrm_hstu {
    hstu {
      stu { embedding_dim: 32 num_heads: 2 hidden_dim: 16 attention_dim: 16 }
      attn_num_layers: 2
      positional_encoder {
        num_position_buckets: 128
        num_time_buckets: 64
        use_time_encoding: true
      }
      input_preprocessor {
        contextual_preprocessor {
          action_encoder {
            simple_action_encoder { action_embedding_dim: 4 action_weights: [1, 2] }
          }
          action_mlp { simple_mlp { hidden_dim: 16 } }
          content_encoder { slice_content_encoder {} }
          content_mlp { simple_mlp { hidden_dim: 16 } }
        }
      }
      output_postprocessor { layernorm_postprocessor {} }
    }
    fusion_mtl_tower {
      mlp { hidden_units: 32 activation: "nn.SiLU" use_ln: true }
      task_configs {
        task_name: "is_click"
        label_name: "cand_seq__action"
        task_bitmask: 1
        losses { binary_cross_entropy {} }
        metrics { auc {} }
        metrics { grouped_auc { grouping_key: "user_id" } }
      }
      task_configs {
        task_name: "is_like"
        label_name: "cand_seq__action"
        task_bitmask: 2
        sample_weight_name: "cand_seq__weight"
        losses { binary_cross_entropy {} }
        metrics { auc {} }
      }
    }
    max_seq_len: 64
  }
  kernel: PYTORCH
}
"""

MMOE = """\
train_input_path: "data/train/*.parquet"
model_dir: "experiments/mmoe"
train_config {
  sparse_optimizer { adagrad_optimizer { lr: 0.01 } }
  dense_optimizer { adam_optimizer { lr: 0.001 } }
  num_steps: 100
}
data_config {
  dataset_type: ParquetDataset
  fg_mode: FG_DAG
  label_fields: "click"
  label_fields: "buy"
}
feature_configs {
  id_feature {
    feature_name: "user_id" expression: "user:user_id" hash_bucket_size: 1000 embedding_dim: 8
  }
}
feature_configs {
  combo_feature {
    feature_name: "user_x_age"
    expression: ["user:user_id", "feature:age"]
    hash_bucket_size: 5000
    embedding_dim: 8
  }
}
feature_configs {
  raw_feature {
    feature_name: "age" expression: "user:age" boundaries: [18, 30, 45] embedding_dim: 4
  }
}
feature_configs {
  lookup_feature { feature_name: "clicks" map: "user:clicks" key: "item:category" }
}
feature_configs {
  sequence_id_feature {
    feature_name: "recent" expression: "user:recent" hash_bucket_size: 500 embedding_dim: 8
    sequence_length: 20
  }
}
model_config {
  feature_groups {
    group_name: "all"
    feature_names: ["user_id", "user_x_age", "age", "clicks"]
    group_type: DEEP
    sequence_groups { group_name: "history" feature_names: ["recent"] }
    sequence_encoders { pooling_encoder { input: "history" pooling_type: "mean" } }
  }
  mmoe {
    expert_mlp { hidden_units: [64, 32] dropout_ratio: 0.1 }
    num_expert: 4
    task_towers {
      tower_name: "click"
      label_name: "click"
      losses { binary_cross_entropy {} }
      metrics { auc { thresholds: 200 } }
    }
    task_towers {
      tower_name: "buy"
      label_name: "buy"
      losses { binary_cross_entropy {} }
      metrics { auc {} }
      task_space_indicator_label: "click"
      mlp { hidden_units: 16 }
    }
  }
}
"""
