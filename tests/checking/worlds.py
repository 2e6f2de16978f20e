# SPDX-License-Identifier: Apache-2.0
"""Two small configs with rows, and what a dry run of them gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tzgen.checking.dry_run import DryRun, dry_run
from tzgen.config import parse_pipeline

CPU = torch.device("cpu")

# No group has the widths of another, so that a product of wrong sizes shows.
HSTU = """
train_input_path: "{train}"
model_dir: "model"
train_config {{
  sparse_optimizer {{ rowwise_adagrad_optimizer {{ lr: 0.1 }} }}
  dense_optimizer {{ adam_optimizer {{ lr: 0.1 }} }}
  num_steps: 3
}}
data_config {{ batch_size: 4 dataset_type: ParquetDataset label_fields: "shown__act" }}
feature_configs {{
  sequence_feature {{
    sequence_name: "seen" sequence_length: 6
    features {{ id_feature {{ feature_name: "item" num_buckets: 50 embedding_dim: 8 embedding_name: "item" }} }}
    features {{ raw_feature {{ feature_name: "act" }} }}
  }}
}}
feature_configs {{
  sequence_feature {{
    sequence_name: "shown" sequence_length: 6
    features {{ id_feature {{ feature_name: "item" num_buckets: 50 embedding_dim: 8 embedding_name: "item" }} }}
  }}
}}
feature_configs {{ id_feature {{ feature_name: "user" num_buckets: 9 embedding_dim: 12 trainable: false }} }}
feature_configs {{ id_feature {{ feature_name: "city" num_buckets: 7 embedding_dim: 12 }} }}
model_config {{
  feature_groups {{ group_name: "contextual" feature_names: ["user", "city"] group_type: DEEP }}
  feature_groups {{ group_name: "uih" feature_names: "seen__item" group_type: JAGGED_SEQUENCE }}
  feature_groups {{ group_name: "uih_action" feature_names: "seen__act" group_type: JAGGED_SEQUENCE }}
  feature_groups {{ group_name: "candidate" feature_names: "shown__item" group_type: JAGGED_SEQUENCE }}
  dlrm_hstu {{
    hstu {{
      stu {{ embedding_dim: 10 num_heads: 2 hidden_dim: 5 attention_dim: 3 }}
      attn_num_layers: 2
      positional_encoder {{ num_position_buckets: 16 }}
      input_preprocessor {{
        contextual_preprocessor {{
          action_encoder {{ simple_action_encoder {{ action_embedding_dim: 4 action_weights: [1, 2] }} }}
          action_mlp {{ simple_mlp {{ hidden_dim: 6 }} }}
          content_encoder {{ slice_content_encoder {{}} }}
          content_mlp {{ simple_mlp {{ hidden_dim: 6 }} }}
        }}
      }}
      output_postprocessor {{ l2norm_postprocessor {{}} }}
    }}
    fusion_mtl_tower {{
      mlp {{ hidden_units: 14 }}
      task_configs {{ task_name: "click" label_name: "shown__act" task_bitmask: 1 losses {{ binary_cross_entropy {{}} }} }}
      task_configs {{ task_name: "like" label_name: "shown__act" task_bitmask: 2 losses {{ binary_cross_entropy {{}} }} weight: 0.5 }}
    }}
    max_seq_len: 8
    item_embedding_hidden_dim: 16
  }}
}}
"""
TOWER = """
train_input_path: "{train}"
model_dir: "model"
train_config {{
  sparse_optimizer {{ adagrad_optimizer {{ lr: 0.1 }} }}
  dense_optimizer {{ adam_optimizer {{ lr: 0.1 }} }}
  num_steps: 3
}}
data_config {{ batch_size: 4 dataset_type: ParquetDataset label_fields: "y" }}
feature_configs {{ id_feature {{ feature_name: "user" num_buckets: 9 embedding_dim: 4 }} }}
feature_configs {{ raw_feature {{ feature_name: "age" value_dim: 3 }} }}
model_config {{
  feature_groups {{ group_name: "all" feature_names: ["user", "age"] group_type: DEEP }}
  simple_multi_task {{
    task_towers {{ tower_name: "t" label_name: "y" mlp {{ hidden_units: [5, 6] }} losses {{ binary_cross_entropy {{}} }} }}
  }}
}}
"""
# Row 1 has 8 events (two too many), row 2 none; candidates 1, 3, 2, 1.
HISTORY = ([1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [], [1])
ACTS = ([0, 1, 2], [3, 0, 1, 2, 3, 1, 0, 2], [], [1])
SHOWN = ([1], [40, 2, 3], [6, 49], [1])
LABELS = ([3], [0, 1, 1], [2, 1], [0])


def hstu_rows(times: int = 1, **columns: Any) -> pa.Table:
    rows = {
        "seen__item": HISTORY,
        "seen__act": ACTS,
        "shown__item": SHOWN,
        "shown__act": LABELS,
        "user": [3, 8, 0, 5],
        "city": [0, 1, 6, 2],
        **columns,
    }
    return pa.table({name: list(values) * times for name, values in rows.items()})


def tower_rows(**columns: Any) -> pa.Table:
    ages = [[1.0, 2.0, 3.0]] * 4
    return pa.table({"user": [0, 8, 3, 3], "age": ages, "y": [0, 1, 1, 1], **columns})


def world(folder: Path, text: str, rows: pa.Table | None) -> tuple[Any, Path]:
    """(config, its file); without rows train_input_path stays empty."""
    data = ""
    if rows is not None:
        data = str(folder / "rows.parquet")
        pq.write_table(rows, data)
    path = folder / "x.config"
    path.write_text(text.format(train=data))
    return parse_pipeline(path.read_text()), path


def tried(folder: Path, text: str, rows: pa.Table | None) -> DryRun:
    config, path = world(folder, text, rows)
    return dry_run(config, synthetic=False, device=CPU, source=str(path))
