# SPDX-License-Identifier: Apache-2.0
"""The whole model through torch.export: dynamic rows, histories and candidates, down to 1 and 0."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from dense_hstu import User, batch_events, random_users
from hstu_configs import VARIANTS
from hstu_model import config, groups, model, people
from torch import Tensor, nn

from tzgen.embeddings import Ragged

EXPORTED = [
    *("production", "interleaved", "mtgr", "paper", "parameterized"),
    *("truncated interleaved", "truncated semi-local"),
]


class Graph(nn.Module):
    """The model over flat tensors, each sequence as values and lengths."""

    def __init__(self, built: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.built, self.names = built, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        given: dict[str, Tensor | Ragged] = {"contextual": next(rest)}
        for name in self.names:
            given[name] = Ragged(next(rest), next(rest), 4096)
        return tuple(self.built(given).logits.values())


def flat(users: list[User]) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    given = groups(users)
    ragged = {name: value for name, value in given.items() if isinstance(value, Ragged)}
    # clones: inputs that share memory would be tied together by the tracer
    tensors = [x.clone() for value in ragged.values() for x in (value.values, value.lengths)]
    return tuple(ragged), (given["contextual"], *tensors)


@cache
def exported(name: str) -> tuple[Graph, torch.export.ExportedProgram]:
    """A variant of the model, eager and exported with every size dynamic."""
    names, example = flat(people())
    graph = Graph(model(config(VARIANTS[name])).eval(), names)
    shapes = {"tensors": tuple({0: torch.export.Dim.AUTO} for _ in example)}
    with torch.no_grad():
        program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
    return graph, program


@pytest.mark.parametrize("name", EXPORTED)
def test_exports_with_everything_dynamic(name: str) -> None:
    graph, program = exported(name)
    attentions = [
        node for node in program.graph.nodes if str(node.target) == "tzgen.hstu_attention.default"
    ]
    assert len(attentions) == 2, "one node a layer"
    run = program.module()
    for sizes in ([(3, 2), (7, 5)], [(40, 9), (0, 3), (300, 1)]):
        _, other = flat(people(sizes, seed=8))
        with torch.no_grad():
            for got, want in zip(run(*other), graph(*other), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "sizes",
    [[(6, 3)], [(0, 1), (0, 2)], [(1, 1)], [(0, 1)]],
    ids=["one user", "no history", "ones", "one candidate alone"],
)
@pytest.mark.parametrize("name", ["production", "truncated semi-local"])
def test_exported_graph_takes_one_row_and_empty_histories(
    name: str, sizes: list[tuple[int, int]]
) -> None:
    graph, program = exported(name)
    with torch.no_grad():
        _, other = flat(people(sizes, seed=9))
        for got, want in zip(program.module()(*other), graph(*other), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_forward_asks_the_device_for_nothing() -> None:
    """No .item() and no data-dependent shape: the model runs on fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    built = model(config(VARIANTS["interleaved"]))
    users = random_users([(3, 2), (4, 1)], candidate_dim=8, contextual=(2, 4))
    with FakeTensorMode(allow_non_fake_inputs=True):
        out = built.transducer(batch_events(users))
    assert out.shape == (3, 8)
