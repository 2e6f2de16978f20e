# SPDX-License-Identifier: Apache-2.0
"""What every model is: groups in, outputs out; and what it says about the config it needs.

B rows, N scored examples (candidates, or rows where a row is one example).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from google.protobuf.message import Message
from torch import Tensor, nn

from tzgen.config.tasks import TaskSpec
from tzgen.embeddings import Groups, Ragged
from tzgen.errors import Problem, UserError
from tzgen.registry import Registry


@dataclass
class Outputs:
    """logits: task -> float [N], or [N, num_class]. tensors: what losses need beside logits.

    repeat: int64 [B], how many of the N examples each row holds; None when a row is one example.
    decoded: what `predict` says beside logits, any dtype, [N, ...]: codes, item ids, scores.
    """

    logits: dict[str, Tensor]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    repeat: Tensor | None = None
    decoded: dict[str, Tensor] = field(default_factory=dict)

    def map(self, move: Callable[[Tensor], Tensor]) -> Outputs:
        """The same outputs with `move` applied to logits, tensors and what was decoded."""
        return Outputs(
            {name: move(value) for name, value in self.logits.items()},
            {name: move(value) for name, value in self.tensors.items()},
            self.repeat,
            {name: move(value) for name, value in self.decoded.items()},
        )

    @staticmethod
    def concatenate(parts: Sequence[Outputs]) -> Outputs:
        """Outputs of consecutive rows, e.g. of micro-batches, end to end."""
        repeats = [part.repeat for part in parts if part.repeat is not None]
        return Outputs(
            {name: torch.cat([part.logits[name] for part in parts]) for name in parts[0].logits},
            {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors},
            torch.cat(repeats) if repeats else None,
            {name: torch.cat([part.decoded[name] for part in parts]) for name in parts[0].decoded},
        )


@dataclass(frozen=True)
class GroupRule:
    """A feature group that a model reads: its name, the group types it may have, what reads it."""

    name: str
    types: tuple[str, ...]
    reader: str
    required: bool = True


class Model(nn.Module):
    """Base class: architecture only, no losses and no tables.

    `config` is the model's own message (ModelConfig.<model>), `widths` the width of every feature
    of every group, in order, `kernel` a name that ops understand.
    """

    pointwise: ClassVar[bool] = False  # groups arrive with one row a candidate
    reads_any_group: ClassVar[bool] = False  # groups beyond `required_groups` are read too
    measures: ClassVar[str] = "tasks"  # "codes" of a tokenizer, "items" of a generator: no labels
    fits: ClassVar[bool] = False  # trained by `observe` and `fit`, not by gradients
    codebook: tuple[int, ...] = ()  # of models that measure codes: how many each level has
    # Of models that measure items: of how many, how long lists are, what else is measured; loss.
    num_items: int = 0
    list_size: int = 0
    extra_metrics: tuple[str, ...] = ()
    label_temperature: float = 1.0
    target_groups: ClassVar[tuple[str, ...]] = ()  # that prediction does without

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__()

    def forward(self, groups: Groups) -> Outputs:
        """What is trained."""
        raise NotImplementedError

    def predict(self, groups: Groups) -> Outputs:
        """What is served: scores, or decoded items where a model generates."""
        out: Outputs = self(groups)
        return out

    def observe(self, groups: Groups) -> None:
        """With `fits`: take note of a batch of this rank; called for every batch of one epoch."""
        raise NotImplementedError

    def fit(self) -> None:
        """With `fits`: train on what was observed; all ranks call it together, once."""
        raise NotImplementedError

    @property
    def start_rows(self) -> int:
        """Rows of all ranks that `prepare` wants before the first step; 0: it is not called."""
        return 0

    def prepare(self, batches: Iterator[Groups]) -> None:
        """Initialise from data: the first batches of this rank, before a fresh training."""
        raise NotImplementedError

    def end_step(self) -> None:
        """After every optimizer step in training; all ranks call it together. Schedules count here,
        since a step may be several forwards."""

    @classmethod
    def required_groups(cls, config: Message) -> tuple[GroupRule, ...]:
        """The groups that this config of the model reads; optional ones are marked."""
        return ()

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        """Everything wrong with `model_config`'s groups for this model; `widths` once known."""
        name = model_config.WhichOneof("model")
        rules = cls.required_groups(getattr(model_config, name))
        return group_problems(model_config, name, rules, others=cls.reads_any_group)


MODELS: Registry[Model] = Registry("model")


def group_problems(
    model_config: Message, model: str, rules: Sequence[GroupRule], *, others: bool
) -> list[Problem]:
    """Groups that are missing, of a wrong type, or (unless `others`) read by nobody."""
    given = {group.group_name: index for index, group in enumerate(model_config.feature_groups)}
    problems = []
    for rule in rules:
        wanted = " or ".join(rule.types)
        if rule.name not in given:
            if rule.required:
                problems.append(
                    Problem(
                        "model_config.feature_groups",
                        f"no group {rule.name!r}",
                        f"a {wanted} group {rule.name!r}, which {rule.reader} reads",
                        f'Add feature_groups {{ group_name: "{rule.name}" ... }}.',
                    )
                )
            continue
        group = model_config.feature_groups[given[rule.name]]
        enum = group.DESCRIPTOR.fields_by_name["group_type"].enum_type
        kind = enum.values_by_number[group.group_type].name
        if kind not in rule.types:
            path = f"model_config.feature_groups[{given[rule.name]}].group_type"
            problems.append(Problem(path, kind, wanted, f"{rule.reader} reads it so."))
    known = [rule.name for rule in rules]
    for name, index in given.items():
        if not others and name not in known:
            problems.append(
                Problem(
                    f"model_config.feature_groups[{index}].group_name",
                    repr(name),
                    f"a group that {model} reads: {', '.join(known)}",
                    "Rename it or remove it: nobody reads it.",
                )
            )
    return problems


def ragged_group(groups: Groups, name: str) -> Ragged:
    """Group `name`, which must be a sequence."""
    value = groups.get(name)
    if not isinstance(value, Ragged):
        raise UserError(f"group {name!r}: found {type(value).__name__}; expected a JAGGED_SEQUENCE")
    return value


def integer_sequence(groups: Groups, name: str) -> Ragged:
    """Group `name` as values int64 [L]: one raw integer feature (times, action bitmasks)."""
    value = ragged_group(groups, name)
    if value.values.dtype != torch.int64 or value.values.numel() != value.values.size(0):
        raise UserError(
            f"group {name!r}: found {value.values.dtype} of shape {tuple(value.values.shape)}; "
            "expected one int64 feature. Store the column as integers and leave the feature "
            "without normalizer, boundaries and embedding."
        )
    return value.with_values(value.values.reshape(-1))


def real_numbers(values: Tensor) -> Tensor:
    """The same as float32 where a group holds nothing but raw integers."""
    return values if values.is_floating_point() else values.to(torch.float32)
