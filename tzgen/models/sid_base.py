# SPDX-License-Identifier: Apache-2.0
"""What tokenizers share: one item a row, its vector in one DEEP group, codes out.

N items, D width of the vector, S levels of codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from google.protobuf.message import Message
from torch import Tensor

from tzgen.config.tasks import TaskSpec
from tzgen.embeddings import Groups
from tzgen.errors import Problem, UserError
from tzgen.models.base import GroupRule, Model, group_problems, real_numbers
from tzgen.models.sid_candidates import candidate_problems
from tzgen.modules.kmeans import CannotFit, KMeansOptions

DEEP = ("DEEP",)
POINTS_PER_CENTROID = 256  # faiss's max_points_per_centroid


class Tokenizer(Model):
    """Base of the sid_* models. `codebook`: codes of each level."""

    measures: ClassVar[str] = "codes"

    @classmethod
    def other_groups(cls, config: Message) -> tuple[GroupRule, ...]:
        """Groups beyond the items' own that this config reads."""
        return ()

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        kind = model_config.WhichOneof("model")
        config, path = getattr(model_config, kind), f"model_config.{kind}"
        problems = [*_codebook_problems(config, path), *_group_problems(cls, model_config, config)]
        if "candidate_output_config" in config.DESCRIPTOR.fields_by_name:
            problems += candidate_problems(config, path, codebook_of(config))
        if cls.fits and len(model_config.losses):
            problems.append(
                Problem(
                    "model_config.losses",
                    f"{len(model_config.losses)} losses",
                    f"none: {kind} is fitted, not descended",
                    "Remove them.",
                )
            )
        if not cls.fits and not len(model_config.losses):
            problems.append(
                Problem(
                    "model_config.losses",
                    "no losses",
                    "recon_loss and commitment_loss",
                    "Add losses { recon_loss {} } losses { commitment_loss {} }.",
                )
            )
        for name in ("metrics", "train_metrics"):
            if len(getattr(model_config, name)):
                problems.append(
                    Problem(
                        f"model_config.{name}",
                        f"{len(getattr(model_config, name))} entries",
                        "none: a tokenizer has metrics of its own, always measured",
                        "Remove them.",
                    )
                )
        return problems

    def item_vectors(self, groups: Groups, name: str) -> Tensor:
        """Group `name` as float32 [N, D]; NaN and infinity are refused by row."""
        value = groups.get(name)
        if not isinstance(value, Tensor):
            raise UserError(f"group {name!r}: found {type(value).__name__}; expected DEEP")
        return real_numbers(value).to(torch.float32)


class FittedTokenizer(Tokenizer):
    """A tokenizer that k-means makes of a sample of its items, at the end of one pass over them.

    `group` holds the vectors; `kmeans`: options of the fits; `sample`: what this rank has kept.
    """

    fits: ClassVar[bool] = True

    def __init__(
        self,
        config: Any,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        self.codebook = codebook_of(config)
        self.group = main_group(config, tuple(widths))
        given = config.faiss_kmeans_kwargs
        self.kmeans = kmeans_options(given)
        per_centroid = given.max_points_per_centroid or POINTS_PER_CENTROID
        size = config.train_sample_size or max(self.codebook) * per_centroid
        self.sample = Sample(size, seed=self.kmeans.seed)

    def observe(self, groups: Groups) -> None:
        self.sample.add(self.item_vectors(groups, self.group))


def main_group(config: Message, names: Sequence[str]) -> str:
    """The group with the items' vectors: `feature_group`, else the only one."""
    given = config.feature_group
    return str(given) if given else names[0]


def codebook_of(config: Message) -> tuple[int, ...]:
    """Codes of each level."""
    if "num_subvectors" in config.DESCRIPTOR.fields_by_name:
        return (config.codebook_size,) * config.num_subvectors
    return tuple(config.codebook)


def kmeans_options(message: Message) -> KMeansOptions:
    """A FaissKmeansConfig as the fit's options; what is unset is faiss's default."""
    default = KMeansOptions()
    return KMeansOptions(
        niter=message.niter if message.HasField("niter") else default.niter,
        nredo=message.nredo if message.HasField("nredo") else default.nredo,
        seed=message.seed if message.HasField("seed") else default.seed,
        spherical=message.spherical,
    )


@contextmanager
def told_as(field: str) -> Iterator[None]:
    """Where k-means runs: what it cannot fit is the user's to change, in the config or the data."""
    try:
        yield
    except CannotFit as error:
        raise UserError(f"{field}: {error}") from None


class Sample:
    """A uniform sample of at most `size` rows of what a rank has seen (Vitter's algorithm R).

    The stream of random numbers is its own, so that nothing else changes it.
    """

    def __init__(self, size: int, *, seed: int) -> None:
        self._size, self._seen, self._held = size, 0, 0
        self._parts: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, rows: Tensor) -> None:
        """Rows [n, D] of a batch."""
        rows = rows.detach()
        room = self._size - self._held
        taken, rest = rows[:room], rows[room:]
        if taken.size(0):
            self._parts.append(taken.clone())
        self._held += taken.size(0)
        self._seen += taken.size(0)
        if rest.size(0):
            number = torch.arange(1, rest.size(0) + 1) + self._seen
            draw = torch.rand(rest.size(0), generator=self._generator, dtype=torch.float64)
            place = (draw * number).to(torch.int64)
            inside = place < self._size
            # later rows win where two fall on one place, as one by one
            from_row = inside.nonzero().flatten().tolist()
            taken_by = dict(zip(place[inside].tolist(), from_row, strict=True))
            if taken_by:
                source = torch.tensor(list(taken_by.values()), device=rows.device)
                self.rows()[torch.tensor(list(taken_by), device=rows.device)] = rest[source]
            self._seen += rest.size(0)

    def rows(self) -> Tensor:
        """What was kept, [n, D]."""
        if not self._parts:
            raise UserError(
                "no item was seen in training: train_input_path gave this process no rows"
            )
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]


def _codebook_problems(config: Any, path: str) -> list[Problem]:
    codebook = codebook_of(config)
    if codebook and min(codebook) > 0:
        return []
    return [
        Problem(
            f"{path}.codebook",
            str(list(codebook)),
            "a positive size for every level",
            "For example codebook: [256, 256, 256].",
        )
    ]


def _group_problems(cls: type[Tokenizer], model_config: Any, config: Any) -> list[Problem]:
    """The main group must be clear; every group must be read."""
    kind = model_config.WhichOneof("model")
    others = cls.other_groups(config)
    names = [group.group_name for group in model_config.feature_groups]
    main = config.feature_group
    if not main:
        left = [name for name in names if name not in {rule.name for rule in others}]
        if len(left) != 1:
            return [
                Problem(
                    f"model_config.{kind}.feature_group",
                    f"unset, with the groups {', '.join(names) or 'none'}",
                    "the group that holds the items' vectors",
                    "Name it, or leave one DEEP group.",
                )
            ]
        main = left[0]
    rules = (GroupRule(main, DEEP, kind), *others)
    return group_problems(model_config, kind, rules, others=False)
