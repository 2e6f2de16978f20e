# SPDX-License-Identifier: Apache-2.0
"""T5 layers against dense float64 rows in plain loops; padding, steps, gradients, options."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tzgen.config import fields_match
from tzgen.modules.transformer import (
    Attention,
    Decoder,
    RaggedTransformer,
    TransformerOptions,
    ragged_tokens,
    reordered,
)
from tzgen.ops import jagged
from tzgen.protos.models.generator_model_pb2 import TransformerConfig

OPTIONS = TransformerOptions(
    d_model=12, num_heads=3, d_kv=5, d_ff=16, num_layers=2, dropout_ratio=0.1, num_buckets=8,
    max_distance=10,
)  # fmt: skip
LENGTHS = torch.tensor([5, 0, 1, 13])


def test_options_are_those_of_the_schema() -> None:
    assert fields_match(TransformerOptions, TransformerConfig.DESCRIPTOR) == []


def bucket(distance: int, *, bidirectional: bool, buckets: int = 8, far: int = 10) -> int:
    """T5's bucket of key place - query place, in plain numbers."""
    half = buckets // 2 if bidirectional else buckets
    base = half if bidirectional and distance > 0 else 0
    size = abs(distance) if bidirectional else max(-distance, 0)
    exact = half // 2
    if size < exact:
        return base + size
    wide = exact + int(math.log(size / exact) / math.log(far / exact) * (half - exact) + 1e-9)
    return base + min(wide, half - 1)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def attention(
    module: Attention, x: Tensor, keys: Tensor, table: Tensor | None, *, causal: bool
) -> Tensor:
    """x [n, D] attends to keys [m, D], by head and query."""
    heads, width = 3, 5
    q = (x @ module.q.weight.T).view(-1, heads, width)
    k, v = (keys @ module.kv.weight.T).view(-1, 2, heads, width).unbind(1)
    out = torch.zeros(len(x), heads, width, dtype=x.dtype)
    for i in range(len(x)):
        for h in range(heads):
            seen = range(i + 1) if causal else range(len(keys))
            scores = [
                q[i, h] @ k[j, h]
                + (0 if table is None else table[h, bucket(j - i, bidirectional=not causal)])
                for j in seen
            ]
            weights = torch.softmax(torch.stack(scores), 0)
            out[i, h] = sum((w * v[j, h] for w, j in zip(weights, seen, strict=True)), out[i, h])
    return out.flatten(1) @ module.out.weight.T


def plain(model, x: Tensor, encoded: Tensor | None, *, causal: bool) -> Tensor:
    """One row, float64."""
    for layer in model.layers:
        normed = norm(x, layer.norms["attend"].weight)
        x = x + attention(layer.attend, normed, normed, model.bias.weight, causal=causal)
        if encoded is not None:
            normed = norm(x, layer.norms["cross"].weight)
            x = x + attention(layer.cross, normed, encoded, None, causal=False)
        normed = norm(x, layer.norms["feed"].weight)
        x = x + (normed @ layer.feed.into.weight.T).relu() @ layer.feed.out.weight.T
    return norm(x, model.norm.weight)


def scaled(model):
    """Start values that spread scores over some units, biases and norms that are not 0 and 1."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model.double().eval()


@pytest.mark.parametrize("causal", [False, True])
def test_stack_is_the_plain_rows(causal: bool) -> None:
    model = scaled(RaggedTransformer(OPTIONS, causal=causal))
    x = torch.randn(int(LENGTHS.sum()), 12, dtype=torch.float64)
    found = model(x, jagged.offsets_of(LENGTHS), max_len=13)
    for start, stop in pairwise(jagged.offsets_of(LENGTHS).tolist()):
        if stop > start:
            wanted = plain(model, x[start:stop], None, causal=causal)
            torch.testing.assert_close(found[start:stop], wanted, rtol=1e-10, atol=1e-10)


def test_rows_do_not_depend_on_their_neighbours_or_on_max_len() -> None:
    model = scaled(RaggedTransformer(OPTIONS, causal=False))
    x = torch.randn(int(LENGTHS.sum()), 12, dtype=torch.float64)
    together = model(x, jagged.offsets_of(LENGTHS), max_len=40)
    alone = [
        model(part, torch.tensor([0, len(part)]), max_len=len(part))
        for part in x.split(LENGTHS.tolist())
        if len(part)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_decoder_is_the_plain_rows() -> None:
    model = scaled(Decoder(OPTIONS))
    encoded = torch.randn(int(LENGTHS.sum()) + 4, 12, dtype=torch.float64)
    offsets = jagged.offsets_of(LENGTHS + 1)
    x = torch.randn(4, 3, 12, dtype=torch.float64)
    found = model(x, encoded, offsets, max_len=14)
    for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
        wanted = plain(model, x[row], encoded[start:stop], causal=True)
        torch.testing.assert_close(found[row], wanted, rtol=1e-10, atol=1e-10)


def test_steps_of_the_decoder_are_its_forward_under_any_order_of_beams() -> None:
    model = scaled(Decoder(OPTIONS))
    offsets = jagged.offsets_of(LENGTHS + 1)
    encoded = torch.randn(int(offsets[-1]), 12, dtype=torch.float64)
    embedded = torch.randn(3, 7, 12, dtype=torch.float64)  # by place and code
    shared, own = model.prefill(encoded, offsets, max_len=14), None
    codes = torch.zeros(4, 1, 0, dtype=torch.int64)
    for place, beams in enumerate((1, 3, 2)):
        parents = torch.randint(codes.size(1), (4, beams))
        rows = (parents + torch.arange(4)[:, None] * codes.size(1)).flatten()
        codes = torch.cat(
            [codes.gather(1, parents[..., None].expand(-1, -1, place)),
             torch.randint(7, (4, beams, 1))], 2
        )  # fmt: skip
        own = None if own is None else reordered(own, rows, beams)
        found, own = model.step(embedded[place][codes[..., -1]], shared, own, room=3)
        for beam in range(beams):
            x = embedded[torch.arange(place + 1), codes[:, beam]]
            wanted = model(x, encoded, offsets, max_len=14)[:, -1]
            torch.testing.assert_close(found[:, beam], wanted)


def test_steps_of_a_causal_stack_are_its_forward() -> None:
    model = scaled(RaggedTransformer(OPTIONS, causal=True))
    lengths = LENGTHS + 1
    x = torch.randn(int(lengths.sum()), 12, dtype=torch.float64)
    new = torch.randn(4, 2, 3, 12, dtype=torch.float64)  # rows, beams, places
    _, shared = model.prefill(x, jagged.offsets_of(lengths), max_len=14)
    own = None
    for place in range(3):
        found, own = model.step(new[:, :, place], shared, own, room=3)
        for beam in range(2):
            rows = zip(x.split(lengths.tolist()), new[:, beam, : place + 1], strict=True)
            joined = torch.cat([part for row in rows for part in row])
            offsets = jagged.offsets_of(lengths + place + 1)
            wanted = model(joined, offsets, max_len=20)[offsets[1:] - 1]
            torch.testing.assert_close(found[:, beam], wanted)


def test_every_parameter_learns_and_dropout_is_of_training_alone() -> None:
    torch.manual_seed(0)
    encoder, decoder = RaggedTransformer(OPTIONS, causal=False), Decoder(OPTIONS)
    offsets = jagged.offsets_of(LENGTHS + 1)
    x, target = torch.randn(int(offsets[-1]), 12), torch.randn(4, 3, 12)

    def run() -> Tensor:
        return decoder(target, encoder(x, offsets, max_len=14), offsets, max_len=14)

    assert not torch.equal(run(), run())
    (run() * torch.randn(4, 3, 12)).sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    encoder.eval(), decoder.eval()
    assert torch.equal(run(), run())


def test_rows_begin_with_their_start() -> None:
    start, tokens = torch.tensor([[9.0], [8.0], [7.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    x, offsets, longest = ragged_tokens(start, tokens, torch.tensor([2, 0, 1]), max_tokens=2)
    assert x.flatten().tolist() == [9, 1, 2, 8, 7, 3]
    assert offsets.tolist() == [0, 3, 4, 6] and longest == 3
