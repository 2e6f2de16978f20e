# SPDX-License-Identifier: Apache-2.0
"""What generators share: item ids in, the next item's codes learnt, items of the catalogue out.

B rows, S levels of V_s codes, M items that are taught, R results a row, D width.

    training      tensors logits_<s> [M, V_s] and targets int64 [M, S] (-1: no loss)
    evaluation    the same for each row's target alone, and what beam search finds:
                  ranked int64 [B, R] rows of the catalogue (-1), target int64 [B] (catalogue.py),
                  history and unknown int64 [B]; is_cold bool [B] and invalid [B] where asked for
    prediction    decoded item_ids int64 [B, R] (-1), scores [B, R], sids int64 [B, R, S] (-1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from google.protobuf.message import Message
from torch import Tensor, nn

from tzgen.config.tasks import TaskSpec
from tzgen.decoding import (
    BeamOptions,
    BeamResult,
    ItemList,
    beam_search,
    free_beam_search,
    list_items,
    prefix_overlap,
    rerank_mmr,
)
from tzgen.decoding.options import Step
from tzgen.embeddings import Groups
from tzgen.errors import Problem
from tzgen.models.base import GroupRule, Model, Outputs, integer_sequence, real_numbers
from tzgen.models.catalogue import Catalogue, Sequences, read_sequences

BEAMS = 50


class Generator(Model):
    """Base of tiger and genrec: a subclass says how items are taught and how a search starts."""

    measures: ClassVar[str] = "items"
    target_groups: ClassVar[tuple[str, ...]] = ("target",)

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        self.config: Any = config
        self.catalogue = Catalogue(self.config.bundle_path)
        self.sizes, self.num_items = self.catalogue.sizes, len(self.catalogue)
        self.list_size = self.config.beam_search.num_results
        cold, free = self.config.HasField("cold_items"), self.config.measure_invalid
        asked = {"cold_recall@10": cold, "invalid_rate": free}
        self.extra_metrics = tuple(name for name, wanted in asked.items() if wanted)
        self.label_temperature = self.config.label_temperature
        self.user_width = sum(widths.get("user", ()))
        taught = len(self.sizes)
        if self.catalogue.has_suffix and not self.config.suffix_loss:
            taught -= 1
        self.levels_taught = taught

    def add_vocabulary(self, dim: int, *, std: float) -> None:
        """Code vectors, the start token, the user's projection and a head for each level."""
        self.codes = nn.Embedding(sum(self.sizes), dim)
        nn.init.normal_(self.codes.weight, std=std)
        self.start = nn.Parameter(torch.randn(dim) * std)
        self.user = nn.Linear(self.user_width, dim) if self.user_width else None
        heads = [nn.Linear(dim, size, bias=False) for size in self.sizes]
        for head in heads:
            nn.init.normal_(head.weight, std=dim**-0.5)
        self.heads = nn.ModuleList(heads)

    def teach(self, batch: Sequences, *, whole: bool) -> tuple[Tensor, Tensor]:
        """States [M, S, D] that level s's head reads, and the items they should give, int64 [M]
        (rows; negative: no loss). `whole` False: one for each row's target, M = B."""
        raise NotImplementedError

    def search_from(self, batch: Sequences) -> Step:
        """The model as beam search calls it, its history encoded once."""
        raise NotImplementedError

    def forward(self, groups: Groups) -> Outputs:
        self.catalogue.require_own_bundle()
        batch = self.read(groups)
        tensors = self.taught(*self.teach(batch, whole=self.training))
        if self.training:
            return Outputs({}, tensors)
        with torch.no_grad():
            step = self.search_from(batch)
            found, _ = self.find(step, batch)
            tensors |= self.measured(step, batch, found)
        return Outputs({}, tensors, decoded=self.named(found))

    def predict(self, groups: Groups) -> Outputs:
        self.catalogue.require_own_bundle()
        batch = self.read(groups)
        found, _ = self.find(self.search_from(batch), batch)
        return Outputs({}, decoded=self.named(found))

    def read(self, groups: Groups) -> Sequences:
        """The groups as rows of the catalogue."""
        user = groups.get("user")
        return read_sequences(
            self.catalogue,
            integer_sequence(groups, "uih"),
            integer_sequence(groups, "target") if "target" in groups else None,
            real_numbers(user) if isinstance(user, Tensor) else None,
            max_items=self.config.max_items,
        )

    def starts(self, batch: Sequences) -> Tensor:
        """The token that every row begins with, [B, D]: with the user's features, where given."""
        start = self.start.expand(batch.num_rows, -1)
        if self.user is None or batch.start is None:
            return start
        return start + self.user(batch.start)

    def taught(self, states: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Logits and targets of the states."""
        targets = self.catalogue.codes[rows.clamp(min=0)].masked_fill(rows[:, None] < 0, -1)
        targets[:, self.levels_taught :] = -1
        logits = {f"logits_{s}": head(states[:, s]) for s, head in enumerate(self.heads)}
        return {**logits, "targets": targets}

    def find(self, step: Step, batch: Sequences) -> tuple[ItemList, BeamResult]:
        """The best items of each row."""
        search, trie = self.config.beam_search, self.catalogue.trie
        seen = batch.seen if search.filter_seen else None
        options = beam_options(search)
        result = beam_search(step, trie, batch.num_rows, options, seen=seen)
        if search.mmr_relevance_weight < 1:
            result = varied(result, search.mmr_relevance_weight)
        return list_items(trie, result, search.num_results, seen=seen), result

    def measured(self, step: Step, batch: Sequences, found: ItemList) -> dict[str, Tensor]:
        """What evaluation reads."""
        tensors = {
            "ranked": found.items,
            "target": batch.target,
            "history": batch.lengths,
            "unknown": batch.unknown,
        }
        if self.config.HasField("cold_items"):
            cold = self.catalogue.cold(self.config.cold_items)
            tensors["is_cold"] = cold[batch.target.clamp(min=0)] & (batch.target >= 0)
        if self.config.measure_invalid:
            options = replace(beam_options(self.config.beam_search), groups=1, group_penalty=0.0)
            free = free_beam_search(
                step, self.sizes, batch.num_rows, options, device=batch.target.device
            )
            there = self.catalogue.trie.find(free.codes.clamp(min=0)) >= 0
            wrong = (~there & free.valid).sum(1)
            tensors["invalid"] = wrong / free.valid.sum(1).clamp(min=1)
        return tensors

    def named(self, found: ItemList) -> dict[str, Tensor]:
        """Rows of the catalogue as item ids, scores and codes."""
        rows, missing = found.items.clamp(min=0), ~found.valid
        return {
            "item_ids": self.catalogue.ids[rows].masked_fill(missing, -1),
            "scores": found.scores,
            "sids": self.catalogue.codes[rows].masked_fill(missing[..., None], -1),
        }

    @classmethod
    def required_groups(cls, config: Message) -> tuple[GroupRule, ...]:
        return (
            GroupRule("uih", ("JAGGED_SEQUENCE",), "the history"),
            GroupRule("target", ("JAGGED_SEQUENCE",), "the next item", required=False),
            GroupRule("user", ("DEEP",), "the start token", required=False),
        )

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        problems = super().check(model_config, widths)
        kind = model_config.WhichOneof("model")  # type: ignore[attr-defined]
        config, path = getattr(model_config, kind), f"model_config.{kind}"
        problems += _shared_problems(config, path)
        for name in ("losses", "metrics", "train_metrics"):
            entries = len(getattr(model_config, name))
            if entries:
                expected = "none: a generator has one of its own, always there"
                problems.append(
                    Problem(f"model_config.{name}", f"{entries} entries", expected, "Remove them.")
                )
        return problems


def beam_options(search: Any) -> BeamOptions:
    """A BeamSearchConfig as the search's options."""
    beams = tuple(search.beams) or (max(BEAMS, search.num_results),)
    return BeamOptions(
        beams=beams[0] if len(beams) == 1 else beams,
        renormalize=search.renormalize,
        temperature=search.temperature,
        top_p=search.top_p,
        sample=search.sample,
        groups=search.groups,
        group_penalty=search.group_penalty,
    )


def varied(result: BeamResult, relevance_weight: float) -> BeamResult:
    """The results re-ranked by MMR over shared prefixes."""
    picks = rerank_mmr(
        result.scores,
        prefix_overlap(result.codes),
        result.valid,
        limit=result.scores.size(1),
        relevance_weight=relevance_weight,
    )
    at, gone = picks.clamp(min=0), picks < 0
    codes = result.codes.gather(1, at[..., None].expand(-1, -1, result.codes.size(2)))
    return BeamResult(
        codes.masked_fill(gone[..., None], -1),
        result.scores.gather(1, at).masked_fill(gone, -torch.inf),
        result.keys.gather(1, at).masked_fill(gone, -torch.inf),
        result.leaves.gather(1, at).masked_fill(gone, -1),
        ~gone,
    )


def dropout_problems(config: Any, path: str, field: str) -> list[Problem]:
    """A ratio outside [0, 1)."""
    ratio = getattr(config, field)
    if 0 <= ratio < 1:
        return []
    return [Problem(f"{path}.{field}", f"{ratio:g}", "a ratio from 0 to below 1", "Lower it.")]


def transformer_problems(config: Any, path: str) -> list[Problem]:
    """A TransformerConfig that no layers can be made of."""
    names = ("d_model", "num_heads", "d_kv", "d_ff", "num_layers")
    found = [
        Problem(f"{path}.{name}", "0", "at least 1", "Raise it.")
        for name in names
        if getattr(config, name) < 1
    ]
    if config.num_buckets < 4 or config.max_distance <= config.num_buckets // 2:
        shown = f"{config.num_buckets} buckets up to distance {config.max_distance}"
        expected = "at least 4 buckets, and a distance beyond half of them"
        found.append(Problem(f"{path}.num_buckets", shown, expected, "For example 32 and 128."))
    return found + dropout_problems(config, path, "dropout_ratio")


def _shared_problems(config: Any, path: str) -> list[Problem]:
    """What tiger and genrec can both have wrong."""
    found = []
    if not config.bundle_path:
        remedy = "Publish one with python -m tzgen.sid fit, then name <root>/<generation>."
        found.append(Problem(f"{path}.bundle_path", "nothing", "a generation's folder", remedy))
    if config.max_items < 1:
        found.append(Problem(f"{path}.max_items", "0", "at least 1", "Raise it."))
    if not config.label_temperature > 0:
        shown = f"{config.label_temperature:g}"
        found.append(Problem(f"{path}.label_temperature", shown, "above 0", "1 changes nothing."))
    if config.HasField("cold_items") and not config.cold_items.input_path:
        where = f"{path}.cold_items.input_path"
        expected = "Parquet files with a row an item"
        found.append(Problem(where, "nothing", expected, "Name them, or remove cold_items."))
    return found + _search_problems(config.beam_search, f"{path}.beam_search")


def _search_problems(search: Any, path: str) -> list[Problem]:
    options = beam_options(search)
    levels = len(search.beams) if len(search.beams) > 1 else 1
    try:
        last = options.widths(levels)[-1]
    except ValueError as error:
        return [Problem(path, str(error).split(";")[0], "a search that can be made", str(error))]
    if search.num_results < 1 or search.num_results > last:
        shown, expected = str(search.num_results), f"1 to the {last} beams of the last level"
        return [Problem(f"{path}.num_results", shown, expected, "Lower it, or raise beams.")]
    if not 0 <= search.mmr_relevance_weight <= 1:
        shown = f"{search.mmr_relevance_weight:g}"
        where = f"{path}.mmr_relevance_weight"
        return [Problem(where, shown, "0 to 1", "1 keeps the order of the search.")]
    return []
