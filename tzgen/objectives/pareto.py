# SPDX-License-Identifier: Apache-2.0
"""Task weights of the Pareto-efficient step: the convex mix of task gradients of smallest norm.

K tasks, gradients g_k over the parameters that tasks share, lower bounds c_k:

    min |sum_k w_k g_k|^2   with   sum_k w_k = 1, w_k >= c_k

solved as in Lin et al. 2019 (10.1145/3298689.3346998, algorithm 2) and TorchEasyRec: the problem
without bounds in closed form, then the nearest point inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

F64 = NDArray[np.float64]


def pareto_weights(gram: F64, minimum: F64) -> F64:
    """w [K] from the Gram matrix of gradients [K, K] and the lower bounds [K], which sum below 1.

    Two opposed gradients of lengths 1 and 3 balance at 3/4 and 1/4:

    >>> gram = np.array([[1.0, -3.0], [-3.0, 9.0]])
    >>> pareto_weights(gram, np.zeros(2)).round(4).tolist()
    [0.75, 0.25]
    >>> pareto_weights(gram, np.array([0.0, 0.4])).round(4).tolist()
    [0.6, 0.4]
    """
    count = len(minimum)
    scale = (
        np.trace(gram) / count or 1.0
    )  # weights do not change with it; the solver's accuracy does
    gram = gram / scale
    system = np.ones((count + 1, count + 1))
    system[:count, :count], system[count, count] = gram, 0.0
    right = np.append(-gram @ minimum, 1.0 - minimum.sum())
    # least squares: parallel gradients leave many solutions, of which the smallest is taken
    relaxed = np.linalg.lstsq(system, right, rcond=1e-10)[0][:count]
    return minimum + _onto_simplex(relaxed, 1.0 - minimum.sum())


def _onto_simplex(point: F64, total: float) -> F64:
    """The nearest x >= 0 with sum `total` (Duchi et al. 2008)."""
    ordered = np.sort(point)[::-1]
    excess = (np.cumsum(ordered) - total) / np.arange(1, len(point) + 1)
    last = np.flatnonzero(ordered > excess)[-1]
    return np.maximum(point - excess[last], 0.0)


def shared_gram(losses: Sequence[Tensor], parameters: Iterable[nn.Parameter]) -> Tensor:
    """[K, K] inner products of the losses' gradients over parameters that two tasks or more reach.

    A task's own tower is left out: nothing there is in conflict. Costs a backward for each task and
    keeps the graph. float64, on the losses' device.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = [
        torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True) for loss in losses
    ]
    gram = losses[0].new_zeros(len(losses), len(losses), dtype=torch.float64)
    for per_task in zip(*gradients, strict=True):
        reached = [k for k, gradient in enumerate(per_task) if gradient is not None]
        if len(reached) > 1:
            flat = torch.stack([per_task[k].detach().reshape(-1) for k in reached]).double()
            index = torch.tensor(reached, device=gram.device)
            gram[index.unsqueeze(1), index] += flat @ flat.T
    return gram


def pareto_loss(
    losses: Sequence[Tensor],
    minimum: Sequence[float],
    parameters: Iterable[nn.Parameter],
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """sum_k w_k loss_k. Ranks add their Gram matrices, so that all of them use the same weights."""
    gram = shared_gram(losses, parameters)
    if all_reduce is not None:
        gram = all_reduce(gram)
    weights = pareto_weights(gram.cpu().numpy(), np.asarray(minimum, dtype=np.float64))
    factors = torch.as_tensor(weights, dtype=losses[0].dtype, device=losses[0].device)
    return (torch.stack(list(losses)) * factors).sum()
