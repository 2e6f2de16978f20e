# SPDX-License-Identifier: Apache-2.0
"""Readers by DatasetType name. A new one: a file here, `@READERS.register`, an import below."""

from __future__ import annotations

from collections.abc import Sequence

from tzgen.data.readers.base import READERS, FileInfo, FileReader, Reader
from tzgen.data.readers.csv import CsvDataset
from tzgen.data.readers.parquet import ParquetDataset
from tzgen.protos import data_pb2

__all__ = [
    "READERS",
    "CsvDataset",
    "FileInfo",
    "FileReader",
    "ParquetDataset",
    "Reader",
    "open_reader",
]


def open_reader(
    config: data_pb2.DataConfig, input_path: str, columns: Sequence[str] | None = None
) -> Reader:
    """The reader that `config.dataset_type` names, over `input_path`; `columns` None reads all.

    Footers are read and checked here, so what is wrong with the files as a whole is said before
    anything is built on them.
    """
    name = data_pb2.DatasetType.Name(config.dataset_type)
    return READERS[name].from_config(config, input_path, columns)
