# SPDX-License-Identifier: Apache-2.0
"""Is a package equal to eager? The saved batch, and the same rows with next to nothing in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tzgen.data.batch import Batch, Ids, Ragged
from tzgen.export.cached import Groups, cached_model
from tzgen.export.loaded import LoadedPackage
from tzgen.models.base import ragged_group
from tzgen.models.dlrm_hstu import DlrmHSTU
from tzgen.modules.stu_cache import newest_time, oldest_time
from tzgen.ops import jagged


def largest_difference(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> tuple[str, float]:
    """(output name, largest absolute difference); infinite where names, shapes or NaNs differ."""
    if set(expected) != set(found):
        return ", ".join(sorted(set(expected) ^ set(found))), float("inf")
    worst = ("", 0.0)
    for name, value in expected.items():
        other = found[name]
        if value.shape != other.shape or not torch.equal(value.isnan(), other.isnan()):
            return name, float("inf")
        difference = (value.double() - other.double()).abs().nan_to_num(0.0)
        largest = float(difference.max()) if difference.numel() else 0.0
        if largest >= worst[1]:
            worst = (name, largest)
    return worst


def edge_cases(batch: Batch, candidates: Collection[str]) -> dict[str, Batch]:
    """The batch as it is, its first row alone, all rows with one and with no step of history.

    `candidates` are the features of the candidate sequence, which keep their steps.
    """
    return {
        "as saved": batch,
        "first row": head_rows(batch, 1),
        "one-step histories": cut_sequences(batch, 1, candidates),
        "empty histories": cut_sequences(batch, 0, candidates),
    }


def head_rows(batch: Batch, count: int) -> Batch:
    """The first `count` rows; labels, weights and pass-through columns are left out."""
    ids = {name: _head_ids(value, count) for name, value in batch.ids.items()}
    dense = {
        name: _head_ragged(value, count) if isinstance(value, Ragged) else value[:count]
        for name, value in batch.dense.items()
    }
    return Batch(num_rows=min(count, batch.num_rows), ids=ids, dense=dense)


def cut_sequences(batch: Batch, keep: int, whole: Collection[str]) -> Batch:
    """Every sequence cut to its newest `keep` steps, but for those of the features in `whole`."""
    ids = {
        name: value if value.seq_lengths is None or name in whole else _cut_ids(value, keep)
        for name, value in batch.ids.items()
    }
    dense = {
        name: _cut_ragged(value, keep) if isinstance(value, Ragged) and name not in whole else value
        for name, value in batch.dense.items()
    }
    return Batch(num_rows=batch.num_rows, ids=ids, dense=dense)


def _head_ids(ids: Ids, count: int) -> Ids:
    bags = count if ids.seq_lengths is None else int(ids.seq_lengths[:count].sum())
    total = int(ids.lengths[:bags].sum())
    return replace(
        ids,
        values=ids.values[:total],
        lengths=ids.lengths[:bags],
        weights=None if ids.weights is None else ids.weights[:total],
        seq_lengths=None if ids.seq_lengths is None else ids.seq_lengths[:count],
    )


def _head_ragged(value: Ragged, count: int) -> Ragged:
    lengths = value.lengths[:count]
    return replace(value, values=value.values[: int(lengths.sum())], lengths=lengths)


def _cut_ragged(value: Ragged, keep: int) -> Ragged:
    chosen = _newest(value.lengths, keep)
    return replace(
        value,
        values=value.values[chosen],
        lengths=value.lengths.clamp(max=keep),
        max_len=min(value.max_len, keep),
    )


def _cut_ids(ids: Ids, keep: int) -> Ids:
    assert ids.seq_lengths is not None, "only sequences are cut"
    steps = _newest(ids.seq_lengths, keep)
    ends = torch.cumsum(ids.lengths, 0)
    starts = ends - ids.lengths
    of_step = torch.repeat_interleave(torch.arange(len(ids.lengths)), ids.lengths)
    wanted = torch.isin(of_step, steps) & (torch.arange(len(ids.values)) >= starts[of_step])
    return replace(
        ids,
        values=ids.values[wanted],
        lengths=ids.lengths[steps],
        weights=None if ids.weights is None else ids.weights[wanted],
        seq_lengths=ids.seq_lengths.clamp(max=keep),
        max_len=min(ids.max_len, keep),
    )


def _newest(lengths: Tensor, keep: int) -> Tensor:
    """Indices of the last `keep` steps of every row."""
    row, within = jagged.place_index(lengths, int(lengths.sum()))
    return torch.nonzero(within >= (lengths - keep)[row]).flatten()


def cached_answers(loaded: LoadedPackage, rows: Batch, case: str) -> dict[str, dict[str, Tensor]]:
    """What a package says of `rows` by encode and score, and with append between them."""
    if loaded.cached is None:
        return {}
    with torch.no_grad():
        groups = loaded.pipeline.module.embeddings(rows)
    answers = {f"{case}, encoded": loaded.score(groups, loaded.encode(groups))}
    model = cached_model(loaded.pipeline.model)
    if model is not None and not model.append_refusals:
        older, newer = split_histories(groups, model.channel.name, model.channel.oldest_first)
        if _in_order(model, older, newer):
            cache = loaded.encode(older)
            cache = cache.extended(loaded.append(newer, cache))
            answers[f"{case}, appended"] = loaded.score(groups, cache)
    return answers


def split_histories(
    groups: Groups, channel: str, oldest_first: bool
) -> tuple[dict[str, Tensor | Ragged], dict[str, Tensor | Ragged]]:
    """The groups without every row's newest event, and with nothing but it; others are in both."""
    older, newer = dict(groups), dict(groups)
    for name, value in groups.items():
        if isinstance(value, Ragged) and (name == channel or name.startswith(f"{channel}_")):
            last = _newest(value.lengths, 1) if oldest_first else _oldest(value.lengths)
            rest = torch.ones(value.values.size(0), dtype=torch.bool, device=value.values.device)
            rest[last] = False
            one = value.lengths.clamp(max=1)
            older[name] = Ragged(value.values[rest], value.lengths - one, max(value.max_len - 1, 0))
            newer[name] = Ragged(value.values[last], one, min(value.max_len, 1))
    return older, newer


def _in_order(model: DlrmHSTU, older: Groups, newer: Groups) -> bool:
    """Whether the newest events are no older than the rest, where that matters."""
    if not model.transducer.stack.orders_by_time:
        return True
    zeros = ragged_group(dict(older), model.channel.name).lengths * 0
    before, after = (model.channel.history(dict(part), zeros) for part in (older, newer))
    times = newest_time(before, zeros)
    return not bool((oldest_time(after, times) < times).any())


def _oldest(lengths: Tensor) -> Tensor:
    """Index of the first step of every row that has one."""
    return (torch.cumsum(lengths, 0) - lengths)[lengths > 0]
