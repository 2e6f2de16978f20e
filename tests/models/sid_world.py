# SPDX-License-Identifier: Apache-2.0
"""Tokenizers from text, and items that have something to tell apart."""

from __future__ import annotations

import torch
from google.protobuf import text_format
from torch import Tensor

from tzgen.models.base import MODELS, Model
from tzgen.protos.model_pb2 import ModelConfig

GROUP = 'feature_groups { group_name: "deep" feature_names: "x" group_type: DEEP }'


def model_config(text: str, groups: str = GROUP) -> ModelConfig:
    return text_format.Parse(f"{groups} {text}", ModelConfig())


def tokenizer(text: str, widths: dict[str, tuple[int, ...]], groups: str = GROUP) -> Model:
    """The model of `text`; raises on anything that its own check finds."""
    config = model_config(text, groups)
    kind = config.WhichOneof("model")
    problems = MODELS[kind].check(config, widths)
    assert problems == [], problems
    torch.manual_seed(0)
    return MODELS[kind](getattr(config, kind), widths=widths, tasks=(), kernel="PYTORCH")


def problems_of(text: str, widths: dict[str, tuple[int, ...]], groups: str = GROUP) -> list[str]:
    config = model_config(text, groups)
    found = MODELS[config.WhichOneof("model")].check(config, widths)
    return [str(problem) for problem in found]


def items(n: int = 300, dim: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = 3.0 * torch.randn(12, dim, generator=generator)
    chosen = torch.randint(12, (n,), generator=generator)
    return centres[chosen] + 0.3 * torch.randn(n, dim, generator=generator)
