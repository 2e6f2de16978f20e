# SPDX-License-Identifier: Apache-2.0
"""What tokenizers write in predict: `codes`, and alternatives for resolving collisions.

codes              int64 [N, S]
candidate_codes    int64 [N, topk * S], whole IDs end to end, nearest first, as TorchEasyRec's
candidate_scores   float32 [N, topk], distance of the last level: lower is nearer
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import Message
from torch import Tensor

from tzgen.config.options import options
from tzgen.errors import Problem
from tzgen.modules.quantizers import ResidualQuantizer

STRATEGY = "last_layer_knn"


@dataclass(frozen=True)
class CandidateOptions:
    """The proto SidCandidateOutputConfig."""

    enabled: bool
    topk: int
    strategy: str


def candidate_options(config: Message) -> CandidateOptions:
    return options(CandidateOptions, config.candidate_output_config)


def candidate_problems(config: Message, path: str, codebook: tuple[int, ...]) -> list[Problem]:
    """What is wrong with candidate_output_config."""
    chosen = candidate_options(config)
    if not chosen.enabled:
        return []
    problems = []
    if codebook and not 1 <= chosen.topk <= codebook[-1]:
        problems.append(
            Problem(
                f"{path}.candidate_output_config.topk",
                str(chosen.topk),
                f"1 to {codebook[-1]}, the codes of the last level",
                "Lower it.",
            )
        )
    if chosen.strategy != STRATEGY:
        problems.append(
            Problem(
                f"{path}.candidate_output_config.strategy",
                repr(chosen.strategy),
                repr(STRATEGY),
                "Remove it.",
            )
        )
    return problems


def decoded_codes(
    quantizer: ResidualQuantizer, z: Tensor, chosen: CandidateOptions
) -> dict[str, Tensor]:
    """The columns of the module docstring for vectors z [N, d] of the quantizer's space."""
    if not chosen.enabled:
        return {"codes": quantizer.encode(z)}
    codes, scores = quantizer.candidates(z, chosen.topk)
    return {
        "codes": codes[:, 0],
        "candidate_codes": codes.flatten(1),
        "candidate_scores": scores,
    }
