# SPDX-License-Identifier: Apache-2.0
"""UltraHSTU: a mixture of transducers, one for each history of a user (clicks, long views, ...).

    user_c = HSTUTransducer_c(contextual, history_c, candidates) at candidates    [T, D_c]
    user   = concat of all user_c                                                 [T, D]
    item   = LN(Linear(SwishLN(Linear(candidate))))                               [T, D]
    task logits = FusionMTLTower(user * item)

T candidates, D the sum of the channels' D_c. Channels share the contextual features and candidates;
each has its own layers, masks and truncation (`stu.sla_k1`, `attn_truncation_*`). One channel
alone is DlrmHSTU. Source: Ding et al. 2026 (arXiv 2602.16986); TorchEasyRec's ultra_hstu.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from google.protobuf.message import Message
from torch import Tensor, nn

from tzgen.config.stability import stability_problems
from tzgen.config.tasks import TaskSpec
from tzgen.embeddings import Groups
from tzgen.errors import Problem
from tzgen.models.base import MODELS, GroupRule, Model, Outputs
from tzgen.models.hstu_channel import (
    contextual_problems,
    group_rules,
    make_channel,
    make_tower,
    make_transducer,
    structure_problems,
    width_problems,
)
from tzgen.models.hstu_options import channel_name, contextual_tokens
from tzgen.models.multi_task import extraction_problems
from tzgen.modules.contextual_mlp import swish_mlp
from tzgen.modules.sequence import Events
from tzgen.modules.transducer import HSTUTransducer

# Groups that all channels share, and so no name of a channel.
SHARED = ("contextual", "candidate", "candidate_timestamp")


class MixtureOfTransducers(nn.Module):
    """One transducer a channel; what they make of the candidates, side by side."""

    def __init__(self, transducers: Sequence[HSTUTransducer]) -> None:
        super().__init__()
        self.count = len(transducers)
        for index, transducer in enumerate(transducers):
            self.add_module(str(index), transducer)  # a channel's name may hold a dot

    def forward(self, events: Sequence[Events]) -> Tensor:
        """Events of each channel -> [T, D]."""
        states = [self.get_submodule(str(index))(one) for index, one in enumerate(events)]
        return torch.cat(states, dim=-1)


@MODELS.register("ultra_hstu")
class UltraHSTU(Model):
    """The multi-task ranker of the module docstring."""

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        dim = sum(hstu.stu.embedding_dim for hstu in config.hstu)
        self.channels = [make_channel(config, hstu, widths) for hstu in config.hstu]
        self.transducers = MixtureOfTransducers(
            [make_transducer(config, hstu, widths, kernel=kernel) for hstu in config.hstu]
        )
        self.item_mlp = swish_mlp(sum(widths["candidate"]), config.item_embedding_hidden_dim, dim)
        self.tower = make_tower(config, dim, tasks)

    def forward(self, groups: Groups) -> Outputs:
        """Outputs with one logit (or num_class of them) a task and candidate."""
        events = [channel.events(groups) for channel in self.channels]
        user = self.transducers(events)
        item = self.item_mlp(events[0].candidates)
        return Outputs(logits=self.tower(user, item), repeat=events[0].num_candidates)

    @classmethod
    def required_groups(cls, config: Message) -> tuple[GroupRule, ...]:
        return group_rules(config.hstu, "ultra_hstu")

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        config, path = model_config.ultra_hstu, "model_config.ultra_hstu"
        if problems := list(_name_problems(config, path)):
            return problems  # the groups follow from the names
        problems = super().check(model_config, widths)
        tokens = contextual_tokens(model_config, concat=config.concat_contextual_features)
        for index, hstu in enumerate(config.hstu):
            problems += structure_problems(hstu, f"{path}.hstu[{index}]")
            problems += stability_problems(hstu, f"{path}.hstu[{index}]", tokens)
        tower = config.fusion_mtl_tower
        if tower.HasField("ple"):
            problems += extraction_problems(tower.ple, f"{path}.fusion_mtl_tower.ple")
        if widths is not None and not problems:
            problems += contextual_problems(config, widths, path)
            for index, hstu in enumerate(config.hstu):
                problems += width_problems(hstu, widths, f"{path}.hstu[{index}]")
        return problems


def _name_problems(config: Message, path: str) -> Iterator[Problem]:
    """Channels that cannot be told apart by the names of their groups."""
    taken = dict.fromkeys(SHARED, "a group that all channels share")
    for index, hstu in enumerate(config.hstu):
        place = f"{path}.hstu[{index}].name"
        if not hstu.name and len(config.hstu) > 1:
            remedy = 'With name: "click" its groups are "click", "click_action", ...'
            yield Problem(place, "nothing", "a name, since there are several channels", remedy)
            continue
        name = channel_name(hstu)
        groups = [name, *(f"{name}_{part}" for part in ("action", "watchtime", "timestamp"))]
        clash = next((group for group in groups if group in taken), None)
        if clash is not None:
            remedy = "Groups are called by the channel: give each channel a name of its own."
            yield Problem(place, repr(name), f"no group of {taken[clash]} ({clash!r})", remedy)
        taken.update(dict.fromkeys(groups, f"channel {name!r}"))
