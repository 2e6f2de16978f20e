# SPDX-License-Identifier: Apache-2.0
"""Dense optimizers from config: one torch optimizer for each part, clipping, moving averages.

Tables are not seen here: their optimizer is fused into backward (tzgen.embeddings).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tzgen.errors import UserError
from tzgen.train.schedules import Schedule, schedule_of

BETAS = ("beta1", "beta2")
CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd_optimizer": torch.optim.SGD,
    "adagrad_optimizer": torch.optim.Adagrad,
    "adam_optimizer": torch.optim.Adam,
    "adamw_optimizer": torch.optim.AdamW,
    "adadelta_optimizer": torch.optim.Adadelta,
    "rmsprop_optimizer": torch.optim.RMSprop,
}
FUSED = ("adam_optimizer", "adamw_optimizer")  # one pass a parameter: a third of the time on a CPU


@dataclass
class Part:
    """Some parameters, the optimizer that moves them and its schedule."""

    names: list[str]
    optimizer: torch.optim.Optimizer
    schedule: Schedule


class DenseOptimizer:
    """All dense parameters, split by `part_optimizers` (the first pattern that matches wins).

    `message` is a DenseOptimizer proto. Raises UserError when a pattern matches no parameter.
    """

    def __init__(self, message: Any, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.parameters = {name: p for name, p in parameters if p.requires_grad}
        rest = dict(self.parameters)
        self.parts: list[Part] = []
        for part in message.part_optimizers:
            pattern = re.compile(part.regex_pattern)
            mine = {name: p for name, p in rest.items() if pattern.fullmatch(name)}
            if not mine:
                raise UserError(
                    f"part_optimizers: regex_pattern {part.regex_pattern!r} matches no dense "
                    f"parameter that is left; names look like {sorted(rest)[:3]}"
                )
            rest = {name: p for name, p in rest.items() if name not in mine}
            own = part if part.WhichOneof("learning_rate") else message
            self.parts.append(_part(part, own, mine))
        if rest:
            self.parts.append(_part(message, message, rest))

    def set_rates(self, step: int, epoch: int) -> float:
        """Apply the schedules; returns the rate of the last part (the main one)."""
        rate = 0.0
        for part in self.parts:
            rate = part.schedule.at(step, epoch)
            for group in part.optimizer.param_groups:
                group["lr"] = rate
        return rate

    def zero_grad(self) -> None:
        for part in self.parts:
            part.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """{"dense.<parameter>.<state>": tensor}, sharing memory where torch keeps tensors."""
        flat: dict[str, Tensor] = {}
        for part in self.parts:
            for name, parameter in zip(
                part.names, part.optimizer.param_groups[0]["params"], strict=True
            ):
                for key, value in part.optimizer.state[parameter].items():
                    flat[f"dense.{name}.{key}"] = torch.as_tensor(value)
        return flat

    def load(self, flat: Mapping[str, Tensor]) -> None:
        """Take over what `state()` gave, for the parameters that are here."""
        for part in self.parts:
            for name, parameter in zip(
                part.names, part.optimizer.param_groups[0]["params"], strict=True
            ):
                prefix = f"dense.{name}."
                entries = {
                    k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)
                }
                keys = {k: v for k, v in entries.items() if "." not in k}
                if keys:
                    part.optimizer.state[parameter] = {
                        key: value.clone() if key == "step" else value.to(parameter.device).clone()
                        for key, value in keys.items()
                    }


def clip(parameters: Iterable[nn.Parameter], message: Any) -> Tensor | None:
    """Clip dense gradients as the GradClipping proto says; the total norm when it clips by norm."""
    if message.clipping_type == "none":
        return None
    if message.clipping_type == "norm":
        return nn.utils.clip_grad_norm_(
            parameters, message.max_gradient, norm_type=message.norm_type
        )
    if message.clipping_type == "value":
        nn.utils.clip_grad_value_(parameters, message.max_gradient)
        return None
    raise UserError(
        f"grad_clipping.clipping_type is {message.clipping_type!r}; known: none, norm, value"
    )


class Average:
    """Exponential moving average of the dense weights: s <- decay * s + (1 - decay) * w."""

    def __init__(self, decay: float, parameters: Mapping[str, nn.Parameter]) -> None:
        if not 0.0 <= decay < 1.0:
            raise UserError(f"dense_optimizer.ema.decay is {decay}; expected 0 <= decay < 1")
        self._decay = decay
        self._parameters = parameters
        self.shadow: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """From the weights as they are: after others were put in their place."""
        self.shadow = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in self._parameters.items():
            self.shadow[name].lerp_(parameter.detach(), 1.0 - self._decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and weights; a second call restores them."""
        for name, parameter in self._parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(held)

    def state(self) -> dict[str, Tensor]:
        return {f"ema.{name}": value for name, value in self.shadow.items()}


def _part(message: Any, scheduled: Any, parameters: Mapping[str, nn.Parameter]) -> Part:
    kind = message.WhichOneof("optimizer")
    if kind is None:
        raise UserError(
            f"train_config.dense_optimizer names no optimizer; known: {sorted(CLASSES)}"
        )
    chosen = getattr(message, kind)
    arguments = {field.name: getattr(chosen, field.name) for field in chosen.DESCRIPTOR.fields}
    if "beta1" in arguments:
        arguments["betas"] = tuple(arguments.pop(name) for name in BETAS)
    if kind in FUSED and all(parameter.device.type == "cpu" for parameter in parameters.values()):
        arguments["fused"] = True  # elsewhere torch chooses
    optimizer = CLASSES[kind](list(parameters.values()), **arguments)
    return Part(list(parameters), optimizer, schedule_of(scheduled, chosen.lr))
