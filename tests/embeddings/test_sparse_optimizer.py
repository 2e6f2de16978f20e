# SPDX-License-Identifier: Apache-2.0
"""Update rules against torch's and TorchRec's optimizers on dense tables, and the local handle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from embedding_world import FEATURES, GROUPS, make_batch, parse_groups
from torch import Tensor, nn

from tzgen.data.batch import Ragged
from tzgen.embeddings import EmbeddingGroup, LocalTables, OptimizerSpec, sparse_optimizer
from tzgen.embeddings.optimizer_spec import STATES, check_optimizer, optimizer_spec
from tzgen.embeddings.sparse_updates import state_shapes, update
from tzgen.errors import UserError
from tzgen.protos.optimizer_pb2 import SparseOptimizer as Message

LR = 0.1


def run(spec: OptimizerSpec, weight: Tensor, grads: list[Tensor]) -> Tensor:
    """The rule on all rows, step by step."""
    shapes = state_shapes(spec, *weight.shape)
    state = [torch.full(s, spec.initial_accumulator_value) for s in shapes.values()]
    for step, grad in enumerate(grads, 1):
        weight, *state = update(spec, LR, step, weight, grad, tuple(state))
    return weight


def torch_run(
    make: Callable[[list[Tensor]], torch.optim.Optimizer], weight: Tensor, grads: list[Tensor]
) -> Tensor:
    parameter = nn.Parameter(weight.clone())
    optimizer = make([parameter])
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach()


CASES: dict[str, tuple[OptimizerSpec, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "sgd": (OptimizerSpec("sgd", LR), lambda p: torch.optim.SGD(p, lr=LR)),
    "adagrad": (
        OptimizerSpec("adagrad", LR, initial_accumulator_value=0.1),
        lambda p: torch.optim.Adagrad(p, lr=LR, eps=1e-8, initial_accumulator_value=0.1),
    ),
    "adam": (OptimizerSpec("adam", LR), lambda p: torch.optim.Adam(p, lr=LR, eps=1e-8)),
    "adam with decay": (
        OptimizerSpec("adam", LR, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, lr=LR, eps=1e-8, weight_decay=0.3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rules_equal_torch_when_every_row_is_touched(name: str) -> None:
    spec, make = CASES[name]
    weight, grads = torch.randn(5, 4), [torch.randn(5, 4) for _ in range(4)]
    want = torch_run(make, weight, grads)
    # AdamW decays before the step, fbgemm's Adam after it: equal to first order in lr
    tolerance = 2e-2 if spec.weight_decay else 1e-6
    torch.testing.assert_close(run(spec, weight, grads), want, atol=tolerance, rtol=0)


def test_rowwise_adagrad_equals_torchrec() -> None:
    rowwise = pytest.importorskip("torchrec.optim.rowwise_adagrad").RowWiseAdagrad
    weight, grads = torch.randn(5, 4), [torch.randn(5, 4) for _ in range(4)]
    want = torch_run(lambda p: rowwise(p, lr=LR, eps=1e-8), weight, grads)
    torch.testing.assert_close(run(OptimizerSpec("rowwise_adagrad", LR), weight, grads), want)


@pytest.mark.parametrize("mode", ["L2", "DECOUPLE"])
def test_rowwise_adagrad_decay_by_hand(mode: str) -> None:
    spec = OptimizerSpec("rowwise_adagrad", LR, weight_decay=0.5, weight_decay_mode=mode)
    weight, grad = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    if mode == "L2":  # gradient [2, 1], mean square 2.5
        want = [2.0 - LR * 2 / 2.5**0.5, -LR / 2.5**0.5]
    else:  # mean square 1, weights shrink by 1 - 0.05 first
        want = [2.0 * 0.95 - LR, -LR]
    torch.testing.assert_close(run(spec, weight, [grad]), torch.tensor([want]))


def test_partial_rowwise_adam_first_step_by_hand() -> None:
    # unbiased: m = g, v = mean(g^2) = 12.5; the step is g / sqrt(12.5)
    weight, grad = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    got = run(OptimizerSpec("partial_rowwise_adam", LR), weight, [grad])
    torch.testing.assert_close(got, -LR * grad / 12.5**0.5)


@pytest.mark.parametrize("name", ["lamb", "partial_rowwise_lamb"])
def test_lamb_moves_by_lr_times_the_weight_norm(name: str) -> None:
    weight, grad = torch.randn(3, 4), torch.randn(3, 4)
    got = run(OptimizerSpec(name, LR), weight, [grad])
    torch.testing.assert_close((got - weight).norm(dim=1), LR * weight.norm(dim=1))
    assert torch.equal(run(OptimizerSpec(name, LR), weight, [torch.zeros(3, 4)]), weight)


def test_lars_keeps_momentum() -> None:
    spec = OptimizerSpec("lars_sgd", LR, momentum=0.5)
    weight, grad = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    once = run(spec, weight, [grad])
    move = LR * 1e-3 * 5 / 2 * grad
    torch.testing.assert_close(once, weight - move)
    twice = run(spec, weight, [grad, torch.zeros(1, 2)])
    torch.testing.assert_close(twice, once - 0.5 * move)


def local() -> EmbeddingGroup:
    torch.manual_seed(0)
    return EmbeddingGroup(FEATURES, parse_groups(GROUPS), engine="local", seed=3)


def loss_of(group: EmbeddingGroup, seed: int) -> Tensor:
    got = group(make_batch([3, 0, 2], [1, 2, 0], seed=seed))
    values = [v.values if isinstance(v, Ragged) else v for v in got.values()]
    return torch.stack([v.square().sum() for v in values if v.is_floating_point()]).sum()


@pytest.mark.parametrize("name", STATES)
def test_hooks_equal_the_rule_on_dense_gradients(name: str) -> None:
    spec = OptimizerSpec(name, LR, weight_decay_mode="L2", initial_accumulator_value=0.0)
    fused, plain = local(), local()
    handle = sparse_optimizer(fused, spec)
    states: dict[str, list[Tensor]] = {}
    for step in range(1, 4):
        loss_of(fused, step).backward()
        loss_of(plain, step).backward()
        assert isinstance(plain.tables, LocalTables)
        for table, weight in plain.tables.weights.items():
            if weight.grad is None:
                continue
            grad, weight.grad = weight.grad.coalesce(), None
            touched, values = grad.indices()[0], grad.values()
            shapes = state_shapes(spec, *weight.shape).values()
            state = states.setdefault(table, [torch.zeros(s) for s in shapes])
            old = tuple(s[touched] for s in state)
            new, *rest = update(spec, LR, step, weight.detach()[touched], values, old)
            with torch.no_grad():
                weight[touched] = new
            for s, r in zip(state, rest, strict=True):
                s[touched] = r
    for (table, got), (_, want) in zip(
        fused.tables.named_weights(), plain.tables.named_weights(), strict=True
    ):
        torch.testing.assert_close(got, want, msg=lambda text, t=table: f"{t}: {text}")
    assert all(p.grad is None for p in fused.tables.parameters()), "the hooks consume gradients"
    assert torch.equal(
        dict(fused.tables.named_weights())["city_emb"],
        dict(local().tables.named_weights())["city_emb"],
    )
    for table, state in states.items():
        torch.testing.assert_close(
            [handle.state()[f"sparse.{table}.{k}"] for k in state_shapes(spec, 1, 1)], state
        )


def test_rate_state_and_resume() -> None:
    spec = OptimizerSpec("adam", LR)
    first = local()
    handle = sparse_optimizer(first, spec)
    handle.set_lr(0.01)
    assert handle.lr == 0.01
    loss_of(first, 1).backward()
    saved = {name: tensor.clone() for name, tensor in handle.state().items()}
    assert saved["sparse.item_emb.step"] == 1
    second = local()
    second.load_state_dict(first.state_dict())
    resumed = sparse_optimizer(second, spec)
    resumed.load(saved)
    resumed.set_lr(0.01)
    loss_of(first, 2).backward()
    loss_of(second, 2).backward()
    for (name, got), (_, want) in zip(
        second.tables.named_weights(), first.tables.named_weights(), strict=True
    ):
        assert torch.equal(got, want), name


def test_clipping_bounds_each_value_of_the_gradient() -> None:
    group = local()
    sparse_optimizer(group, OptimizerSpec("sgd", 1.0, max_gradient=0.25))
    before = dict(local().tables.named_weights())
    assert isinstance(group.tables, LocalTables)
    (1e3 * loss_of(group, 1)).backward()
    batch = make_batch([3, 0, 2], [1, 2, 0], seed=1)
    uses = torch.bincount(batch.ids["user_id"].values, minlength=30)
    moved = (group.tables.weights["user_emb_wide"].detach() - before["user_emb_wide"]).abs()
    torch.testing.assert_close(moved.amax(1), 0.25 * uses.float())


def test_half_tables_are_not_trained_locally() -> None:
    assert FEATURES[0].table is not None
    half = replace(FEATURES[0], table=replace(FEATURES[0].table, data_type="FP16"))
    text = 'feature_groups { group_name: "deep" feature_names: ["user_id"] }'
    group = EmbeddingGroup([half], parse_groups(text), engine="local")
    with pytest.raises(UserError, match="FP16"):
        sparse_optimizer(group, OptimizerSpec("sgd", LR))


def test_spec_from_config() -> None:
    message = Message()
    message.rowwise_adagrad_optimizer.lr = 0.5
    message.rowwise_adagrad_optimizer.weight_decay = 0.1
    message.rowwise_adagrad_optimizer.weight_decay_mode = 2
    message.rowwise_adagrad_optimizer.initial_accumulator_value = 0.25
    message.rowwise_adagrad_optimizer.gradient_clipping = True
    spec = optimizer_spec(message)
    assert spec == OptimizerSpec(
        "rowwise_adagrad",
        0.5,
        weight_decay=spec.weight_decay,
        weight_decay_mode="DECOUPLE",
        max_gradient=1.0,
        initial_accumulator_value=0.25,
    )
    assert abs(spec.weight_decay - 0.1) < 1e-7
    plain = Message()
    plain.adam_optimizer.beta1 = 0.5
    assert optimizer_spec(plain).beta1 == 0.5 and optimizer_spec(plain).max_gradient is None
    assert optimizer_spec(plain).lr == pytest.approx(0.002)


@pytest.mark.parametrize("field", ["", "adadelta_optimizer", "rmsprop_optimizer", "ftrl_optimizer"])
def test_unknown_optimizers_name_what_exists(field: str) -> None:
    message = Message()
    if field:
        getattr(message, field).lr = 0.1
    with pytest.raises(UserError, match="rowwise_adagrad_optimizer"):
        optimizer_spec(message)


def test_what_an_engine_has_where() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    check_optimizer(OptimizerSpec("adam", LR), engine="torchrec", device=cuda)
    check_optimizer(OptimizerSpec("adam", LR), engine="local", device=cpu)
    with pytest.raises(
        UserError, match="sgd_optimizer, adagrad_optimizer, rowwise_adagrad_optimizer"
    ):
        check_optimizer(OptimizerSpec("adam", LR), engine="torchrec", device=cpu)
    decay = OptimizerSpec("rowwise_adagrad", LR, weight_decay=0.1, weight_decay_mode="L2")
    check_optimizer(decay, engine="torchrec", device=cuda)
    with pytest.raises(UserError, match="fbgemm ignores it on a CPU"):
        check_optimizer(decay, engine="torchrec", device=cpu)
    check_optimizer(replace(decay, weight_decay_mode="NONE"), engine="torchrec", device=cpu)
    with pytest.raises(UserError, match="could not resume"):
        check_optimizer(OptimizerSpec("lars_sgd", LR), engine="torchrec", device=cuda)
