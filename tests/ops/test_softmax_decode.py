# SPDX-License-Identifier: Apache-2.0
"""Steps of decoding with beams against whole sequences, whatever beams descend from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tzgen.ops.softmax_attention import (
    BeamKeys,
    MaskSpec,
    SharedKeys,
    softmax_attention_reference,
    softmax_attention_step,
)

PROMPTS = [4, 0, 7, 1]
BATCH, HEADS, WIDTH, VALUE, STEPS = 4, 2, 6, 5, 4
BEAMS = [3, 3, 5, 2]  # of each step


class Beams:
    """What every beam has seen, as lists, beside the cache."""

    def __init__(self, *, prompt: bool, bias: bool, dtype: torch.dtype = torch.float64) -> None:
        self.make = torch.Generator().manual_seed(0)
        self.dtype = dtype
        self.k, self.v = self.normal(sum(PROMPTS), WIDTH), self.normal(sum(PROMPTS), VALUE)
        self.offsets = torch.tensor([0, *PROMPTS]).cumsum(0)
        self.shared = None
        if prompt:
            self.shared = SharedKeys.pad(self.k, self.v, self.offsets, max_len=9)
        self.bias = None
        if bias:
            self.bias = torch.randn(HEADS, 7, generator=self.make, dtype=torch.float64).to(dtype)
        self.seen: list[list[list[tuple[Tensor, Tensor]]]] = [
            [[] for _ in range(BEAMS[0])] for _ in range(BATCH)
        ]

    def normal(self, tokens: int, width: int) -> Tensor:
        size = (tokens, HEADS, width)
        return torch.randn(size, generator=self.make, dtype=torch.float64).to(self.dtype)

    def tokens(self, beams: int, width: int) -> Tensor:
        return self.normal(BATCH * beams, width).view(BATCH, beams, HEADS, width)

    def descend(self, parents: Tensor) -> None:
        self.seen = [
            [list(self.seen[row][beam]) for beam in parents[row].tolist()] for row in range(BATCH)
        ]

    def see(self, k: Tensor, v: Tensor) -> None:
        for row in range(BATCH):
            for beam in range(k.size(1)):
                self.seen[row][beam].append((k[row, beam], v[row, beam]))

    def want(self, q: Tensor) -> Tensor:
        """The last output of each beam's whole sequence under the causal mask."""
        out = torch.zeros(BATCH, q.size(1), HEADS, VALUE, dtype=self.dtype)
        for row in range(BATCH):
            prompt = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
            before = (self.k[prompt], self.v[prompt]) if self.shared else (self.k[:0], self.v[:0])
            for beam in range(q.size(1)):
                own = zip(*self.seen[row][beam], strict=True)
                k, v = (torch.cat([a, torch.stack(b)]) for a, b in zip(before, own, strict=True))
                queries = torch.zeros_like(k)
                queries[-1] = q[row, beam]
                offsets = torch.tensor([0, k.size(0)])
                options = {"scale": 0.7, "mask": MaskSpec(), "position_bias": self.bias}
                whole = softmax_attention_reference(queries, k, v, offsets, **options)
                out[row, beam] = whole[-1]
        return out


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("prompt", [False, True], ids=["encoder-decoder", "decoder only"])
def test_steps_are_the_last_outputs_of_whole_sequences(prompt: bool, bias: bool) -> None:
    world = Beams(prompt=prompt, bias=bias)
    own = BeamKeys.room(world.tokens(BEAMS[0], WIDTH), VALUE, tokens=STEPS)
    for step, beams in enumerate(BEAMS):
        if step:
            parents = torch.randint(0, BEAMS[step - 1], (BATCH, beams), generator=world.make)
            own = own.reordered(parents)
            world.descend(parents)
        q, k, v = (world.tokens(beams, width) for width in (WIDTH, WIDTH, VALUE))
        own = own.appended(k, v)
        world.see(k, v)
        options = {"scale": 0.7, "shared": world.shared, "position_bias": world.bias}
        got = softmax_attention_step(q, own=own, **options)
        torch.testing.assert_close(got, world.want(q), rtol=1e-10, atol=1e-10)
    assert own.length == STEPS
    with pytest.raises(ValueError, match="room for 4 tokens"):
        own.appended(k, v)


def test_beams_attend_across_to_what_they_share() -> None:
    """The encoder's output is read by all beams of a row; a row without any gives zeros."""
    world = Beams(prompt=True, bias=False)
    q = world.tokens(3, WIDTH)
    got = softmax_attention_step(q, scale=0.7, shared=world.shared)
    want = softmax_attention_reference(
        q.flatten(0, 1),
        world.k,
        world.v,
        torch.arange(BATCH + 1) * 3,
        scale=0.7,
        key_offsets=world.offsets,
    )
    torch.testing.assert_close(got.flatten(0, 1), want)
    assert not got[PROMPTS.index(0)].any()
    assert world.shared is not None and world.shared.k.shape == (BATCH, HEADS, 9, WIDTH)


def test_halves() -> None:
    world = Beams(prompt=True, bias=True, dtype=torch.bfloat16)
    q, k, v = (world.tokens(3, width) for width in (WIDTH, WIDTH, VALUE))
    own = BeamKeys.room(q, VALUE, tokens=1).appended(k, v)
    world.see(k, v)
    options = {"scale": 0.7, "shared": world.shared, "position_bias": world.bias}
    got = softmax_attention_step(q, own=own, **options)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, world.want(q), rtol=3e-2, atol=3e-2)


class Step(nn.Module):
    """A step over padded prompts and one earlier token of each beam."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, own_k: Tensor, own_v: Tensor
    ) -> Tensor:
        shared = SharedKeys(k, v, lengths)
        own = BeamKeys(own_k, own_v, length=2)
        return softmax_attention_step(q, scale=0.7, shared=shared, own=own)


def test_a_step_exports_with_dynamic_rows_and_prompts() -> None:
    def inputs(batch: int, prompt: int) -> tuple[Tensor, ...]:
        make = torch.Generator().manual_seed(batch)
        sizes = [
            (batch, 3, HEADS, WIDTH),
            (batch, HEADS, prompt, WIDTH),
            (batch, HEADS, prompt, VALUE),
            (batch, 3, HEADS, 2, WIDTH),
            (batch, 3, HEADS, 2, VALUE),
        ]
        q, k, v, own_k, own_v = (torch.randn(size, generator=make) for size in sizes)
        lengths = torch.randint(0, prompt + 1, (batch,), generator=make)
        return q, k, v, lengths, own_k, own_v

    auto = torch.export.Dim.AUTO
    shapes = ({0: auto}, {0: auto, 2: auto}, {0: auto, 2: auto}, *[{0: auto}] * 3)
    step = Step().eval()
    program = torch.export.export(step, inputs(3, 5), dynamic_shapes=shapes, strict=False)
    for other in (inputs(7, 11), inputs(1, 1)):
        torch.testing.assert_close(program.module()(*other), step(*other))


def test_refusals() -> None:
    world = Beams(prompt=True, bias=True)
    q = world.tokens(2, WIDTH)
    with pytest.raises(ValueError, match="got neither"):
        softmax_attention_step(q, scale=1.0)
    with pytest.raises(ValueError, match="has no places"):
        softmax_attention_step(q, scale=1.0, shared=world.shared, position_bias=world.bias)
    with pytest.raises(ValueError, match="append its key"):
        softmax_attention_step(q, scale=1.0, own=BeamKeys.room(q, VALUE, tokens=2))
