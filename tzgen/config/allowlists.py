# SPDX-License-Identifier: Apache-2.0
"""Names that a config may call: activations, initial weights, and words of closed fields.

Plain data and a small parser; nothing is ever evaluated. Layers above resolve the names to torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tzgen.config.schema import suggestion
from tzgen.errors import UserError


@dataclass(frozen=True)
class Arity:
    """Parameter names in positional order, and how many of them have no default."""

    names: tuple[str, ...] = ()
    required: int = 0


@dataclass(frozen=True)
class Call:
    """A parsed name with keyword arguments, e.g. Call("uniform_", {"a": -0.01, "b": 0.01})."""

    name: str
    arguments: Mapping[str, float]


# torch.nn modules without shape, and Dice (Deep Interest Network), which the modules layer has.
ACTIVATIONS: Mapping[str, Arity] = MappingProxyType(
    {
        "CELU": Arity(("alpha",)),
        "Dice": Arity(("epsilon",)),
        "ELU": Arity(("alpha",)),
        "GELU": Arity(),
        "Hardsigmoid": Arity(),
        "Hardswish": Arity(),
        "Hardtanh": Arity(("min_val", "max_val")),
        "Identity": Arity(),
        "LeakyReLU": Arity(("negative_slope",)),
        "LogSigmoid": Arity(),
        "Mish": Arity(),
        "PReLU": Arity(("num_parameters", "init")),
        "ReLU": Arity(),
        "ReLU6": Arity(),
        "SELU": Arity(),
        "SiLU": Arity(),
        "Sigmoid": Arity(),
        "Softplus": Arity(("beta", "threshold")),
        "Softsign": Arity(),
        "Tanh": Arity(),
    }
)

# torch.nn.init functions that fill a table [rows, embedding_dim].
INITIALIZERS: Mapping[str, Arity] = MappingProxyType(
    {
        "constant_": Arity(("val",), required=1),
        "kaiming_normal_": Arity(("a",)),
        "kaiming_uniform_": Arity(("a",)),
        "normal_": Arity(("mean", "std")),
        "ones_": Arity(),
        "trunc_normal_": Arity(("mean", "std", "a", "b")),
        "uniform_": Arity(("a", "b")),
        "xavier_normal_": Arity(("gain",)),
        "xavier_uniform_": Arity(("gain",)),
        "zeros_": Arity(),
    }
)

_PREFIXES = (
    "torch.nn.init.",
    "nn.init.",
    "init.",
    "torch.nn.",
    "nn.",
    "torch.",
    "tzrec.modules.activation.",
)
_POOLING = ("sum", "mean")

# Message.field, or *.field for every message that has it -> the words it takes.
CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "*.pooling": _POOLING,
        "*.data_type": ("FP32", "FP16"),
        "PoolingEncoder.pooling_type": _POOLING,
        "GRPositionalEncoder.time_bucket_fn": ("sqrt", "log"),
        "LookupFeature.combiner": ("sum", "mean", "min", "max", "count"),
        "OverlapFeature.method": (
            "query_common_ratio",
            "title_common_ratio",
            "is_contain",
            "is_equal",
        ),
        "TokenizeFeature.tokenizer_type": ("bpe", "sentencepiece"),
        "MulticlassAUC.average": ("macro", "weighted"),
        "GradClipping.clipping_type": ("none", "norm", "value"),
        "TrainConfig.mixed_precision": ("", "BF16", "FP16"),
        "ExportConfig.mixed_precision": ("", "BF16", "FP16"),
        "ExportConfig.exporter_type": ("latest", "best"),
        "TrainConfig.tensorboard_summaries": (
            "loss",
            "learning_rate",
            "parameter",
            "global_gradient_norm",
            "gradient_norm",
            "gradient",
        ),
        "ParameterConstraints.sharding_types": (
            "data_parallel",
            "table_wise",
            "column_wise",
            "row_wise",
            "table_row_wise",
            "table_column_wise",
            "grid_shard",
        ),
        "ParameterConstraints.compute_kernels": (
            "dense",
            "fused",
            "fused_uvm",
            "fused_uvm_caching",
            "key_value",
        ),
    }
)

_CALL = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def parse_activation(text: str) -> Call | None:
    """ "nn.ReLU", "ReLU", "nn.LeakyReLU(0.1)", "Dice"; None for "" (no activation)."""
    return _parse(text, ACTIVATIONS, "activation") if text.strip() else None


def parse_init_fn(text: str) -> Call:
    """ "nn.init.uniform_,a=-0.01,b=0.01", "nn.init.uniform_(a=-0.01, b=0.01)", "normal_,0,0.02"."""
    return _parse(text, INITIALIZERS, "init_fn")


def choices_for(message: str, field: str) -> tuple[str, ...] | None:
    """The words that a string field takes, or None where it is free."""
    return CHOICES.get(f"{message}.{field}", CHOICES.get(f"*.{field}"))


def _parse(text: str, known: Mapping[str, Arity], what: str) -> Call:
    matched = _CALL.fullmatch(text)
    if matched is None:
        raise UserError(f"{what} {text!r}: expected a name. {suggestion('', known)}")
    name = _bare(matched[1])
    if name not in known:
        raise UserError(f"{what} {text!r}: unknown name {matched[1]!r}. {suggestion(name, known)}")
    rest = matched[2]
    if rest.startswith("(") and rest.endswith(")"):
        rest = rest[1:-1]
    elif rest.startswith(","):
        rest = rest[1:]
    elif rest:
        raise UserError(f"{what} {text!r}: cannot read {rest!r}; write {name}(a=1) or {name},a=1.")
    return Call(name, _arguments(text, rest, known[name], what))


def _bare(name: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _arguments(text: str, rest: str, arity: Arity, what: str) -> dict[str, float]:
    found: dict[str, float] = {}
    parts: Iterable[str] = [part.strip() for part in rest.split(",")] if rest.strip() else []
    for position, part in enumerate(parts):
        key, equals, value = (piece.strip() for piece in part.rpartition("="))
        if not equals:
            if position >= len(arity.names):
                raise UserError(f"{what} {text!r}: at most {len(arity.names)} arguments.")
            key = arity.names[position]
        if key not in arity.names:
            raise UserError(f"{what} {text!r}: no argument {key!r}. {suggestion(key, arity.names)}")
        if key in found:
            raise UserError(f"{what} {text!r}: {key} is given twice.")
        if not _NUMBER.fullmatch(value):
            raise UserError(f"{what} {text!r}: {key} is {value!r}; expected a number.")
        found[key] = float(value)
    missing = [name for name in arity.names[: arity.required] if name not in found]
    if missing:
        raise UserError(f"{what} {text!r}: {', '.join(missing)} is missing.")
    return found
