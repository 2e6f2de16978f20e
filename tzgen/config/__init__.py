# SPDX-License-Identifier: Apache-2.0
"""The config: loading, overriding, checking, and handing its parts to the layers above."""

from tzgen.config.difference import Difference, differences
from tzgen.config.features import (
    FeatureRef,
    GroupRef,
    features_of,
    fg_mode_of,
    groups_of,
    tables_of,
)
from tzgen.config.load import config_hash, dump, load_pipeline, parse_pipeline
from tzgen.config.options import fields_match, options
from tzgen.config.override import apply_edit_json, apply_overrides, set_field
from tzgen.config.support import replaced, unsupported
from tzgen.config.validate import check, notes, validate

__all__ = [
    "Difference",
    "FeatureRef",
    "GroupRef",
    "apply_edit_json",
    "apply_overrides",
    "check",
    "config_hash",
    "differences",
    "dump",
    "features_of",
    "fg_mode_of",
    "fields_match",
    "groups_of",
    "load_pipeline",
    "notes",
    "options",
    "parse_pipeline",
    "replaced",
    "set_field",
    "tables_of",
    "unsupported",
    "validate",
]
