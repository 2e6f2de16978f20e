# SPDX-License-Identifier: Apache-2.0
"""Content encoders: widths, values, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from google.protobuf import text_format

from tzgen.config.options import fields_match, options
from tzgen.modules.content_encoder import (
    ContentEncoder,
    GRContentEncoderOptions,
    GRMLPContentEncoderOptions,
    create_content_encoder,
)
from tzgen.protos import module_pb2


def make(text: str, uih_dim: int, candidate_dim: int) -> ContentEncoder:
    message = text_format.Parse(text, module_pb2.GRContentEncoder())
    made = options(GRContentEncoderOptions, message)
    return create_content_encoder(made, uih_dim=uih_dim, candidate_dim=candidate_dim)


def test_options_are_the_schema() -> None:
    for cls, message in (
        (GRContentEncoderOptions, module_pb2.GRContentEncoder),
        (GRMLPContentEncoderOptions, module_pb2.GRMLPContentEncoder),
    ):
        assert fields_match(cls, message.DESCRIPTOR) == []


def test_slice() -> None:
    encoder = make("slice_content_encoder {}", 3, 5)
    uih, candidates = torch.randn(4, 3), torch.randn(2, 5)
    left, right = encoder(uih, candidates)
    assert encoder.output_dim == 3
    assert torch.equal(left, uih) and torch.equal(right, candidates[:, :3])


def test_pad_fills_with_one_learned_vector() -> None:
    encoder = make("pad_content_encoder {}", 3, 5)
    uih, candidates = torch.randn(4, 3), torch.randn(2, 5)
    left, right = encoder(uih, candidates)
    assert encoder.output_dim == 5
    assert torch.equal(left[:, :3], uih) and torch.equal(right, candidates)
    assert torch.equal(left[:, 3:], encoder.filler.expand(4, 2))
    equal = make("pad_content_encoder {}", 3, 3)
    assert torch.equal(equal(uih, candidates[:, :3])[0], uih) and not list(equal.parameters())


def test_mlp() -> None:
    text = "mlp_content_encoder { uih_mlp { hidden_units: 4 } target_mlp { hidden_units: [6, 4] } }"
    encoder = make(text, 3, 5)
    left, right = encoder(torch.randn(7, 3), torch.randn(2, 5))
    assert (left.shape, right.shape, encoder.output_dim) == ((7, 4), (2, 4), 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slice_content_encoder {}", "is narrower: 2 < 3"),
        ("pad_content_encoder {}", "is narrower: 2 < 3"),
        (
            "mlp_content_encoder { uih_mlp { hidden_units: 4 } target_mlp { hidden_units: 5 } }",
            "different widths: 4 and 5",
        ),
        ("", "chooses nothing"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(text, 3, 2)
