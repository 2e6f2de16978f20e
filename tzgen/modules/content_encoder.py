# SPDX-License-Identifier: Apache-2.0
"""Bring history items [E, Du] and candidates [T, Dc] to one width `output_dim`.

    slice    candidates are cut to the history's width (extra features come last)
    pad      the history is filled up to the candidates' width with one learned vector
    mlp      both are projected

Source: TorchEasyRec, content encoders; unlike there, `pad` also takes equal widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tzgen.modules.mlp import MLP, MLPOptions


@dataclass(frozen=True)
class GRMLPContentEncoderOptions:
    """The proto GRMLPContentEncoder."""

    uih_mlp: MLPOptions
    target_mlp: MLPOptions


@dataclass(frozen=True)
class GRContentEncoderOptions:
    """The proto GRContentEncoder; slice and pad have no options."""

    content_encoder: tuple[str, GRMLPContentEncoderOptions | Any] | None


class ContentEncoder(nn.Module):
    """Base: (uih [E, Du], candidates [T, Dc]) -> both [..., output_dim]."""

    output_dim: int

    def forward(self, uih: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class SliceContentEncoder(ContentEncoder):
    def __init__(self, *, uih_dim: int, candidate_dim: int) -> None:
        super().__init__()
        if candidate_dim < uih_dim:
            raise ValueError(
                "slice_content_encoder cuts candidates to the history's width, but group "
                f"candidate is narrower: {candidate_dim} < {uih_dim}"
            )
        self.output_dim = uih_dim

    def forward(self, uih: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        return uih, candidates[:, : self.output_dim]


class PadContentEncoder(ContentEncoder):
    def __init__(self, *, uih_dim: int, candidate_dim: int) -> None:
        super().__init__()
        if candidate_dim < uih_dim:
            raise ValueError(
                "pad_content_encoder fills the history up to the candidates' width, but group "
                f"candidate is narrower: {candidate_dim} < {uih_dim}"
            )
        self.output_dim = candidate_dim
        missing = candidate_dim - uih_dim
        self.filler = nn.Parameter(torch.empty(missing).normal_(0.0, 0.1)) if missing else None

    def forward(self, uih: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        if self.filler is not None:
            filler = self.filler.to(uih.dtype).expand(uih.size(0), -1)
            uih = torch.cat([uih, filler], dim=1)
        return uih, candidates


class MLPContentEncoder(ContentEncoder):
    def __init__(
        self, options: GRMLPContentEncoderOptions, *, uih_dim: int, candidate_dim: int
    ) -> None:
        super().__init__()
        self.uih_mlp = MLP.from_options(uih_dim, options.uih_mlp)
        self.target_mlp = MLP.from_options(candidate_dim, options.target_mlp)
        if self.uih_mlp.output_dim != self.target_mlp.output_dim:
            raise ValueError(
                "uih_mlp and target_mlp end in different widths: "
                f"{self.uih_mlp.output_dim} and {self.target_mlp.output_dim}"
            )
        self.output_dim = self.uih_mlp.output_dim

    def forward(self, uih: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        return self.uih_mlp(uih), self.target_mlp(candidates)


def create_content_encoder(
    options: GRContentEncoderOptions, *, uih_dim: int, candidate_dim: int
) -> ContentEncoder:
    inner: Any
    name, inner = options.content_encoder or ("nothing", None)
    if name == "slice_content_encoder":
        return SliceContentEncoder(uih_dim=uih_dim, candidate_dim=candidate_dim)
    if name == "pad_content_encoder":
        return PadContentEncoder(uih_dim=uih_dim, candidate_dim=candidate_dim)
    if name == "mlp_content_encoder":
        return MLPContentEncoder(inner, uih_dim=uih_dim, candidate_dim=candidate_dim)
    raise ValueError(f"content_encoder chooses {name}; known: slice_, pad_, mlp_content_encoder")
