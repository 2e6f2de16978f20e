# SPDX-License-Identifier: Apache-2.0
"""Messages become dataclasses by field name, with the schema's defaults and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tzgen.config import fields_match, options, parse_pipeline
from tzgen.protos import feature_pb2, module_pb2, optimizer_pb2, seq_encoder_pb2

from .sample import DLRM_HSTU


@dataclass(frozen=True)
class MLP:
    hidden_units: tuple[int, ...]
    dropout_ratio: tuple[float, ...]
    activation: str
    use_bn: bool
    bias: bool
    use_ln: bool


@dataclass(frozen=True)
class DINEncoder:
    name: str | None
    input: str | None
    attn_mlp: MLP | None
    max_seq_length: int


@dataclass(frozen=True)
class PoolingEncoderOptions:
    input: str | None
    pooling_type: str


@dataclass(frozen=True)
class SeqEncoderConfig:
    seq_module: tuple[str, DINEncoder | PoolingEncoderOptions] | None


@dataclass(frozen=True)
class Adagrad:
    lr: float
    weight_decay_mode: str


@dataclass(frozen=True)
class Networks:
    network_name: str | None
    task_expert_net: MLP
    share_num: int | None


@dataclass(frozen=True)
class Id:
    vocab_dict: dict[str, int]
    vocab_list: tuple[str, ...]
    embedding_constraints: Any


def test_present_default_absent() -> None:
    message = module_pb2.MLP(hidden_units=[4, 2], use_ln=True)
    assert options(MLP, message) == MLP((4, 2), (), "nn.ReLU", False, True, True)
    network = module_pb2.ExtractionNetwork(task_expert_net=message)
    found = options(Networks, network)
    assert found.network_name is None  # no default in the schema
    assert found.share_num is None
    assert found.task_expert_net.use_ln is True
    network.share_num = 0
    assert options(Networks, network).share_num == 0  # present, though zero


def test_enum_is_its_name() -> None:
    message = optimizer_pb2.FusedRowWiseAdagradOptimizer(lr=0.5, weight_decay_mode=2)
    assert options(Adagrad, message) == Adagrad(0.5, "DECOUPLE")
    assert (
        options(Adagrad, optimizer_pb2.FusedRowWiseAdagradOptimizer()).weight_decay_mode == "NONE"
    )


def test_oneof_takes_the_dataclass_of_the_message_type() -> None:
    message = seq_encoder_pb2.SeqEncoderConfig()
    assert options(SeqEncoderConfig, message).seq_module is None
    message.din_encoder.attn_mlp.hidden_units.append(3)
    name, din = options(SeqEncoderConfig, message).seq_module or ("", None)
    assert name == "din_encoder"
    assert isinstance(din, DINEncoder)
    assert din.attn_mlp == MLP((3,), (), "nn.ReLU", False, True, False)
    message.pooling_encoder.input = "g"
    assert options(SeqEncoderConfig, message).seq_module == (
        "pooling_encoder",
        PoolingEncoderOptions("g", "mean"),
    )
    message.simple_attention.SetInParent()  # no dataclass of that name: the message itself
    name, raw = options(SeqEncoderConfig, message).seq_module or ("", None)
    assert (name, raw) == ("simple_attention", seq_encoder_pb2.SimpleAttention())


def test_maps_lists_and_raw_messages() -> None:
    message = feature_pb2.IdFeature(vocab_dict={"a": 2}, vocab_list=["x", "y"])
    found = options(Id, message)
    assert found.vocab_dict == {"a": 2}
    assert found.vocab_list == ("x", "y")
    assert found.embedding_constraints is None
    message.embedding_constraints.sharding_types.append("row_wise")
    assert options(Id, message).embedding_constraints.sharding_types == ["row_wise"]


@dataclass(frozen=True)
class Positions:
    num_position_buckets: int
    time_bucket_fn: str
    max_seq_len: int


def test_given_fields_are_those_that_the_message_lacks() -> None:
    hstu = parse_pipeline(DLRM_HSTU).model_config.dlrm_hstu.hstu
    assert options(Positions, hstu.positional_encoder, max_seq_len=9) == Positions(128, "sqrt", 9)
    with pytest.raises(ValueError, match="max_seq_len is no field of GRPositionalEncoder"):
        options(Positions, hstu.positional_encoder)
    with pytest.raises(ValueError, match="given twice"):
        options(Positions, hstu.positional_encoder, max_seq_len=9, time_bucket_fn="log")
    with pytest.raises(ValueError, match=r"no fields \['typo'\]"):
        options(Positions, hstu.positional_encoder, max_seq_len=9, typo=1)


def test_fields_match_reports_every_disagreement() -> None:
    mlp = module_pb2.MLP.DESCRIPTOR
    assert fields_match(MLP, mlp) == []
    assert fields_match(SeqEncoderConfig, seq_encoder_pb2.SeqEncoderConfig.DESCRIPTOR) == []
    pooling = seq_encoder_pb2.PoolingEncoder.DESCRIPTOR
    assert (
        fields_match(PoolingEncoderOptions, pooling, unsupported=("name", "max_seq_length")) == []
    )
    assert fields_match(PoolingEncoderOptions, pooling) == [
        "PoolingEncoderOptions lacks max_seq_length",
        "PoolingEncoderOptions lacks name",
    ]
    positions = module_pb2.GRPositionalEncoder.DESCRIPTOR
    rest = ("num_time_buckets", "use_time_encoding", "time_bucket_increments")
    assert fields_match(Positions, positions, rest, given=("max_seq_len",)) == []
    assert fields_match(Positions, positions, rest) == [
        "Positions.max_seq_len is no field of GRPositionalEncoder"
    ]
    assert fields_match(MLP, mlp, unsupported=("use_bn", "gone")) == [
        "use_bn is called unsupported and is used",
        "gone is called unsupported and is no field of MLP",
    ]


def test_a_class_that_is_no_dataclass_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="int is no dataclass"):
        options(int, module_pb2.MLP())
