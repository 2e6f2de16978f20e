# SPDX-License-Identifier: Apache-2.0
"""Micro-batches over one lookup give the gradients of the whole batch, and one table update."""

from __future__ import annotations

import pytest
import torch
from embedding_world import FEATURES, GROUPS, POINTWISE, make_batch, parse_groups
from torch import Tensor, nn

from tzgen.data.batch import Ragged
from tzgen.embeddings import (
    REPEAT,
    DetachedGroups,
    EmbeddingGroup,
    Groups,
    OptimizerSpec,
    sparse_optimizer,
    split_groups,
)

HISTORY, CANDIDATES = [3, 0, 2, 1, 4], [1, 2, 0, 3, 1]


def make(pointwise: bool) -> EmbeddingGroup:
    torch.manual_seed(1)
    text = POINTWISE if pointwise else GROUPS
    return EmbeddingGroup(FEATURES, parse_groups(text), engine="local", pointwise=pointwise, seed=2)


class Model(nn.Module):
    """Sums over rows and steps, so that the loss of a batch is the sum over its parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.top = nn.Linear(width, 1)

    def forward(self, groups: Groups) -> Tensor:
        loss = self.top(groups["deep"]).square().sum()
        history = groups["uih"]
        assert isinstance(history, Ragged)
        rows = torch.repeat_interleave(torch.arange(len(history.lengths)), history.lengths)
        pooled = torch.zeros(len(history.lengths), history.values.size(1))
        return loss + pooled.index_add(0, rows, history.values).square().sum()


@pytest.mark.parametrize("pointwise", [False, True])
@pytest.mark.parametrize("num_micro", [1, 2, 3, 5, 7])
def test_parts_are_the_rows_of_the_whole(pointwise: bool, num_micro: int) -> None:
    groups = make(pointwise)(make_batch(HISTORY, CANDIDATES))
    parts = split_groups(groups, num_micro)
    assert len(parts) == num_micro
    for name, whole in groups.items():
        pieces = [part[name] for part in parts]
        if isinstance(whole, Ragged):
            assert torch.equal(torch.cat([p.values for p in pieces]), whole.values)
            assert torch.equal(torch.cat([p.lengths for p in pieces]), whole.lengths)
            for piece in pieces:
                assert piece.max_len == max([0, *piece.lengths.tolist()])
                assert int(piece.lengths.sum()) == len(piece.values)
        else:
            assert torch.equal(torch.cat(pieces), whole)
    sizes = [part[REPEAT if pointwise else "deep"].size(0) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    if pointwise:
        assert all(int(part[REPEAT].sum()) == len(part["deep"]) for part in parts)


@pytest.mark.parametrize("pointwise", [False, True])
@pytest.mark.parametrize("attached", [False, True])
def test_gradients_equal_those_of_one_batch(pointwise: bool, attached: bool) -> None:
    batch = make_batch(HISTORY, CANDIDATES)
    whole, parted = make(pointwise), make(pointwise)
    torch.manual_seed(3)
    model = Model(sum(whole.widths["deep"]))
    model(whole(batch)).backward()
    want = {name: p.grad for name, p in (*whole.named_parameters(), *model.named_parameters())}
    model.zero_grad()
    detached = DetachedGroups(parted(batch), 3)
    total = torch.zeros(())
    for micro in detached.micro:
        loss = model(micro)
        loss.backward()
        total += loss.detach()
    assert all(p.grad is None for p in parted.tables.parameters())
    if attached:
        loss = detached.attach(total)
        torch.testing.assert_close(loss.detach(), total)
        loss.backward()
    else:
        detached.backward()
    got = {name: p.grad for name, p in (*parted.named_parameters(), *model.named_parameters())}
    for name, grad in want.items():
        if grad is None:
            assert got[name] is None, name
            continue
        found = got[name]
        assert found is not None, name
        dense = (found.to_dense(), grad.to_dense()) if grad.is_sparse else (found, grad)
        torch.testing.assert_close(*dense, msg=lambda text, n=name: f"{n}: {text}")


def test_tables_are_updated_once() -> None:
    group = make(False)
    spec = OptimizerSpec("adagrad", lr=0.1)
    handle = sparse_optimizer(group, spec)
    detached = DetachedGroups(group(make_batch(HISTORY, CANDIDATES)), 2)
    model = Model(sum(group.widths["deep"]))
    before = {name: weight.clone() for name, weight in group.tables.named_weights()}
    for micro in detached.micro:
        model(micro).backward()
        assert all(torch.equal(before[n], w) for n, w in group.tables.named_weights())
    detached.backward()
    reference = make(False)
    again = sparse_optimizer(reference, spec)
    model(reference(make_batch(HISTORY, CANDIDATES))).backward()
    for name, weight in reference.tables.named_weights():
        torch.testing.assert_close(dict(group.tables.named_weights())[name], weight)
    for name, state in again.state().items():
        torch.testing.assert_close(handle.state()[name], state)


def test_num_micro_is_checked() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        split_groups({}, 0)
