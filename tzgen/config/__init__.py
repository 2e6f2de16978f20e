# SPDX-License-Identifier: Apache-2.0
"""The config: loading, overriding, checking, and handing its parts to the layers above."""

from pathlib import Path

from tzgen.generated import require_schema

require_schema(Path(__file__).parent.parent / "protos")  # before anything imports it

from tzgen.config.difference import Difference, differences  # noqa: E402
from tzgen.config.features import (  # noqa: E402
    FeatureRef,
    GroupRef,
    features_of,
    fg_mode_of,
    groups_of,
    tables_of,
)
from tzgen.config.load import config_hash, dump, load_pipeline, parse_pipeline  # noqa: E402
from tzgen.config.options import fields_match, options  # noqa: E402
from tzgen.config.override import apply_edit_json, apply_overrides, set_field  # noqa: E402
from tzgen.config.support import replaced, unsupported  # noqa: E402
from tzgen.config.validate import check, notes, validate  # noqa: E402

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
