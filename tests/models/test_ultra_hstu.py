# SPDX-License-Identifier: Apache-2.0
"""UltraHSTU: channels against a loop over users, one channel against DlrmHSTU, config checks."""

from __future__ import annotations

import pytest
import torch
from dense_hstu import User, dense_transducer
from google.protobuf import text_format
from hstu_configs import CUT, INTERLEAVE, hstu, preprocessor
from hstu_model import SIZES, TASKS, WIDTHS, people
from hstu_model import config as dlrm_config
from hstu_model import groups as dlrm_groups
from hstu_model import model as dlrm_model
from torch import Tensor, nn

from tzgen.config.tasks import task_specs
from tzgen.config.validate_model import model_problems
from tzgen.embeddings import Groups, Ragged
from tzgen.models.base import MODELS
from tzgen.models.hstu_options import hstu_options
from tzgen.models.ultra_hstu import UltraHSTU
from tzgen.protos import model_pb2, module_pb2, pipeline_pb2

CLICKS, VIEWS = "clicks", "long.views"
SHARED = ("contextual", "candidate", "candidate_timestamp")
PARTS = ("", "_action", "_watchtime", "_timestamp")
VIEW_SIZES = [(2, 3), (6, 2), (0, 1), (4, 0), (3, 4)]


def channels() -> list[module_pb2.HSTU]:
    """A semi-local channel with a cut and one of other width whose actions are tokens."""
    clicks = hstu("sla_k1: 2 sla_k2: 3", extra=CUT + f'name: "{CLICKS}"')
    views = hstu(inputs=preprocessor(INTERLEAVE), positions="", extra=f'name: "{VIEWS}"')
    views.stu.embedding_dim = 6
    return [clicks, views]


def config(messages: list[module_pb2.HSTU] | None = None) -> model_pb2.ModelConfig:
    made = text_format.Parse(
        f"ultra_hstu {{ max_seq_len: 24 item_embedding_hidden_dim: 7 {TASKS} }}",
        model_pb2.ModelConfig(),
    )
    made.ultra_hstu.hstu.extend(channels() if messages is None else messages)
    histories = [channel.name or "uih" for channel in made.ultra_hstu.hstu]
    for name in (*SHARED, *(f"{name}{part}" for name in histories for part in PARTS)):
        kind = model_pb2.DEEP if name == "contextual" else model_pb2.JAGGED_SEQUENCE
        made.feature_groups.add(group_name=name, group_type=kind)
    return made


def widths(made: model_pb2.ModelConfig) -> dict[str, tuple[int, ...]]:
    names = [channel.name or "uih" for channel in made.ultra_hstu.hstu]
    shared = {name: WIDTHS[name] for name in ("contextual", "candidate")}
    return {**shared, **dict.fromkeys(names, WIDTHS["uih"])}


def model(made: model_pb2.ModelConfig) -> UltraHSTU:
    torch.manual_seed(4)
    built = MODELS["ultra_hstu"](
        made.ultra_hstu, widths=widths(made), tasks=task_specs(made), kernel="PYTORCH"
    )
    assert isinstance(built, UltraHSTU)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return built.double()


def both() -> tuple[list[User], list[User]]:
    """The same users twice, with the history of each channel."""
    clicks, views = people(), people(VIEW_SIZES, seed=3)
    for one, other in zip(clicks, views, strict=True):
        other.contextual, other.candidates = one.contextual, one.candidates
        other.candidate_times = one.candidate_times
    return clicks, views


def groups(clicks: list[User], views: list[User]) -> Groups:
    found = {name: value for name, value in dlrm_groups(clicks).items() if name in SHARED}
    for name, users in ((CLICKS, clicks), (VIEWS, views)):
        given = dlrm_groups(users)
        found |= {f"{name}{part}": given[f"uih{part}"] for part in PARTS}
    return found


def logits(built: UltraHSTU, *users: list[User]) -> Tensor:
    """[T, 4]: click, kind."""
    out = built(groups(*users)).logits
    return torch.cat([out["click"].unsqueeze(1), out["kind"]], dim=1)


def test_matches_the_loop_over_users() -> None:
    built, messages = model(config()), channels()
    clicks, views = both()
    states = []
    for transducer, message, users in zip(
        built.transducers.children(), messages, (clicks, views), strict=True
    ):
        options = hstu_options(message)
        states.append(torch.cat([dense_transducer(transducer, options, u) for u in users]))
    items = torch.cat([user.candidates for user in clicks])
    want = built.tower(torch.cat(states, dim=1), built.item_mlp(items))
    out = built(groups(clicks, views))
    for task in ("click", "kind"):
        torch.testing.assert_close(out.logits[task], want[task], rtol=1e-9, atol=1e-9)
    assert out.repeat.tolist() == [count for _, count in SIZES]
    assert states[0].size(1) + states[1].size(1) == 14


def test_one_channel_is_dlrm_hstu() -> None:
    ultra, dlrm = model(config([hstu()])), dlrm_model(dlrm_config())
    weights = {
        name.replace("transducer.", "transducers.0."): value
        for name, value in dlrm.state_dict().items()
    }
    ultra.load_state_dict(weights)
    given = dlrm_groups(people())
    assert torch.equal(ultra(given).logits["click"], dlrm(given).logits["click"])


def test_every_parameter_learns() -> None:
    built = model(config())
    out = logits(built, *both())
    (out * torch.randn_like(out)).sum().backward()
    for which, parameter in built.named_parameters():
        assert parameter.grad is not None, which
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), which


@pytest.mark.parametrize("which", [0, 1], ids=["clicks", "views"])
def test_a_history_matters_to_its_user_alone(which: int) -> None:
    built = model(config())
    users = both()
    before = logits(built, *users)
    users[which][1 if which else 0].uih[-1] += 3.0
    counts = [count for _, count in SIZES]
    changed = ~torch.isclose(before, logits(built, *users), rtol=0, atol=1e-12).all(1)
    rows = [bool(part.any()) for part in changed.split(counts)]
    assert rows == [index == (1 if which else 0) for index in range(len(SIZES))]


def test_candidates_are_independent() -> None:
    built = model(config())
    clicks, views = both()
    before = logits(built, clicks, views)
    clicks[0].candidates[1] += 5.0
    changed = ~torch.isclose(before, logits(built, clicks, views), rtol=0, atol=1e-12).all(1)
    assert changed.nonzero().flatten().tolist() == [1]


def test_no_rows_at_all_trains() -> None:
    built = model(config())
    given = groups(people([(0, 0)]), people([(0, 0)]))
    given = {
        name: Ragged(value.values, value.lengths[:0], 0) if isinstance(value, Ragged) else value[:0]
        for name, value in given.items()
    }
    out = built(given)
    sum(logit.sum() for logit in out.logits.values()).backward()
    for which, parameter in built.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), which


class Graph(nn.Module):
    """The model over flat tensors."""

    def __init__(self, built: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.built, self.names = built, names

    def forward(self, contextual: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        given: Groups = {"contextual": contextual}
        given |= {name: Ragged(next(rest), next(rest), 4096) for name in self.names}
        return tuple(self.built(given).logits.values())


def flat(given: Groups) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    ragged = {name: value for name, value in given.items() if isinstance(value, Ragged)}
    tensors = [x.clone() for value in ragged.values() for x in (value.values, value.lengths)]
    return tuple(ragged), (given["contextual"], *tensors)


def test_exports_with_everything_dynamic() -> None:
    names, example = flat(groups(*both()))
    graph = Graph(model(config()).eval(), names)
    shapes = [{0: torch.export.Dim.AUTO} for _ in example]
    with torch.no_grad():
        exported = torch.export.export(
            graph,
            example,
            dynamic_shapes={"contextual": shapes[0], "tensors": tuple(shapes[1:])},
            strict=False,
        )
        clicks, views = people([(40, 9), (0, 3)], seed=8), people([(3, 9), (70, 3)], seed=9)
        for other in (flat(groups(clicks, views)), flat(groups(clicks[:1], views[:1]))):
            for got, want in zip(exported.module()(*other[1]), graph(*other[1]), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def problems(made: model_pb2.ModelConfig) -> str:
    """What schema and model say, one line each."""
    whole = pipeline_pb2.PipelineConfig(model_config=made)
    found = list(model_problems(whole)) or UltraHSTU.check(made, widths(made))
    return "\n".join(str(problem) for problem in found)


def test_the_config_is_right() -> None:
    assert problems(config()) == ""
    assert problems(config([hstu()])) == ""


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", ""], "ultra_hstu.hstu[1].name: found nothing; expected a name"),
        (["a", "a"], "hstu[1].name: found 'a'; expected no group of channel 'a' ('a')"),
        (["a", "a_action"], "expected no group of channel 'a' ('a_action')"),
        (["candidate", "b"], "('candidate'). Groups are called by the channel"),
    ],
)
def test_channels_are_told_apart(names: list[str], said: str) -> None:
    messages = [hstu(extra=f'name: "{name}"') for name in names]
    (line,) = problems(config(messages)).splitlines()
    assert said in line


def test_problems_name_the_channel() -> None:
    made = config()
    made.ultra_hstu.hstu[1].attn_truncation_split_layer = 1
    assert "ultra_hstu.hstu[1].attn_truncation_tail_len: found nothing" in problems(made)
    made = config()
    made.ultra_hstu.hstu[1].input_preprocessor.uih_preprocessor.SetInParent()
    assert "ultra_hstu.hstu[1].input_preprocessor.uih_preprocessor" in problems(made)
    made = config()
    made.ultra_hstu.hstu[1].mtgr.SetInParent()
    assert "ultra_hstu.hstu[1].mtgr.timestamp_mask: found timestamp_mask" in problems(made)
    made = config()
    made.ultra_hstu.hstu[0].stu.append_stable = True
    assert "ultra_hstu.hstu[0].stu.append_stable" in problems(made)
    made = config()
    content = made.ultra_hstu.hstu[1].input_preprocessor.contextual_interleave_preprocessor
    content.content_mlp.parameterized_mlp.hidden_dim = 3
    found = UltraHSTU.check(made, {**widths(made), "contextual": ()})
    assert [problem.path for problem in found] == [
        "model_config.ultra_hstu.hstu[1].input_preprocessor content_mlp.parameterized_mlp"
    ]


def test_missing_groups_and_channels_are_named() -> None:
    made = config()
    kept = [group for group in made.feature_groups if group.group_name != f"{VIEWS}_action"]
    del made.feature_groups[:]
    made.feature_groups.extend(kept)
    assert f"no group '{VIEWS}_action'" in problems(made)
    assert "ultra_hstu.hstu: found nothing; expected at least one channel" in problems(config([]))
