# SPDX-License-Identifier: Apache-2.0
"""Columns to ids and numbers: features from a config, and the parser that the loader calls."""

from tzgen.features.base import Feature
from tzgen.features.create import create_features
from tzgen.features.parser import FeatureParser
from tzgen.features.tables import Constraints, DenseEncoder, TableSpec, merge_tables

__all__ = [
    "Constraints",
    "DenseEncoder",
    "Feature",
    "FeatureParser",
    "TableSpec",
    "create_features",
    "merge_tables",
]
