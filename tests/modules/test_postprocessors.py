# SPDX-License-Identifier: Apache-2.0
"""Postprocessors by hand; periodic features at today's epoch, with the real pi."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tzgen.config.options import fields_match
from tzgen.modules.postprocessors import (
    GROutputPostprocessorOptions,
    GRTimestampLayerNormPostprocessorOptions,
    TimestampLayerNormPostprocessor,
    create_output_postprocessor,
)
from tzgen.protos import module_pb2

NO_TIME = torch.zeros(3, dtype=torch.int64)


def test_options_are_the_schema() -> None:
    time = module_pb2.GRTimestampLayerNormPostprocessor.DESCRIPTOR
    assert fields_match(GRTimestampLayerNormPostprocessorOptions, time) == []
    output = module_pb2.GROutputPostprocessor.DESCRIPTOR
    assert fields_match(GROutputPostprocessorOptions, output) == []


def test_l2norm_has_length_one_and_survives_zero() -> None:
    x = torch.randn(3, 4)
    x[1] = 0
    options = GROutputPostprocessorOptions(("l2norm_postprocessor", None))
    out = create_output_postprocessor(options, 4)(x, NO_TIME)
    torch.testing.assert_close(out.norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(F.cosine_similarity(out[:1], x[:1]), torch.ones(1))


def test_layernorm() -> None:
    x = torch.randn(3, 4)
    options = GROutputPostprocessorOptions(("layernorm_postprocessor", None))
    torch.testing.assert_close(
        create_output_postprocessor(options, 4)(x, NO_TIME), F.layer_norm(x, (4,))
    )


def test_timestamp_features_are_exact() -> None:
    """1 750 000 000 s are hour 486111 (15 of 24) and day 20254 (3 of 7) since the epoch."""
    inner = GRTimestampLayerNormPostprocessorOptions((3600, 86400), (24, 7))
    post = TimestampLayerNormPostprocessor(inner, 4)
    x = torch.randn(1, 4)
    hour, day = 2 * math.pi * 15 / 24, 2 * math.pi * 3 / 7
    waves = torch.tensor([[math.cos(hour), math.sin(hour), math.cos(day), math.sin(day)]])
    want = F.layer_norm(post.combine(torch.cat([x, waves], 1)), (4,))
    torch.testing.assert_close(post(x, torch.tensor([1_750_000_000])), want)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="chooses nothing"):
        create_output_postprocessor(GROutputPostprocessorOptions(None), 4)
    with pytest.raises(ValueError, match="1 time_duration_period_units for 2"):
        TimestampLayerNormPostprocessor(GRTimestampLayerNormPostprocessorOptions((1,), (1, 2)), 4)
