# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules as pure functions of the step or epoch, so that a resume needs no state.

`schedule_of(message, base_lr)` reads the `learning_rate` oneof of an optimizer message. Warm-up
rises linearly from warmup_learning_rate to the base rate over warmup_size; the schedules proper
count from the end of the warm-up, except LinearDecayLR, whose length includes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tzgen.config import options
from tzgen.errors import UserError

Rate = Callable[[int], float]


@dataclass(frozen=True)
class Schedule:
    """`at(step, epoch)` is the learning rate of a step that lies in an epoch, both from 0."""

    rate: Rate
    by_epoch: bool

    def at(self, step: int, epoch: int) -> float:
        return self.rate(epoch if self.by_epoch else step)


@dataclass(frozen=True)
class Warmup:
    learning_rate: float
    size: int


@dataclass(frozen=True)
class ExponentialDecayLR:
    """min(…)-bounded base * decay_factor ** (n / decay_size), in jumps when `staircase`."""

    decay_size: int | None
    decay_factor: float
    staircase: bool
    warmup_learning_rate: float
    warmup_size: int
    min_learning_rate: float
    by_epoch: bool

    def rate(self, base: float) -> Rate:
        size = _positive("decay_size", self.decay_size)

        def decayed(n: int) -> float:
            power = n // size if self.staircase else n / size
            return max(base * self.decay_factor**power, self.min_learning_rate)

        return _after_warmup(decayed, base, Warmup(self.warmup_learning_rate, self.warmup_size))


@dataclass(frozen=True)
class ManualStepLR:
    """The base rate until schedule_sizes[0], then learning_rates[i] from schedule_sizes[i] on."""

    schedule_sizes: tuple[int, ...]
    learning_rates: tuple[float, ...]
    warmup: bool
    by_epoch: bool

    def rate(self, base: float) -> Rate:
        sizes, rates = self.schedule_sizes, self.learning_rates
        if not sizes or len(sizes) != len(rates) or list(sizes) != sorted(set(sizes)):
            raise UserError(
                f"manual_step_learning_rate: schedule_sizes {list(sizes)} and learning_rates "
                f"{list(rates)} must be equally long and the sizes ascending"
            )

        def stepped(n: int) -> float:
            passed = sum(n >= size for size in sizes)
            if passed:
                return rates[passed - 1]
            return base + (rates[0] - base) * n / sizes[0] if self.warmup else base

        return stepped


@dataclass(frozen=True)
class LinearDecayLR:
    """A straight line from the base rate at the end of the warm-up to min_learning_rate."""

    num_training_steps: int | None
    min_learning_rate: float
    warmup_learning_rate: float
    warmup_size: int
    by_epoch: bool

    def rate(self, base: float) -> Rate:
        length = _positive("num_training_steps", self.num_training_steps) - self.warmup_size
        if length <= 0:
            raise UserError(
                f"linear_decay_learning_rate: num_training_steps {self.num_training_steps} must be "
                f"larger than warmup_size {self.warmup_size}"
            )

        def line(n: int) -> float:
            share = min(n / length, 1.0)
            return base + (self.min_learning_rate - base) * share

        return _after_warmup(line, base, Warmup(self.warmup_learning_rate, self.warmup_size))


@dataclass(frozen=True)
class CosineAnnealingLR:
    """Half a cosine from the base rate to min_learning_rate over T_max, flat afterwards."""

    T_max: int | None
    min_learning_rate: float
    warmup_learning_rate: float
    warmup_size: int
    by_epoch: bool

    def rate(self, base: float) -> Rate:
        period = _positive("T_max", self.T_max)

        def wave(n: int) -> float:
            return _cosine(base, self.min_learning_rate, min(n / period, 1.0))

        return _after_warmup(wave, base, Warmup(self.warmup_learning_rate, self.warmup_size))


@dataclass(frozen=True)
class CosineAnnealingWarmRestartsLR:
    """Cosines of T_0, T_0 * T_mult, T_0 * T_mult^2 ... steps, each from the base rate again."""

    T_0: int | None
    T_mult: int
    min_learning_rate: float
    warmup_learning_rate: float
    warmup_size: int
    by_epoch: bool

    def rate(self, base: float) -> Rate:
        first, factor = _positive("T_0", self.T_0), _positive("T_mult", self.T_mult)

        def restarted(n: int) -> float:
            period = first
            if factor == 1:
                n %= period
            while n >= period:
                n, period = n - period, period * factor
            return _cosine(base, self.min_learning_rate, n / period)

        return _after_warmup(restarted, base, Warmup(self.warmup_learning_rate, self.warmup_size))


SCHEDULES: dict[str, Any] = {
    "exponential_decay_learning_rate": ExponentialDecayLR,
    "manual_step_learning_rate": ManualStepLR,
    "cosine_annealing_learning_rate": CosineAnnealingLR,
    "cosine_annealing_warm_restarts_learning_rate": CosineAnnealingWarmRestartsLR,
    "linear_decay_learning_rate": LinearDecayLR,
}


def schedule_of(message: Any, base: float) -> Schedule:
    """The schedule in the `learning_rate` oneof of `message`; constant when unset.

    Raises UserError naming the field when a schedule lacks its length.
    """
    kind = message.WhichOneof("learning_rate")
    if kind is None or kind == "constant_learning_rate":
        return Schedule(lambda n: base, by_epoch=False)
    rule = options(SCHEDULES[kind], getattr(message, kind))
    return Schedule(rule.rate(base), by_epoch=rule.by_epoch)


def _after_warmup(rate: Rate, base: float, warmup: Warmup) -> Rate:
    def warmed(n: int) -> float:
        if n < warmup.size:
            return warmup.learning_rate + (base - warmup.learning_rate) * n / warmup.size
        return rate(n - warmup.size)

    return warmed


def _cosine(top: float, bottom: float, share: float) -> float:
    return bottom + (top - bottom) * (1 + math.cos(math.pi * share)) / 2


def _positive(name: str, value: int | None) -> int:
    if not value:
        raise UserError(f"learning-rate schedule: {name} is {value}; give it a number above 0")
    return value
