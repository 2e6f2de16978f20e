# SPDX-License-Identifier: Apache-2.0
"""FP16 tables, shared by history, candidates and bags: the torchrec engine trains them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from embedding_world import FEATURES, GROUPS, FakeFeature, make_batch, parse_groups
from torch import Tensor, nn

from tzgen.data.batch import Batch, Ragged
from tzgen.embeddings import EmbeddingGroup, OptimizerSpec, sparse_optimizer

pytest.importorskip("torchrec", reason="the torchrec engine needs torchrec and fbgemm")

from tzgen.embeddings.sharding import ensure_process_group, gather_tables, shard

CPU = torch.device("cpu")


class Squares(nn.Module):
    """Embeddings, and a loss of all groups."""

    def __init__(self, features: tuple[FakeFeature, ...], engine: str) -> None:
        super().__init__()
        torch.manual_seed(7)  # the encoders of both engines start alike
        groups = parse_groups(GROUPS)
        self.embeddings = EmbeddingGroup(features, groups, engine=engine, seed=3)

    def forward(self, batch: Batch) -> Tensor:
        total = torch.zeros(())
        for value in self.embeddings(batch).values():
            values = value.values if isinstance(value, Ragged) else value
            if values.is_floating_point():
                total = total + values.square().mean()
        return total


def halved(feature: FakeFeature) -> FakeFeature:
    table = feature.table
    return feature if table is None else replace(feature, table=replace(table, data_type="FP16"))


@pytest.mark.parametrize(("rule", "lr"), [("sgd", 1.0), ("adagrad", 0.1), ("rowwise_adagrad", 0.1)])
def test_torchrec_trains_them_as_the_local_engine_trains_fp32(rule: str, lr: float) -> None:
    mine = not dist.is_initialized()
    ensure_process_group(CPU)
    spec = OptimizerSpec(rule, lr)
    local = Squares(FEATURES, "local")
    sparse_optimizer(local, spec)
    inner = Squares(tuple(halved(feature) for feature in FEATURES), "torchrec")
    half = shard(inner, device=CPU, optimizer=spec)
    parse = inner.embeddings.attach_kjts(lambda rows, source: rows)
    start = {name: table.clone() for name, table in gather_tables(local).items()}
    for seed in range(3):
        batch = make_batch([3, 0, 5, 2], [1, 2, 3, 4], seed=seed)
        local(batch).backward()
        half(parse(batch, batch.source)).backward()
    found, expected = gather_tables(half), gather_tables(local)
    assert found.keys() == expected.keys()
    for name, table in found.items():
        assert table.dtype == torch.float16
        torch.testing.assert_close(table.float(), expected[name], atol=4e-3, rtol=4e-3)
    moved = (found["item_emb"].float() - start["item_emb"]).abs().max()
    assert float(moved) > 4e-2
    if mine:
        dist.destroy_process_group()
