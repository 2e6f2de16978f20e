# SPDX-License-Identifier: Apache-2.0
"""HSTU once more, one user at a time and as plain as possible: what the modules are compared with.

It takes weights from the modules and nothing else: masks, positions and biases are loops over pairs
of tokens, written from the specification (design, TorchEasyRec's STU, the MTGR and HSTU papers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzgen.modules.contextual_mlp import ParameterizedContextualizedMLP, SimpleContextualizedMLP
from tzgen.modules.sequence import Events
from tzgen.modules.stu import STULayer
from tzgen.modules.transducer import HSTUOptions, HSTUTransducer


def pair_visible(
    i: int,
    j: int,
    *,
    length: int,
    targets: int,
    contextual: int = 0,
    window: int = 0,
    keeps_contextual: bool = True,
    stable: bool = False,
    times: list[int] | None = None,
    realtime: int = 0,
    sla: tuple[int, int] = (0, 0),
    tail: int = 0,
) -> bool:
    """Whether token i sees token j; `times` turns MTGR's mask on, `sla` semi-local attention."""
    history_end = length - targets
    if i == j:
        return True
    if j >= history_end:
        return False  # a candidate is seen by itself only
    if sla != (0, 0):
        if i >= history_end:
            return True
        return j < i and (j < max(sla[1], contextual) or j >= i - sla[0] + 1)
    static_end = max(history_end - realtime, contextual) if realtime else contextual
    if times is not None:
        seen = j < static_end or (i >= static_end and times[j] < times[i])
    elif i < contextual:
        return j < contextual or not stable
    else:
        seen = min(i, history_end) > j
    if window and seen and not (tail and i >= history_end - tail):
        shift = max(contextual - 1, 0)
        distance = max(min(i, history_end) - shift, 0) - max(j - shift, 0)
        seen = distance <= window or (keeps_contextual and j < contextual)
    return seen


def pair_mask(length: int, **rule: object) -> Tensor:
    seen = [
        [pair_visible(i, j, length=length, **rule) for j in range(length)]  # type: ignore[arg-type]
        for i in range(length)
    ]
    return torch.tensor(seen, dtype=torch.bool).view(length, length)


@dataclass
class User:
    """One row, oldest event first."""

    uih: Tensor  # [n, Du]
    times: list[int]
    candidates: Tensor  # [m, Dc]
    candidate_times: list[int]
    contextual: Tensor | None = None  # [C, Dx]
    actions: list[int] = field(default_factory=list)
    watchtimes: list[float] = field(default_factory=list)

    @property
    def query_time(self) -> int:
        return [0, *self.times, *self.candidate_times][-1]


def random_users(
    sizes: list[tuple[int, int]],
    *,
    uih_dim: int = 6,
    candidate_dim: int = 6,
    contextual: tuple[int, int] = (0, 0),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> list[User]:
    """One user per (events, candidates); `contextual` = (tokens, width)."""
    make = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, dtype=dtype)

    def integers(high: int, count: int) -> list[int]:
        return torch.randint(0, high, (count,), generator=make).tolist()

    users = []
    for events, candidates in sizes:
        start = 1_700_000_000 + integers(10**6, 1)[0]
        times = sorted(start + step for step in integers(50_000, events))
        requests = sorted(start + step for step in integers(80_000, candidates))
        users.append(
            User(
                uih=normal(events, uih_dim),
                times=times,
                candidates=normal(candidates, candidate_dim),
                candidate_times=requests,
                contextual=normal(*contextual) if contextual[0] else None,
                actions=integers(8, events),
                watchtimes=[float(value) for value in integers(60, events)],
            )
        )
    return users


def batch_events(users: list[User], **changes: object) -> Events:
    """The users as one batch."""
    lengths = [user.uih.size(0) for user in users]
    counts = [user.candidates.size(0) for user in users]
    contextual = [user.contextual for user in users if user.contextual is not None]
    fields: dict[str, object] = {
        "uih": torch.cat([user.uih for user in users]),
        "uih_lengths": torch.tensor(lengths),
        "uih_timestamps": _int64(time for user in users for time in user.times),
        "candidates": torch.cat([user.candidates for user in users]),
        "num_candidates": torch.tensor(counts),
        "candidate_timestamps": _int64(t for user in users for t in user.candidate_times),
        "query_time": _int64(user.query_time for user in users),
        "max_uih_len": max(lengths),
        "max_candidates": max(counts),
        "contextual": torch.stack(contextual) if contextual else None,
        "actions": _int64(action for user in users for action in user.actions),
        "watchtimes": torch.tensor([time for user in users for time in user.watchtimes]),
    }
    return Events(**{**fields, **changes})  # type: ignore[arg-type]


def dense_transducer(transducer: HSTUTransducer, options: HSTUOptions, user: User) -> Tensor:
    """States of the user's candidates [m, D], dropout off."""
    pre = transducer.preprocessor
    flat = None if user.contextual is None else user.contextual.flatten()
    context = user.contextual
    tokens: list[Tensor] = []
    if context is not None:
        for slot in range(context.size(0)):
            weight, bias = pre.contextual_weight[slot], pre.contextual_bias[slot, 0]
            tokens.append(context[slot] @ weight + bias)
    prefix = len(tokens)
    times = [0] * prefix
    uih, candidates = _content(pre, options, user)
    interleave = bool(getattr(pre, "interleave", False))
    encoder = pre.action_encoder
    for index in range(len(user.times)):
        content = _mlp(pre.content_mlp, uih[index], flat)
        action = None
        if encoder is not None:
            action = _mlp(pre.action_mlp, _action(encoder, user, index), flat)
        if interleave:
            tokens += [content, action]
            times += [user.times[index]] * 2
        else:
            tokens.append(content if action is None else content + action)
            times.append(user.times[index])
    history_end = len(tokens)
    slots = []
    for index in range(len(user.candidate_times)):
        content = _mlp(pre.content_mlp, candidates[index], flat)
        if encoder is not None and not interleave:
            content = content + _mlp(pre.action_mlp, encoder.dummy.flatten(), flat)
        slots.append(len(tokens))
        tokens.append(content)
        times.append(user.candidate_times[index])
        if interleave:  # training form of TorchEasyRec: an action token that nobody reads
            tokens.append(torch.full_like(content, 0.7 * (index + 1)))
            times.append(user.candidate_times[index])
    if not tokens:
        return torch.zeros(0, options.stu.embedding_dim, dtype=user.uih.dtype)
    x = torch.stack(tokens)
    x = _positions(transducer, x, times, prefix, history_end, user.query_time)
    targets = len(tokens) - history_end
    for number, layer in enumerate(transducer.stack.layers):
        if number and number == options.attn_truncation_split_layer:
            gone = max(x.size(0) - targets - prefix - options.attn_truncation_tail_len, 0)
            x = torch.cat([x[:prefix], x[prefix + gone :]])
            times = times[:prefix] + times[prefix + gone :]
            slots = [slot - gone for slot in slots]
        x = _layer(layer, options, x, times, prefix, targets)
    states = x[slots] if slots else x[:0]
    return _postprocess(transducer, states, user.candidate_times)


def _content(pre: nn.Module, options: HSTUOptions, user: User) -> tuple[Tensor, Tensor]:
    name, _ = options.input_preprocessor.chosen.content_encoder.content_encoder
    encoder = pre.content_encoder
    if name == "slice_content_encoder":
        return user.uih, user.candidates[:, : user.uih.size(1)]
    if name == "pad_content_encoder":
        filler = [encoder.filler.expand(user.uih.size(0), -1)] if encoder.filler is not None else []
        return torch.cat([user.uih, *filler], dim=1), user.candidates
    return encoder.uih_mlp.layers(user.uih), encoder.target_mlp.layers(user.candidates)


def _action(encoder: nn.Module, user: User, index: int) -> Tensor:
    mask = user.actions[index]
    for threshold, bit in encoder.derived:
        if user.watchtimes[index] >= threshold:
            mask |= bit
    parts = []
    for row, bit in enumerate(encoder.weights.tolist()):
        vector = encoder.embeddings[row]
        parts.append(vector if mask & bit else torch.zeros_like(vector))
    return torch.cat(parts)


def _norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    dims = tuple(range(-len(module.normalized_shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    scale = (centred.square().mean(dims, keepdim=True) + module.eps).rsqrt()
    return centred * scale * module.weight + module.bias


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    out = x @ module.weight.T
    return out if module.bias is None else out + module.bias


def _mlp(module: nn.Module, x: Tensor, contextual: Tensor | None) -> Tensor:
    if isinstance(module, SimpleContextualizedMLP):
        first, swish, second, last = module.mlp
        hidden = _linear(first, x)
        hidden = hidden * torch.sigmoid(_norm(swish.norm, hidden))
        return _norm(last, _linear(second, hidden))
    assert isinstance(module, ParameterizedContextualizedMLP)
    assert contextual is not None
    compressed = _linear(module.compress, contextual)
    weights = _norm(module.weights_norm, _linear(module.weights, compressed).view(module.shape))
    first, swish, second = module.bias
    hidden = _linear(first, compressed)
    hidden = hidden * torch.sigmoid(_norm(swish.norm, hidden))
    return x @ weights + _linear(second, hidden)


def _positions(
    transducer: HSTUTransducer,
    x: Tensor,
    times: list[int],
    prefix: int,
    history_end: int,
    query_time: int,
) -> Tensor:
    encoder = transducer.positions
    if encoder is None:
        return x
    last = encoder.position.size(0) - 1
    rows = []
    for i in range(x.size(0)):
        row = x[i] * math.sqrt(x.size(1))
        if encoder.time is None:
            row = row + encoder.position[min(i, history_end, last)]
        else:
            place = i if i < prefix else max(history_end - i, 0) + prefix
            row = row + encoder.position[min(place, last)]
            age = max(query_time - times[i], 0) / encoder.options.time_bucket_increments
            log = encoder.options.time_bucket_fn == "log"
            squeezed = math.log(max(age, 1.0)) if log else math.sqrt(age)
            row = row + encoder.time[min(int(squeezed), encoder.options.num_time_buckets)]
        rows.append(row)
    return torch.stack(rows)


def _layer(
    layer: STULayer, options: HSTUOptions, x: Tensor, times: list[int], prefix: int, targets: int
) -> Tensor:
    stu, length, mtgr = options.stu, x.size(0), options.mtgr
    history_end = length - targets
    heads, hidden, attention = stu.num_heads, stu.hidden_dim, stu.attention_dim
    domains = [0 if i < prefix else 1 if i < history_end else 2 for i in range(length)]
    uvqk = _linear(layer.uvqk, _layer_norm(layer.input_norm, x, domains, heads))
    named = dict(zip("uvqk", uvqk.split(layer.widths, dim=1), strict=True))
    letters = stu.activated or {"PRODUCTION": "u", "PAPER": "uvqk"}[stu.preset]
    for letter in letters:
        named[letter] = named[letter] * torch.sigmoid(named[letter])
    alpha = stu.attn_alpha or (1.0 if stu.preset == "PAPER" else 1 / math.sqrt(attention))
    seen = pair_mask(
        length,
        targets=targets,
        contextual=prefix if stu.contextual_seq_len < 0 else stu.contextual_seq_len,
        window=stu.max_attn_len or 0,
        keeps_contextual=stu.window_keeps_contextual,
        stable=stu.append_stable,
        times=times if mtgr is not None and mtgr.timestamp_mask else None,
        realtime=(mtgr.realtime_len or 0) if mtgr is not None and mtgr.timestamp_mask else 0,
        sla=(stu.sla_k1 or 0, stu.sla_k2 or 0),
        tail=stu.full_attn_tail,
    )
    outs = []
    for head in range(heads):
        q = named["q"][:, head * attention : (head + 1) * attention]
        k = named["k"][:, head * attention : (head + 1) * attention]
        v = named["v"][:, head * hidden : (head + 1) * hidden]
        scores = alpha * q @ k.T + relative_bias(layer, head, times, prefix, history_end, x)
        weights = scores * torch.sigmoid(scores) / layer.divisor
        outs.append(torch.where(seen, weights, torch.zeros_like(weights)) @ v)
    attended = torch.cat(outs, dim=1)
    gated = named["u"] * _layer_norm(layer.output_norm, attended, domains, heads)
    if layer.output_form == "CONCAT_UOX":
        gated = torch.cat([named["u"], attended, gated], dim=1)
    return x + gated @ layer.output.weight.T


def _layer_norm(module: nn.Module, x: Tensor, domains: list[int], heads: int) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return _norm(module, x)
    if x.size(1) != module.weight.size(-1) and module.weight.dim() == 1:  # per head
        parts = x.unflatten(1, (heads, -1))
        normed = F.layer_norm(parts, parts.shape[2:], eps=module.eps)
        return (normed * module.weight[:, None] + module.bias[:, None]).flatten(1)
    rows = [
        F.layer_norm(x[i], x.shape[1:], module.weight[d], module.bias[d], module.eps)
        for i, d in enumerate(domains)
    ]
    return torch.stack(rows)


def relative_bias(
    layer: STULayer, head: int, times: list[int], prefix: int, history_end: int, like: Tensor
) -> Tensor:
    """rab [n, n] of one head, by loops over pairs."""
    length = len(times)
    total = torch.zeros(length, length, dtype=like.dtype)
    bias = layer.relative_bias
    if bias is None:
        return total
    rows = []
    for i in range(length):
        row = []
        for j in range(length):
            value = total[i, j]
            if i >= prefix and j >= prefix:
                if bias.position is not None:
                    reach = bias.position.size(1) // 2
                    distance = min(j, history_end) - min(i, history_end)
                    value = value + bias.position[head, max(min(distance, reach), -reach) + reach]
                if bias.time is not None:
                    following = i
                    if i < history_end and not layer.mask.append_stable:
                        following = min(i + 1, history_end - 1)
                    gap = max(abs(times[following] - times[j]), 1)
                    bucket = int(math.log(gap) / bias.time_bucket_divisor)
                    value = value + bias.time[head, min(bucket, bias.time.size(1) - 1)]
            row.append(value)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _postprocess(transducer: HSTUTransducer, states: Tensor, times: list[int]) -> Tensor:
    post = transducer.postprocessor
    name = type(post).__name__
    if name == "L2NormPostprocessor":
        return states / states.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6)
    if name == "TimestampLayerNormPostprocessor":
        waves = []
        for time in times:
            row = []
            for unit, period in zip(post.units.tolist(), post.periods.tolist(), strict=True):
                phase = 2 * math.pi * ((time // unit) % period) / period
                row += [math.cos(phase), math.sin(phase)]
            waves.append(row)
        extra = torch.tensor(waves, dtype=states.dtype).view(len(times), 2 * post.units.numel())
        states = _linear(post.combine, torch.cat([states, extra], dim=1))
    return _norm(post.norm, states)


def _int64(values: object) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)  # type: ignore[call-overload]
