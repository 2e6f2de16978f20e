# SPDX-License-Identifier: Apache-2.0
"""The update rules of fbgemm's fused optimizers, for the rows that a batch touched.

R touched rows (each once, gradients of repeated ids summed), D width. Rules take and give
float32: weights [R, D], gradients [R, D], states as in `state_shapes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from tzgen.embeddings.optimizer_spec import ETA, STATES, OptimizerSpec

# TorchRec's names of the state tensors, so that checkpoints of both engines have the same keys
STATE_NAMES = ("momentum1", "exp_avg_sq")
Rule = Callable[[OptimizerSpec, float, int, Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def state_shapes(spec: OptimizerSpec, rows: int, width: int) -> dict[str, tuple[int, ...]]:
    """name -> shape of the states of a table: wide ones [V, D] first, then one number a row [V]."""
    wide, single = STATES[spec.name]
    shapes: list[tuple[int, ...]] = [(rows, width)] * wide + [(rows,)] * single
    return dict(zip(STATE_NAMES, shapes, strict=False))


def update(
    spec: OptimizerSpec,
    lr: float,
    step: int,
    weight: Tensor,
    grad: Tensor,
    state: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """(new weight, *new state) of the touched rows; `step` counts from 1."""
    return RULES[spec.name](spec, lr, step, weight, grad, state)


def _sgd(
    spec: OptimizerSpec, lr: float, step: int, w: Tensor, g: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return (w - lr * g,)


def _adagrad(
    spec: OptimizerSpec, lr: float, step: int, w: Tensor, g: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    total = state[0] + g * g
    return w - lr * g / (total.sqrt() + spec.eps), total


def _rowwise_adagrad(
    spec: OptimizerSpec, lr: float, step: int, w: Tensor, g: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    if spec.weight_decay_mode == "L2":
        g = g + spec.weight_decay * w
    total = state[0] + (g * g).mean(1)
    if spec.weight_decay_mode == "DECOUPLE":
        w = w * (1 - lr * spec.weight_decay)
    return w - (lr / (total.sqrt() + spec.eps)).unsqueeze(1) * g, total


def _moments(
    spec: OptimizerSpec, step: int, g: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """First and second moment, and Adam's direction [R, D] without weight decay."""
    first, second = state
    squares = g * g if second.dim() == 2 else (g * g).mean(1)
    first = spec.beta1 * first + (1 - spec.beta1) * g
    second = spec.beta2 * second + (1 - spec.beta2) * squares
    scale = (second / (1 - spec.beta2**step)).sqrt() + spec.eps
    scale = scale if scale.dim() == 2 else scale.unsqueeze(1)
    return first, second, first / (1 - spec.beta1**step) / scale


def _adam(
    spec: OptimizerSpec, lr: float, step: int, w: Tensor, g: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    first, second, direction = _moments(spec, step, g, state)
    return w - lr * (direction + spec.weight_decay * w), first, second


def _lamb(
    spec: OptimizerSpec, lr: float, step: int, w: Tensor, g: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    first, second, direction = _moments(spec, step, g, state)
    direction = direction + spec.weight_decay * w
    length = direction.norm(dim=1, keepdim=True)
    trust = torch.where(length > 0, w.norm(dim=1, keepdim=True) / length.clamp(min=1e-30), 0.0)
    return w - lr * trust * direction, first, second


def _lars_sgd(
    spec: OptimizerSpec, lr: float, step: int, w: Tensor, g: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    weight_norm, grad_norm = w.norm(dim=1, keepdim=True), g.norm(dim=1, keepdim=True)
    whole = (grad_norm + spec.weight_decay * weight_norm).clamp(min=1e-30)
    rate = lr * ETA * weight_norm / whole
    momentum = spec.momentum * state[0] + rate * (g + spec.weight_decay * w)
    return w - momentum, momentum


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "sgd": _sgd,
        "adagrad": _adagrad,
        "rowwise_adagrad": _rowwise_adagrad,
        "adam": _adam,
        "partial_rowwise_adam": _adam,
        "lamb": _lamb,
        "partial_rowwise_lamb": _lamb,
        "lars_sgd": _lars_sgd,
    }
)
