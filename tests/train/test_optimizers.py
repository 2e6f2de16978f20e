# SPDX-License-Identifier: Apache-2.0
"""Dense optimizers against torch's, parts by pattern, state that survives, averages."""

from __future__ import annotations

import pytest
import torch
from google.protobuf import text_format
from torch import nn

from tzgen.errors import UserError
from tzgen.protos import optimizer_pb2, train_pb2
from tzgen.train.optimizers import Average, DenseOptimizer, clip


def message(text: str):
    return text_format.Parse(text, optimizer_pb2.DenseOptimizer())


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def train(net: nn.Module, step, count: int) -> None:
    generator = torch.Generator().manual_seed(9)
    for _ in range(count):
        net.zero_grad()
        net(torch.randn(5, 3, generator=generator)).square().mean().backward()
        step()


ADAM = "adam_optimizer { lr: 0.1 beta1: 0.8 weight_decay: 0.01 }"


@pytest.mark.parametrize(
    ("text", "twin"),
    [
        (ADAM, lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.999), weight_decay=0.01)),
        ("adamw_optimizer { lr: 0.1 }", lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0)),
        ("sgd_optimizer { lr: 0.1 }", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("adagrad_optimizer { lr: 0.1 }", lambda p: torch.optim.Adagrad(p, lr=0.1)),
        ("rmsprop_optimizer { lr: 0.1 }", lambda p: torch.optim.RMSprop(p, lr=0.1)),
        ("adadelta_optimizer { lr: 0.1 }", lambda p: torch.optim.Adadelta(p, lr=0.1, rho=0.95)),
    ],
)
def test_each_kind_is_torchs_own(text: str, twin) -> None:
    mine, theirs = model(), model()
    before = [p.detach().clone() for p in mine.parameters()]
    optimizer = DenseOptimizer(message(text), mine.named_parameters())
    train(mine, optimizer.step, 4)
    train(theirs, twin(theirs.parameters()).step, 4)
    for got, want, start in zip(mine.parameters(), theirs.parameters(), before, strict=True):
        torch.testing.assert_close(got, want)
        assert not torch.equal(got, start)


def test_first_matching_part_wins_and_keeps_its_schedule() -> None:
    text = (
        ADAM
        + r"""
      part_optimizers { sgd_optimizer { lr: 1.0 } regex_pattern: "0\\..*"
        exponential_decay_learning_rate { decay_size: 1 decay_factor: 0.5 } }
      part_optimizers { sgd_optimizer { lr: 2.0 } regex_pattern: ".*bias" }"""
    )
    optimizer = DenseOptimizer(message(text), model().named_parameters())
    assert [part.names for part in optimizer.parts] == [
        ["0.weight", "0.bias"],
        ["1.bias"],
        ["1.weight"],
    ]
    assert optimizer.set_rates(step=1, epoch=0) == pytest.approx(0.1)
    assert [p.optimizer.param_groups[0]["lr"] for p in optimizer.parts] == pytest.approx(
        [0.5, 2.0, 0.1]
    )


def test_a_pattern_without_parameters_is_refused() -> None:
    text = ADAM + 'part_optimizers { sgd_optimizer {} regex_pattern: "nothing" }'
    with pytest.raises(UserError, match="nothing"):
        DenseOptimizer(message(text), model().named_parameters())


def test_state_goes_on_as_if_never_interrupted() -> None:
    straight, resumed = model(), model()
    train(straight, DenseOptimizer(message(ADAM), straight.named_parameters()).step, 6)
    first = DenseOptimizer(message(ADAM), resumed.named_parameters())
    generator = torch.Generator().manual_seed(9)
    inputs = [torch.randn(5, 3, generator=generator) for _ in range(6)]

    def run(optimizer: DenseOptimizer, batches) -> None:
        for batch in batches:
            optimizer.zero_grad()
            resumed(batch).square().mean().backward()
            optimizer.step()

    run(first, inputs[:3])
    state = {name: value.clone() for name, value in first.state().items()}
    second = DenseOptimizer(message(ADAM), resumed.named_parameters())
    second.load(state)
    run(second, inputs[3:])
    for got, want in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(got, want)


def test_clipping() -> None:
    net = model()
    net(torch.ones(2, 3)).sum().mul(100).backward()
    norm = clip(net.parameters(), train_pb2.GradClipping(clipping_type="norm", max_gradient=0.5))
    assert norm is not None and norm > 0.5
    total = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert total == pytest.approx(0.5, rel=1e-4)
    clip(net.parameters(), train_pb2.GradClipping(clipping_type="value", max_gradient=0.01))
    assert max(p.grad.abs().max() for p in net.parameters()) <= 0.01
    with pytest.raises(UserError, match="sideways"):
        clip(net.parameters(), train_pb2.GradClipping(clipping_type="sideways"))


def test_average_follows_and_swaps() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    average = Average(0.9, {"w": weight})
    with torch.no_grad():
        weight.fill_(1.0)
    average.update()
    assert average.shadow["w"].item() == pytest.approx(0.1)
    average.swap()
    assert weight.item() == pytest.approx(0.1)
    average.swap()
    assert weight.item() == 1.0 and average.shadow["w"].item() == pytest.approx(0.1)
    with pytest.raises(UserError, match="decay"):
        Average(1.5, {"w": weight})
