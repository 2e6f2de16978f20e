# SPDX-License-Identifier: Apache-2.0
"""From the text of a config and columns to a Batch, for the tests of the features."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch
from google.protobuf import text_format

from tzgen.data.batch import Batch, Ids, Source
from tzgen.features import FeatureParser, create_features
from tzgen.protos import pipeline_pb2

FIRST_ROW = 100  # of the file that the rows come from


def make_config(text: str) -> Any:
    return text_format.Parse(text, pipeline_pb2.PipelineConfig())


def make_source(rows: int) -> Source:
    index = torch.zeros(rows, dtype=torch.int32)
    return Source(("rows.parquet",), index, torch.arange(rows) + FIRST_ROW)


def make_rows(columns: Mapping[str, Any]) -> pa.RecordBatch:
    arrays = [
        value if isinstance(value, pa.Array) else pa.array(value) for value in columns.values()
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def parse(text: str, columns: Mapping[str, Any], **given: Any) -> Batch:
    """The Batch of a parser that went through pickle, as on its way to a loader worker."""
    config = make_config(text)
    parser = FeatureParser(config, create_features(config), **given)
    rows = make_rows(columns)
    return pickle.loads(pickle.dumps(parser)).parse(rows, make_source(rows.num_rows))


def one(kind: str, fields: str, mode: str = "FG_DAG", data: str = "") -> str:
    """A config with one feature named "f"."""
    feature = f'{kind} {{ feature_name: "f" {fields} }}'
    return f"data_config {{ fg_mode: {mode} {data} }} feature_configs {{ {feature} }}"


def bags(ids: Ids) -> list[list[int]]:
    """The ids of each bag."""
    return [part.tolist() for part in torch.split(ids.values, ids.lengths.tolist())]
