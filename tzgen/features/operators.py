# SPDX-License-Identifier: Apache-2.0
"""The operator of each kind of feature, and what its message says about ids and widths."""

from __future__ import annotations

from typing import Any

import numpy as np

from tzgen.config.features import FeatureRef
from tzgen.errors import ConfigError, Problem
from tzgen.features.base import Operator
from tzgen.features.cross import Combination, ItemForm, Lookup, Match
from tzgen.features.expression import parse_expression
from tzgen.features.mask import Mask
from tzgen.features.overlap import METHODS, Overlap
from tzgen.features.raw import Formula, Normalizer, Numbers, parse_normalizer
from tzgen.features.tokenize import Replacement, Tokens, load_tokenizer, parse_normalization
from tzgen.features.vocabulary import asset, field

TOKENIZE = "tokenize_feature"
EVERY_KEY = ("ALL", "*")  # a key of match_feature that matches every entry
_ALWAYS_IDS = (
    "id_feature",
    "combo_feature",
    "bool_mask_feature",
    "regex_replace_feature",
    TOKENIZE,
)
_BUCKETS = (
    "hash_bucket_size",
    "num_buckets",
    "vocab_list",
    "vocab_dict",
    "vocab_file",
)
_COMBINERS = ("", "sum", "mean", "min", "max", "count")


def is_sparse(ref: FeatureRef) -> bool:
    """Whether the model gets ids of this feature, else numbers."""
    if ref.kind in _ALWAYS_IDS:
        return True
    return any(field(ref.message, name) for name in (*_BUCKETS, "boundaries"))


def value_dim(ref: FeatureRef) -> int:
    """Values per row or step; 0 any number. Unset: TorchEasyRec's default of the kind."""
    if ref.kind in (TOKENIZE, "overlap_feature"):
        return 0 if ref.kind == TOKENIZE else 1
    asked = field(ref.message, "value_dim")
    if asked is not None:
        return int(asked)
    if ref.kind in ("raw_feature", "regex_replace_feature"):
        return 1
    if ref.kind == "expr_feature":
        return 0
    return 1 if ref.is_sequence or not is_sparse(ref) else 0


def operator_of(ref: FeatureRef, generates: bool) -> Operator | None:
    """What makes the feature's values of its inputs; None where the input is the value."""
    if not generates or ref.kind == "id_feature":
        return None
    maker = _MAKERS.get(ref.kind)
    if maker is None:
        raise ConfigError([Problem(ref.path, ref.kind, "a kind that tzgen has", "Remove it.")])
    return maker(ref)  # type: ignore[no-any-return]


def _normalizer(ref: FeatureRef) -> Normalizer | None:
    return parse_normalizer(str(field(ref.message, "normalizer", "")), ref.path)


def _choice(ref: FeatureRef, name: str, known: Any) -> str:
    value = str(getattr(ref.message, name))
    if value not in known:
        path = f"{ref.path}.{name}"
        raise ConfigError(
            [Problem(path, repr(value), f"one of {', '.join(map(repr, known))}", "Correct it.")]
        )
    return value


def _item_form(ref: FeatureRef) -> ItemForm:
    message = ref.message
    words = any(field(message, name) for name in _BUCKETS if name != "num_buckets")
    shown = [field(message, name, False) for name in ("need_key", "show_pkey", "show_skey")]
    discrete = bool(words or field(message, "need_discrete", False) or any(shown))
    combiner = _choice(ref, "combiner", _COMBINERS) if ref.kind == "lookup_feature" else "sum"
    if field(message, "num_buckets"):
        combiner = ""  # the numbers are ids: there is nothing to add up
    separator = str(getattr(message, "value_separator", ","))
    dim = 1 if ref.kind == "match_feature" else value_dim(ref)
    return ItemForm(discrete, combiner, dim, separator, _normalizer(ref))


def _lookup(ref: FeatureRef) -> Operator:
    return Lookup(_item_form(ref), bool(field(ref.message, "need_key", False)))


def _match(ref: FeatureRef) -> Operator:
    message: Any = ref.message
    return Match(
        _item_form(ref),
        has_outer=message.pkey not in EVERY_KEY,
        has_inner=message.skey not in EVERY_KEY,
        show_outer=bool(message.show_pkey),
        show_inner=bool(message.show_skey),
    )


def _formula(ref: FeatureRef) -> Operator:
    message: Any = ref.message
    plain = [text.partition(":")[2] for text in message.variables]
    names = tuple(tuple(dict.fromkeys((name, ref.prefix + name))) for name in plain)
    known = [spelling for spellings in names for spelling in spellings]
    expression = parse_expression(message.expression, known, f"{ref.path}.expression")
    return Formula(expression, names, float(field(message, "fill_missing", np.nan)))


def _tokens(ref: FeatureRef) -> Operator:
    message: Any = ref.message
    normalization = None
    if message.HasField("text_normalizer"):
        normalization = parse_normalization(message.text_normalizer, ref.path)
    as_sequence = bool(field(message, "tokens_as_sequence", False))
    limit = int(field(message, "sequence_length", 0))
    return Tokens(_tokenizer(ref), normalization, as_sequence, limit)


def _tokenizer(ref: FeatureRef) -> Any:
    _choice(ref, "tokenizer_type", ("bpe",))
    return load_tokenizer(asset(ref.message, "vocab_file"), ref.name)


def tokenizer_size(ref: FeatureRef) -> int:
    return int(_tokenizer(ref).get_vocab_size())


def _replacement(ref: FeatureRef) -> Operator:
    message: Any = ref.message
    flags = "(?i)" if message.icase else ""
    pattern = flags + "|".join(f"(?:{one})" for one in message.regex_pattern)
    return Replacement(pattern, message.replacement, message.replace_all)


def _overlap(ref: FeatureRef) -> Operator:
    return Overlap(_choice(ref, "method", tuple(METHODS)), _normalizer(ref))


_MAKERS: dict[str, Any] = {
    "raw_feature": lambda ref: Numbers(_normalizer(ref)),
    "combo_feature": lambda ref: Combination(),
    "lookup_feature": _lookup,
    "match_feature": _match,
    "expr_feature": _formula,
    "overlap_feature": _overlap,
    "bool_mask_feature": lambda ref: Mask(),
    "regex_replace_feature": _replacement,
    TOKENIZE: _tokens,
}
