# SPDX-License-Identifier: Apache-2.0
"""nn modules of a plan's encoders: of numbers (autodis, mlp) and of sequence groups (din, ...)."""

from __future__ import annotations

import torch
from torch import nn

from tzgen.config.options import options
from tzgen.embeddings.plan import Encoder, Group
from tzgen.features.tables import DenseEncoder
from tzgen.modules.dense_embedding import AutoDis, LinearEmbedding
from tzgen.modules.mlp import MLP, MLPOptions
from tzgen.modules.sequence_encoders import (
    DinEncoder,
    MultiWindowDinEncoder,
    PoolingEncoder,
    SelfAttentionEncoder,
    SequenceEncoder,
    SimpleAttention,
)
from tzgen.protos import module_pb2


def dense_encoder(spec: DenseEncoder, value_dim: int, device: torch.device | None) -> nn.Module:
    """[rows, value_dim] -> [rows, embedding_dim]."""
    if spec.kind == "mlp":
        return LinearEmbedding(value_dim=value_dim, embedding_dim=spec.embedding_dim, device=device)
    return AutoDis(
        embedding_dim=spec.embedding_dim,
        num_channels=spec.num_channels,
        temperature=spec.temperature,
        keep_prob=spec.keep_prob,
        device=device,
    )


def sequence_encoder(encoder: Encoder, group: Group) -> SequenceEncoder:
    """The encoder of `group`, one of plan.ENCODERS."""
    message = encoder.message
    steps = sum(column.width for column in group.columns)
    query = sum(column.width for column in group.query)
    if encoder.kind == "pooling_encoder":
        return PoolingEncoder(
            sequence_dim=steps,
            pooling_type=message.pooling_type,
            max_seq_length=message.max_seq_length,
        )
    if encoder.kind == "self_attention_encoder":
        return SelfAttentionEncoder(
            sequence_dim=steps,
            multihead_attn_dim=message.multihead_attn_dim,
            num_heads=message.num_heads,
            dropout=message.dropout,
            max_seq_length=message.max_seq_length,
        )
    if encoder.kind == "simple_attention":
        return SimpleAttention(
            sequence_dim=steps, query_dim=query, max_seq_length=message.max_seq_length
        )
    if encoder.kind == "din_encoder":
        return DinEncoder(
            sequence_dim=steps,
            query_dim=query,
            scorer=scorer(4 * steps, message.attn_mlp),
            max_seq_length=message.max_seq_length,
        )
    return MultiWindowDinEncoder(
        sequence_dim=steps,
        query_dim=query,
        scorer=scorer(3 * steps, message.attn_mlp),
        windows_len=tuple(message.windows_len),
    )


def scorer(inputs: int, message: module_pb2.MLP) -> nn.Module:
    """An MLP and one Linear: [pairs, inputs] -> [pairs, 1]."""
    mlp = MLP.from_options(inputs, options(MLPOptions, message))
    return nn.Sequential(mlp, nn.Linear(mlp.output_dim, 1))
