# SPDX-License-Identifier: Apache-2.0
"""What a config means here and not in TorchEasyRec: `python -m tzgen.check --diff_torcheasyrec`.

docs/differences.md explains each; this lists those that the config at hand meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.message import Message

from tzgen.config.features import features_of, fg_mode_of, groups_of
from tzgen.config.schema import is_message, join, walk
from tzgen.config.support import EARLIER, Status, listed_fields, model_refusal

# Field and enum numbers that are ours; above are TorchEasyRec's earlier names.
_OURS = range(1000, EARLIER)
# TorchEasyRec took this number too.
_THEIRS = ("custom_model",)


class Difference(NamedTuple):
    """status is "different" (other numbers), "replaced", "refused" or "addition" (ours alone)."""

    path: str
    status: str
    text: str


def differences(config: Message) -> list[Difference]:
    """Every difference that this config meets; other fields mean the same in both."""
    refusal = model_refusal(config)
    found = [] if refusal is None else [Difference(refusal.path, "refused", refusal.remedy)]
    for path, shown, support in listed_fields(config):
        status = "refused" if support.status is Status.REFUSED else "replaced"
        found.append(Difference(path, status, f"{shown}. {support.text}"))
    found += _features(config)
    found += _training(config)
    for path, message in walk(config):
        found += _by_message(path, message)
    found += _additions(config)
    return found


def _features(config: Message) -> Iterator[Difference]:
    mode = fg_mode_of(config.data_config)
    refs = features_of(config)
    hashed = [ref for ref in refs if _hashes(ref.message)]
    if hashed and mode != "FG_NONE":
        yield Difference(
            f"{hashed[0].path}.hash_bucket_size",
            "different",
            f"{len(hashed)} features hash with xxh64, seed 0, over UTF-8; pyfg hashes otherwise: "
            "ids and trained tables do not carry over.",
        )
    for ref in refs:
        if ref.kind == "id_feature" and ref.message.weighted and not ref.message.use_weight:
            yield Difference(
                f"{ref.path}.weighted",
                "different",
                "Weights are read and dropped without use_weight, as in TorchEasyRec since it has "
                "that field; before, it multiplied by them in training, and not in exports.",
            )
    if mode in ("FG_NORMAL", "FG_DAG"):
        yield Difference(
            "data_config.fg_mode",
            "different",
            "One vectorised engine for FG_NORMAL and FG_DAG; pyfg is not used.",
        )
    timed = {
        name
        for group in groups_of(config)
        if group.name.endswith(("_timestamp", "_action"))
        for name in group.feature_names
    }
    for ref in refs:
        if ref.name in timed and ref.kind == "raw_feature":
            yield Difference(
                ref.path,
                "different",
                "Integers stay int64; float32, as there, has steps of 128 s at today's epoch.",
            )


def _hashes(message: Message) -> bool:
    known = "hash_bucket_size" in message.DESCRIPTOR.fields_by_name
    return known and message.hash_bucket_size > 0


def _training(config: Message) -> Iterator[Difference]:
    train = config.train_config
    if config.data_config.shuffle:
        yield Difference(
            "data_config.shuffle",
            "different",
            "Rows are shuffled, anew in each epoch; there whole batches are, in file order.",
        )
    if train.gradient_accumulation_steps > 1:
        yield Difference(
            "train_config.gradient_accumulation_steps",
            "different",
            "Tables are updated once a step; there once for each micro-batch.",
        )
    if train.fine_tune_checkpoint:
        yield Difference(
            "train_config.fine_tune_checkpoint",
            "different",
            "Checkpoints of TorchEasyRec cannot be read.",
        )
    if not config.model_config.HasField("kernel"):
        yield Difference(
            "model_config.kernel",
            "different",
            "Unset means AUTO, the fastest that runs; there PYTORCH.",
        )
    if config.HasField("export_config"):
        yield Difference(
            "export_config",
            "different",
            "Packages hold safetensors and AOTInductor or rebuilt graphs; there is no TorchScript.",
        )


def _by_message(path: str, message: Message) -> Iterator[Difference]:
    name = message.DESCRIPTOR.name
    if name == "AUC" and not message.thresholds:
        text = "Exact, from all scores; there 200 bins. Set thresholds: 200 to compare."
        yield Difference(path, "different", text)
    if name == "STU" and message.max_attn_len and message.window_keeps_contextual:
        text = "The contextual prefix stays visible; there late tokens lose it."
        yield Difference(join(path, "max_attn_len"), "different", text)
    if name == "STU" and (message.sla_k1 or message.sla_k2):
        text = "Candidates see themselves beside the history; there the history alone."
        yield Difference(join(path, "sla_k1" if message.sla_k1 else "sla_k2"), "different", text)
    if name == "GRTimestampLayerNormPostprocessor":
        yield Difference(path, "different", "Periods use pi; there 3.14.")
    if name == "GRSimpleActionEncoder" and message.HasField("embedding_init_std"):
        text = "Honoured; there the value is dropped and 0.1 taken."
        yield Difference(join(path, "embedding_init_std"), "different", text)
    if name == "XAUC" and not message.in_batch:
        text = "Every pair is counted; none are sampled."
        yield Difference(path, "different", text)


def _additions(message: Message, path: str = "") -> Iterator[Difference]:
    """Fields and enum values that TorchEasyRec does not know; nothing below such a field."""
    for field, value in message.ListFields():
        here = join(path, field.name)
        if field.number in _OURS and field.name not in _THEIRS:
            yield Difference(here, "addition", "TorchEasyRec has no such field.")
        elif field.enum_type is not None and not field.is_repeated and value in _OURS:
            shown = field.enum_type.values_by_number[value].name
            yield Difference(here, "addition", f"TorchEasyRec has no value {shown}.")
        elif is_message(field) and not field.message_type.GetOptions().map_entry:
            items = value if field.is_repeated else [value]
            for index, item in enumerate(items):
                yield from _additions(item, f"{here}[{index}]" if field.is_repeated else here)


def table(found: list[Difference]) -> str:
    """The differences as aligned text, refusals first."""
    order = ("refused", "replaced", "different", "addition")
    rows = sorted(found, key=lambda row: order.index(row.status))
    return "\n".join(f"{row.status:<10} {row.path}\n{'':<10} {row.text}" for row in rows)
