# SPDX-License-Identifier: Apache-2.0
"""The decoder's cached steps equal running every prefix anew."""

from __future__ import annotations

import torch
from small_decoder import HEADS, LAYERS, WIDTH, Decoder

from tzgen.decoding import BeamOptions, BeamState, Trie, beam_search


def test_a_cached_search_equals_one_that_starts_anew_at_every_level() -> None:
    sizes = (5, 6, 4)
    codes = torch.cartesian_prod(*(torch.arange(size) for size in sizes))[::2]
    trie, decoder = Trie.from_codes(codes, sizes), Decoder(sizes).eval()
    shared = [
        (torch.randn(3, HEADS, 7, WIDTH // HEADS), torch.randn(3, HEADS, 7, WIDTH // HEADS))
        for _ in range(LAYERS)
    ]

    def anew(level: int, state: BeamState) -> torch.Tensor:
        step, own = decoder.searcher(shared), torch.arange(3 * state.num_beams)
        first = BeamState(state.codes[:, :1, :0], None)
        logits = step(0, first)
        spread = torch.arange(3).repeat_interleave(state.num_beams)
        for depth in range(1, level + 1):
            rows = spread if depth == 1 else own
            logits = step(depth, BeamState(state.codes[:, :, :depth], rows))
        return logits

    with torch.no_grad():
        want = beam_search(anew, trie, 3, BeamOptions(beams=6))
        got = beam_search(decoder.searcher(shared), trie, 3, BeamOptions(beams=6))
    assert torch.equal(got.codes, want.codes)
    torch.testing.assert_close(got.scores, want.scores)
