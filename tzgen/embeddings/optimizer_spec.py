# SPDX-License-Identifier: Apache-2.0
"""`train_config.sparse_optimizer` as plain values, and which engine can run it where."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tzgen.errors import UserError
from tzgen.protos.optimizer_pb2 import SparseOptimizer, WeightDecayMode

EPS = 1e-8  # fbgemm's, which TorchEasyRec leaves alone
ETA = 1e-3  # fbgemm's trust coefficient of LARS
STATES = {
    # name: (values a row that are as wide as the table, values a row)
    "sgd": (0, 0),
    "adagrad": (1, 0),
    "rowwise_adagrad": (0, 1),
    "adam": (2, 0),
    "partial_rowwise_adam": (1, 1),
    "lamb": (2, 0),
    "partial_rowwise_lamb": (1, 1),
    "lars_sgd": (1, 0),
}
FUSED_ON_CPU = ("sgd", "adagrad", "rowwise_adagrad")


@dataclass(frozen=True)
class OptimizerSpec:
    """How rows of tables are updated. `max_gradient` None: no clipping."""

    name: str
    lr: float
    eps: float = EPS
    weight_decay: float = 0.0
    weight_decay_mode: str = "NONE"
    beta1: float = 0.9
    beta2: float = 0.999
    momentum: float = 0.9
    max_gradient: float | None = None
    initial_accumulator_value: float = 0.0

    def state_values(self, width: int) -> int:
        """Numbers of state that a row of this width needs."""
        wide, single = STATES[self.name]
        return wide * width + single


def optimizer_spec(message: SparseOptimizer) -> OptimizerSpec:
    """Raises UserError naming what exists, for none and for those that public fbgemm lacks."""
    field = message.WhichOneof("optimizer")
    name = (field or "").removesuffix("_optimizer")
    if field is None or name not in STATES:
        raise UserError(
            f"train_config.sparse_optimizer is {field or 'empty'}; expected one of "
            f"{', '.join(f'{known}_optimizer' for known in STATES)}"
        )
    chosen = getattr(message, field)
    fields = {
        descriptor.name: getattr(chosen, descriptor.name)
        for descriptor in chosen.DESCRIPTOR.fields
        if descriptor.name not in ("gradient_clipping", "max_gradient", "weight_decay_mode")
    }
    mode = "DECOUPLE"  # the only one that the others have
    if name == "rowwise_adagrad":
        mode = WeightDecayMode.Name(chosen.weight_decay_mode)
    bound = chosen.max_gradient if chosen.gradient_clipping else None
    return OptimizerSpec(name, **fields, weight_decay_mode=mode, max_gradient=bound)


def check_optimizer(spec: OptimizerSpec, *, engine: str, device: torch.device) -> None:
    """Raises UserError when the engine has no such update on that device."""
    if engine == "torchrec" and spec.name == "lars_sgd":
        raise UserError(
            "lars_sgd_optimizer: TorchRec cannot keep its state, so that a run could not resume. "
            "Use another sparse_optimizer, or the local engine."
        )
    if engine == "torchrec" and device.type == "cpu" and spec.name not in FUSED_ON_CPU:
        raise UserError(
            f"{spec.name}_optimizer does not exist in fbgemm on a CPU; there are "
            f"{', '.join(f'{name}_optimizer' for name in FUSED_ON_CPU)}. Choose one of them, train "
            "on a GPU, or use the local engine."
        )
    decays = spec.weight_decay != 0 and spec.weight_decay_mode != "NONE"
    if engine == "torchrec" and device.type == "cpu" and decays:
        raise UserError(
            f"{spec.name}_optimizer.weight_decay is {spec.weight_decay:g}: fbgemm ignores it on a "
            "CPU. Set weight_decay_mode NONE, train on a GPU, or use the local engine."
        )
