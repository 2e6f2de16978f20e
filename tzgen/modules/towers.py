# SPDX-License-Identifier: Apache-2.0
"""From the user's state and the item's vector to one output per task.

N candidates, D width. Source: generative-recommenders and TorchEasyRec, FusionMTLTower.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tzgen.modules.mlp import MLP, MLPOptions, xavier_init


class FusionMTLTower(nn.Module):
    """user * item -> MLP -> one Linear, split per task.

    `outputs`: task name -> number of outputs, in order. With `experts` (a module [N, D] -> one
    [N, experts_dim] a task, in the same order) each task has its own MLP and Linear after them.
    """

    def __init__(
        self,
        in_features: int,
        *,
        mlp: MLPOptions | None,
        outputs: Mapping[str, int],
        experts: nn.Module | None = None,
        experts_dim: int = 0,
    ) -> None:
        super().__init__()
        if not outputs:
            raise ValueError("fusion_mtl_tower has no task_configs")
        self.outputs = dict(outputs)
        # "trunk" is the single path; with experts there is one path a task
        widths = list(outputs.values()) if experts is not None else [sum(outputs.values())]
        source = in_features if experts is None else experts_dim
        self.heads = nn.ModuleList(_head(source, mlp, width) for width in widths)
        self.heads.apply(xavier_init)
        self.experts = experts

    def forward(self, user: Tensor, item: Tensor) -> dict[str, Tensor]:
        """user, item [N, D] -> task -> [N], or [N, outputs] where a task has more than one."""
        fused = user * item
        if self.experts is None:
            parts = self.heads[0](fused).split(list(self.outputs.values()), dim=1)
        else:
            inputs = self.experts(fused)
            parts = [head(x) for head, x in zip(self.heads, inputs, strict=True)]
        return {
            name: part.squeeze(1) if part.size(1) == 1 else part
            for name, part in zip(self.outputs, parts, strict=True)
        }


def _head(in_features: int, mlp: MLPOptions | None, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    if mlp is not None:
        trunk = MLP.from_options(in_features, mlp)
        layers.append(trunk)
        in_features = trunk.output_dim
    return nn.Sequential(*layers, nn.Linear(in_features, outputs))
