# SPDX-License-Identifier: Apache-2.0
"""STU layers as a decoder: steps of beams equal the whole forward, and copy no keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tzgen.models.genrec import stu_options
from tzgen.modules.stu_beams import STUDecoder, one_page_a_row, seen_by_beams
from tzgen.modules.stu_cache import gathered
from tzgen.ops import jagged
from tzgen.protos.module_pb2 import STU

LENGTHS = torch.tensor([1, 4, 9])
PAPER = {"preset": STU.PAPER}
WINDOW = {"max_attn_len": 3, "use_group_norm": True}


def decoder(more: dict[str, object]) -> STUDecoder:
    torch.manual_seed(0)
    shape = {"embedding_dim": 8, "num_heads": 2, "hidden_dim": 4, "attention_dim": 3}
    made = STUDecoder(
        stu_options(STU(**shape, **more)), num_layers=2, max_seq_len=16, input_dropout_ratio=0.2
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return made.eval()


@pytest.mark.parametrize("more", [PAPER, WINDOW, {"sla_k1": 2, "sla_k2": 2}])
def test_steps_in_any_order_of_beams_are_the_forward(more: dict[str, object]) -> None:
    model = decoder(more)
    x = torch.randn(int(LENGTHS.sum()), 8)
    offsets = jagged.offsets_of(LENGTHS)
    embedded = torch.randn(3, 7, 8)  # by place and code
    with torch.no_grad():
        states, shared = model.prefill(x, offsets, max_len=11)
        torch.testing.assert_close(states, model(x, offsets, max_len=9))
        own, codes = None, torch.zeros(3, 1, 0, dtype=torch.int64)
        for place, beams in enumerate((3, 5, 2)):
            parents = torch.randint(codes.size(1), (3, beams))
            rows = (parents + torch.arange(3)[:, None] * codes.size(1)).flatten()
            before = codes.gather(1, parents[..., None].expand(-1, -1, place))
            codes = torch.cat([before, torch.randint(7, (3, beams, 1))], 2)
            own = None if own is None else model.reorder(own, rows, beams)
            new = embedded[place][codes[..., -1]]
            found, own = model.step(new, shared, own, room=3)
            for beam in range(beams):
                tail = embedded[torch.arange(place + 1), codes[:, beam]]
                parts = zip(x.split(LENGTHS.tolist()), tail, strict=True)
                joined = torch.cat([part for row in parts for part in row])
                ends = jagged.offsets_of(LENGTHS + place + 1)
                wanted = model(joined, ends, max_len=13)[ends[1:] - 1]
                torch.testing.assert_close(found[:, beam], wanted, rtol=1e-5, atol=1e-5)


def test_pages_hold_the_rows_and_beams_repeat_the_table_alone() -> None:
    model = decoder(PAPER)
    x, offsets = torch.randn(int(LENGTHS.sum()), 8), jagged.offsets_of(LENGTHS)
    with torch.no_grad():
        _, shared = model.prefill(x, offsets, max_len=9)
    page = shared[0]
    assert page.k.shape[:2] == (3, 16) and page.table.tolist() == [[0], [1], [2]]
    contiguous = gathered(page)
    torch.testing.assert_close(one_page_a_row(contiguous).k, page.k)
    beams = seen_by_beams(page, 4)
    assert beams.k.data_ptr() == page.k.data_ptr() and beams.table.shape == (12, 1)
    assert torch.equal(gathered(replace(beams, table=beams.table[::4], lengths=LENGTHS)).v,
                       contiguous.v)  # fmt: skip
