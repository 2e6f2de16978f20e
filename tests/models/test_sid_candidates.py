# SPDX-License-Identifier: Apache-2.0
"""Alternatives in predict: TorchEasyRec's flat form, nearest first."""

from __future__ import annotations

import torch
from sid_world import items, problems_of, tokenizer

TEXT = "sid_rqkmeans { codebook: [6, 4] candidate_output_config { enabled: true topk: %d %s } }"


def test_candidates_share_the_prefix_and_start_with_the_code() -> None:
    model, x = tokenizer(TEXT % (3, ""), {"deep": (8,)}), items()
    model.observe({"deep": x})
    model.fit()
    found = model.predict({"deep": x}).decoded
    whole = found["candidate_codes"].view(-1, 3, 2)
    assert torch.equal(whole[:, 0], found["codes"])
    assert torch.equal(whole[..., 0], found["codes"][:, :1].expand(-1, 3))
    assert (found["candidate_scores"].diff(dim=1) >= 0).all()
    plain = tokenizer("sid_rqkmeans { codebook: [6, 4] }", {"deep": (8,)})
    assert set(plain.predict({"deep": x}).decoded) == {"codes"}


def test_wrong_options_are_named() -> None:
    widths = {"deep": (8,)}
    rqvae = "sid_rqvae { codebook: [6, 4] candidate_output_config { enabled: true topk: 5 } }"
    losses = " losses { recon_loss {} } losses { commitment_loss {} }"
    assert any("topk: found 5" in p for p in problems_of(rqvae + losses, widths))
    other = TEXT % (2, 'strategy: "random"')
    assert any("strategy" in p for p in problems_of(other, widths))
    assert any("topk: found 9" in p for p in problems_of(TEXT % (9, ""), widths))
