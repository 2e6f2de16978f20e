# SPDX-License-Identifier: Apache-2.0
"""Bitmasks to embeddings, worked by hand."""

from __future__ import annotations

import pytest
import torch
from hstu_configs import older_spellings

from tzgen.config.options import fields_match, options
from tzgen.modules.action_encoder import (
    GRActionEncoderOptions,
    GRSimpleActionEncoderOptions,
    SimpleActionEncoder,
    create_action_encoder,
)
from tzgen.protos import module_pb2

SIMPLE = GRSimpleActionEncoderOptions(2, (1, 4), (10, 60), (8, 16), 0.1)


def test_options_are_the_schema() -> None:
    simple = module_pb2.GRSimpleActionEncoder
    assert fields_match(GRSimpleActionEncoderOptions, simple.DESCRIPTOR) == []
    encoder = module_pb2.GRActionEncoder.DESCRIPTOR
    assert fields_match(GRActionEncoderOptions, encoder, older_spellings(encoder)) == []
    message = module_pb2.GRActionEncoder(
        simple_action_encoder=simple(action_embedding_dim=3, action_weights=[1, 2])
    )
    made = create_action_encoder(options(GRActionEncoderOptions, message), for_candidates=True)
    assert made.output_dim == 6 and not made.reads_watchtime


def test_every_bit_has_its_embedding() -> None:
    encoder = SimpleActionEncoder(SIMPLE, for_candidates=True)
    assert encoder.output_dim == 8 and encoder.reads_watchtime
    actions = torch.tensor([0, 1, 5, 2 | 16])
    watchtimes = torch.tensor([9.0, 10.0, 60.0, 0.0])
    a, b, c, d = encoder.embeddings
    zero = torch.zeros(2)
    want = torch.stack(
        [
            torch.cat([zero, zero, zero, zero]),
            torch.cat([a, zero, c, zero]),  # 10 s count as 8
            torch.cat([a, b, c, d]),
            torch.cat([zero, zero, zero, d]),  # bit 2 is no action here
        ]
    )
    torch.testing.assert_close(encoder(actions, watchtimes), want)


def test_the_highest_bit_is_a_bit() -> None:
    encoder = SimpleActionEncoder(
        GRSimpleActionEncoderOptions(1, (2**62,), (), (), 0.1), for_candidates=False
    )
    out = encoder(torch.tensor([2**62, -(2**63)]))
    assert out[0, 0] == encoder.embeddings[0, 0] and out[1, 0] == 0


def test_candidates_share_one_learned_vector() -> None:
    encoder = SimpleActionEncoder(SIMPLE, for_candidates=True)
    assert torch.equal(encoder.candidate(3), encoder.dummy.flatten().repeat(3, 1))
    without = SimpleActionEncoder(SIMPLE, for_candidates=False)
    assert "dummy" not in dict(without.named_parameters())
    with pytest.raises(ValueError, match="without candidates"):
        without.candidate(1)


def test_initial_std_is_honoured() -> None:
    wide = GRSimpleActionEncoderOptions(4000, (1, 2), (), (), 0.5)
    encoder = SimpleActionEncoder(wide, for_candidates=True)
    assert encoder.embeddings.std().item() == pytest.approx(0.5, rel=0.05)
    assert encoder.dummy.std().item() == pytest.approx(0.5, rel=0.05)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="need group uih_watchtime"):
        SimpleActionEncoder(SIMPLE, for_candidates=False)(torch.tensor([1]))
    with pytest.raises(ValueError, match="2 watch-time thresholds for 1"):
        SimpleActionEncoder(
            GRSimpleActionEncoderOptions(2, (1,), (1, 2), (4,), 0.1), for_candidates=False
        )
    with pytest.raises(ValueError, match="no action to encode"):
        SimpleActionEncoder(GRSimpleActionEncoderOptions(2, (), (), (), 0.1), for_candidates=False)
    with pytest.raises(ValueError, match="chooses no encoder"):
        create_action_encoder(GRActionEncoderOptions(None), for_candidates=False)
