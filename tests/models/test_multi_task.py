# SPDX-License-Identifier: Apache-2.0
"""mmoe, ple and simple_multi_task: what they share, from groups to Outputs and refusals."""

from __future__ import annotations

import pytest
import torch
from google.protobuf import text_format

from tzgen import models
from tzgen.config.options import fields_match, options
from tzgen.config.tasks import task_specs
from tzgen.data.batch import Ragged
from tzgen.embeddings import Groups
from tzgen.errors import UserError
from tzgen.models.base import MODELS, Model
from tzgen.models.multi_task import MultiTaskModel, make_experts
from tzgen.modules.experts import PLE, ExtractionOptions, MMoE
from tzgen.protos import model_pb2, module_pb2, tower_pb2

WIDTHS = {"user": (4, 2), "candidate": (3,)}
TOWERS = """
task_towers { tower_name: "ctr" label_name: "c" mlp { hidden_units: [5] }
  losses { binary_cross_entropy {} } }
task_towers { tower_name: "kind" label_name: "k" num_class: 3 losses { softmax_cross_entropy {} } }
"""
GROUPS = """
feature_groups { group_name: "user" feature_names: "u" group_type: DEEP }
feature_groups { group_name: "candidate" feature_names: "i" group_type: JAGGED_SEQUENCE }
"""


def config_of(
    model: str, body: str = "", towers: str = TOWERS, groups: str = GROUPS
) -> model_pb2.ModelConfig:
    return text_format.Parse(f"{model} {{ {body} {towers} }} {groups}", model_pb2.ModelConfig())


def model_of(
    config: model_pb2.ModelConfig, widths: dict[str, tuple[int, ...]] | None = None
) -> Model:
    name = config.WhichOneof("model")
    return MODELS[name](
        getattr(config, name), widths=widths or WIDTHS, tasks=task_specs(config), kernel="PYTORCH"
    )


def groups_of(count: int = 5, repeat: list[int] | None = None) -> Groups:
    made: Groups = {"user": torch.randn(count, 6), "candidate": torch.randn(count, 3)}
    if repeat is not None:
        made["candidate.lengths"] = torch.tensor(repeat)
    return made


NETWORK = """extraction_networks { network_name: "one" expert_num_per_task: 2 share_num: 1
  task_expert_net { hidden_units: [4] } share_expert_net { hidden_units: [6, 4] } }"""
BODIES = {
    "mmoe": "expert_mlp { hidden_units: [7, 4] } num_expert: 2",
    "ple": NETWORK,
    "simple_multi_task": "",
}


@pytest.mark.parametrize("name", BODIES)
def test_outputs_follow_the_tasks(name: str) -> None:
    model = model_of(config_of(name, BODIES[name]))
    assert isinstance(model, MultiTaskModel) and model.pointwise
    outputs = model(groups_of(5, [2, 0, 3]))
    assert {task: tuple(y.shape) for task, y in outputs.logits.items()} == {
        "ctr": (5,),
        "kind": (5, 3),
    }
    assert outputs.repeat is not None and outputs.repeat.tolist() == [2, 0, 3]
    assert model(groups_of(5)).repeat is None
    assert model(groups_of(0, [0, 0])).logits["kind"].shape == (0, 3)


@pytest.mark.parametrize("name", BODIES)
def test_every_parameter_is_trained(name: str) -> None:
    model = model_of(config_of(name, BODIES[name]))
    outputs = model(groups_of(8))
    sum((y**2).sum() for y in outputs.logits.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", BODIES)
def test_groups_are_concatenated_in_configured_order(name: str) -> None:
    groups = groups_of(4)
    model = model_of(config_of(name, BODIES[name]))
    together = model_of(config_of(name, BODIES[name]), {"all": (9,)})
    together.load_state_dict(model.state_dict())
    joined = torch.cat([groups["user"], groups["candidate"]], 1)  # type: ignore[list-item]
    swapped = {name: groups[name] for name in reversed(groups)}
    for key, y in model(swapped).logits.items():
        torch.testing.assert_close(y, together({"all": joined}).logits[key])


@pytest.mark.parametrize("name", BODIES)
def test_groups_must_be_vectors(name: str) -> None:
    config = config_of(name, BODIES[name])
    assert MODELS[name].check(config) == []
    config.feature_groups.add(group_name="history", group_type="JAGGED_SEQUENCE")
    (problem,) = MODELS[name].check(config)
    assert problem.path == "model_config.feature_groups[2].group_type"
    assert name in problem.expected and problem.value == "JAGGED_SEQUENCE"
    model = model_of(config_of(name, BODIES[name]))
    sequence = Ragged(torch.randn(4, 6), torch.tensor([4]), 4)
    with pytest.raises(UserError, match="group 'user': found Ragged"):
        model({**groups_of(4), "user": sequence})


def test_ple_names_uneven_experts() -> None:
    body = NETWORK.replace("[6, 4]", "[6, 5]")
    (problem,) = MODELS["ple"].check(config_of("ple", body))
    assert problem.path == "model_config.ple.extraction_networks[0].share_expert_net.hidden_units"
    assert "5" in problem.value and "4" in problem.expected


def test_simple_multi_task_is_its_towers() -> None:
    model = model_of(config_of("simple_multi_task"))
    groups = groups_of(4)
    x = torch.cat([groups["user"], groups["candidate"]], 1)  # type: ignore[list-item]
    first, second = model.towers  # type: ignore[misc]
    got = model(groups).logits
    torch.testing.assert_close(got["ctr"], first.linear(first.mlp(x)).squeeze(1))
    torch.testing.assert_close(got["kind"], second.linear(x))


def test_mmoe_and_ple_are_experts_then_towers() -> None:
    for name in ("mmoe", "ple"):
        model = model_of(config_of(name, BODIES[name]))
        groups = groups_of(4)
        x = torch.cat([groups["user"], groups["candidate"]], 1)  # type: ignore[list-item]
        inputs = model.experts(x)  # type: ignore[operator]
        for y, tower, z in zip(model(groups).logits.values(), model.towers, inputs, strict=True):  # type: ignore[arg-type]
            torch.testing.assert_close(y, tower(z))


def test_experts_of_a_fusion_tower() -> None:
    def tower(text: str) -> tower_pb2.FusionMTLTower:
        return text_format.Parse(text, tower_pb2.FusionMTLTower())

    assert make_experts(tower(""), 16, 3) == (None, 16)
    mixture, width = make_experts(tower("mmoe { expert_mlp { hidden_units: [8, 5] } }"), 16, 3)
    assert isinstance(mixture, MMoE) and width == 5 and len(mixture.experts) == 3
    levels, width = make_experts(tower(f"ple {{ {NETWORK} }}"), 16, 3)
    assert isinstance(levels, PLE) and width == 4
    for module in (mixture, levels):
        assert [y.shape[0] for y in module(torch.randn(2, 16))] == [2, 2, 2]


def test_options_are_the_schema() -> None:
    descriptor = module_pb2.ExtractionNetwork.DESCRIPTOR
    assert fields_match(ExtractionOptions, descriptor) == []
    network = module_pb2.ExtractionNetwork(expert_num_per_task=2)
    network.task_expert_net.hidden_units.extend([3])
    read = options(ExtractionOptions, network)
    assert (read.share_num, read.share_expert_net) == (None, None)
    assert read.task_expert_net.activation == "nn.ReLU"


def test_models_are_registered() -> None:
    assert models is not None and {"mmoe", "ple", "simple_multi_task"} <= set(MODELS)
