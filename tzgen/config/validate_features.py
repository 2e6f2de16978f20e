# SPDX-License-Identifier: Apache-2.0
"""Checks of feature_configs: names, tables, shared tables, initial weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from google.protobuf.message import Message

from tzgen.config.allowlists import parse_init_fn
from tzgen.config.features import FeatureRef, features_of, tables_of
from tzgen.errors import Problem, UserError

# Kinds that are always ids; the others are ids only where a table size or boundaries are set.
_ID_KINDS = (
    "id_feature",
    "combo_feature",
    "tokenize_feature",
    "bool_mask_feature",
    "regex_replace_feature",
)
_SIZES = "hash_bucket_size, num_buckets, vocab_list, vocab_dict or vocab_file"


def feature_problems(config: Message) -> Iterator[Problem]:
    """What is wrong with the features by themselves; validate_graph checks their inputs."""
    yield from _entries(config)
    refs = features_of(config)
    yield from _names(refs)
    for ref in refs:
        yield from _table(ref)
        yield from _values(ref)
    yield from _shared_tables([ref for ref in refs if has_table(ref)])


def has_table(ref: FeatureRef) -> bool:
    """Whether the feature is looked up in an embedding table."""
    return not _is_stub(ref) and (ref.kind in _ID_KINDS or bool(tables_of(ref)))


def table_name(ref: FeatureRef) -> str:
    """`embedding_name`, or a table of the feature's own."""
    return ref.message.embedding_name or f"{ref.name}_emb"


def _is_stub(ref: FeatureRef) -> bool:
    return bool(ref.message.stub_type)


def _entries(config: Message) -> Iterator[Problem]:
    """Entries without a kind, sequences without a name."""
    kinds = "one of id_feature, raw_feature, sequence_feature, ..."
    for index, entry in enumerate(config.feature_configs):
        path = f"feature_configs[{index}]"
        member = entry.WhichOneof("feature")
        if member is None:
            yield Problem(path, "nothing", kinds, "Write the feature, or remove the entry.")
        elif member == "sequence_feature":
            sequence = entry.sequence_feature
            if not sequence.sequence_name:
                yield Problem(
                    f"{path}.sequence_feature.sequence_name",
                    "nothing",
                    "a name",
                    "It becomes the prefix of its features: <sequence_name>__<feature_name>.",
                )
            for inner, feature in enumerate(sequence.features):
                if feature.WhichOneof("feature") is None:
                    place = f"{path}.sequence_feature.features[{inner}]"
                    yield Problem(
                        place, "nothing", kinds, "Write the feature, or remove the entry."
                    )


def _names(refs: Sequence[FeatureRef]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for ref in refs:
        path = f"{ref.path}.feature_name"
        if not ref.message.feature_name:
            yield Problem(path, "nothing", "a name", "Groups refer to features by name.")
        elif ref.name in first:
            yield Problem(
                path,
                repr(ref.name),
                "a name of its own",
                f"{first[ref.name]} has it already: rename one of the two.",
            )
        else:
            first[ref.name] = ref.path


def _table(ref: FeatureRef) -> Iterator[Problem]:
    """Table sizes: one for ids, at most one for numbers, and then a width."""
    if _is_stub(ref):
        return
    sizes = tables_of(ref)
    dense = _dense_embedding(ref)
    if ref.kind in _ID_KINDS and not sizes:
        expected = "vocab_file" if ref.kind == "tokenize_feature" else f"one of {_SIZES}"
        yield Problem(ref.path, "no table size", expected, "Say how many ids there are.")
    if len(sizes) + bool(dense) > 1:
        found = " and ".join([*sizes, *([dense] if dense else [])])
        yield Problem(ref.path, found, "one of them", "Remove all but one.")
    if (has_table(ref) or dense) and not ref.message.embedding_dim:
        yield Problem(
            f"{ref.path}.embedding_dim",
            "nothing",
            "a width above 0",
            "For example embedding_dim: 16.",
        )
    if dense == "autodis" and not ref.message.autodis.num_channels:
        yield Problem(
            f"{ref.path}.autodis.num_channels", "0", "a number above 0", "For example 20 channels."
        )


def _dense_embedding(ref: FeatureRef) -> str | None:
    if "dense_emb" not in ref.message.DESCRIPTOR.oneofs_by_name:
        return None
    member: str | None = ref.message.WhichOneof("dense_emb")
    return member


def _values(ref: FeatureRef) -> Iterator[Problem]:
    message = ref.message
    fields = message.DESCRIPTOR.fields_by_name
    if message.init_fn:
        try:
            parse_init_fn(message.init_fn)
        except UserError as error:
            expected = "an initializer of the allow-list"
            yield Problem(f"{ref.path}.init_fn", repr(message.init_fn), expected, str(error))
    if "boundaries" in fields:
        cuts = list(message.boundaries)
        if any(left >= right for left, right in pairwise(cuts)):
            shown = ", ".join(f"{cut:g}" for cut in cuts[:8])
            yield Problem(
                f"{ref.path}.boundaries", shown, "ascending numbers", "Sort them and drop repeats."
            )
    verbatim = "default_bucketize_value" in fields and bool(message.vocab_file)
    if verbatim and not message.HasField("default_bucketize_value"):
        yield Problem(
            f"{ref.path}.default_bucketize_value",
            "nothing",
            "the id of words that are not in vocab_file",
            "Set it; a file is taken verbatim, without reserved ids.",
        )


def _shared_tables(refs: Sequence[FeatureRef]) -> Iterator[Problem]:
    """Features of one embedding_name must mean one table (constraints, init_fn: where set)."""
    first: dict[str, tuple[FeatureRef, dict[str, object]]] = {}
    for ref in refs:
        mine: dict[str, object] = {
            "embedding_dim": int(ref.message.embedding_dim),
            "rows": _rows(ref),
            "data_type": str(ref.message.data_type),
            "trainable": bool(ref.message.trainable),
            "init_fn": repr(str(ref.message.init_fn)) if ref.message.init_fn else None,
            "embedding_constraints": _constraints(ref),
        }
        owner, theirs = first.setdefault(table_name(ref), (ref, mine))
        for what, value in mine.items():
            if None not in (value, theirs[what]) and value != theirs[what]:
                yield Problem(
                    f"{ref.path}.embedding_name",
                    f"table {table_name(ref)!r} with {what} {value}",
                    f"{what} {theirs[what]} as in {owner.name!r} ({owner.path})",
                    "Make them equal, or give one of the two another embedding_name.",
                )


def _constraints(ref: FeatureRef) -> str | None:
    if not ref.message.HasField("embedding_constraints"):
        return None
    asked = ref.message.embedding_constraints
    return "/".join((*asked.sharding_types, *asked.compute_kernels)) or "none"


def _rows(ref: FeatureRef) -> int | None:
    """Rows of the table as far as the config alone tells."""
    message = ref.message
    sizes = tables_of(ref)
    if len(sizes) != 1:
        return None
    if sizes[0] in ("hash_bucket_size", "num_buckets"):
        return int(getattr(message, sizes[0]))
    if sizes[0] == "boundaries":
        return len(message.boundaries) + 1
    if sizes[0] == "vocab_list":
        return len(message.vocab_list) + (0 if message.HasField("default_bucketize_value") else 2)
    return None
