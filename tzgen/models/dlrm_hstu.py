# SPDX-License-Identifier: Apache-2.0
"""DlrmHSTU: every candidate of a row is scored after one pass over the user's history.

    user = HSTUTransducer(contextual, history, candidates) at the candidates' places    [T, D]
    item = LN(Linear(SwishLN(Linear(candidate))))                                       [T, D]
    task logits = FusionMTLTower(user * item)

B rows, E history events, T candidates. Group names are fixed (`uih` may be another channel name):
contextual, uih, candidate, uih_action, uih_watchtime, uih_timestamp, candidate_timestamp.
Source: Zhai et al. 2024; TorchEasyRec's dlrm_hstu; with `hstu.mtgr`, Guo et al. 2025 (MTGR).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.message import Message

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
from tzgen.models.hstu_options import contextual_tokens
from tzgen.models.multi_task import extraction_problems
from tzgen.modules.contextual_mlp import swish_mlp
from tzgen.modules.sequence import Events


@MODELS.register("dlrm_hstu")
class DlrmHSTU(Model):
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
        dim = config.hstu.stu.embedding_dim
        self.channel = make_channel(config, config.hstu, widths)
        self.transducer = make_transducer(config, config.hstu, widths, kernel=kernel)
        self.item_mlp = swish_mlp(sum(widths["candidate"]), config.item_embedding_hidden_dim, dim)
        self.tower = make_tower(config, dim, tasks)

    def forward(self, groups: Groups) -> Outputs:
        """Outputs with one logit (or num_class of them) a task and candidate."""
        events = self.events(groups)
        user = self.transducer(events)
        item = self.item_mlp(events.candidates)
        return Outputs(logits=self.tower(user, item), repeat=events.num_candidates)

    def events(self, groups: Groups) -> Events:
        """The groups as the transducer reads them."""
        return self.channel.events(groups)

    @classmethod
    def required_groups(cls, config: Message) -> tuple[GroupRule, ...]:
        return group_rules([config.hstu], "dlrm_hstu")

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        config, path = model_config.dlrm_hstu, "model_config.dlrm_hstu"
        problems = super().check(model_config, widths)
        problems += structure_problems(config.hstu, f"{path}.hstu")
        tokens = contextual_tokens(model_config, concat=config.concat_contextual_features)
        problems += stability_problems(config.hstu, f"{path}.hstu", tokens)
        tower = config.fusion_mtl_tower
        if tower.HasField("ple"):
            problems += extraction_problems(tower.ple, f"{path}.fusion_mtl_tower.ple")
        if widths is not None and not problems:
            problems += contextual_problems(config, widths, path)
            problems += width_problems(config.hstu, widths, f"{path}.hstu")
        return problems
