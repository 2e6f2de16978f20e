# SPDX-License-Identifier: Apache-2.0
"""overlap_feature: how far the terms of a query and of a title agree, for all rows at once.

N bags; terms are coded as integers over both columns. An empty query or title has overlap 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tzgen.features.bags import I64, Bags, align, ranges, starts_of, text, within
from tzgen.features.cross import steps_of
from tzgen.features.raw import Normalizer, normalised

F64 = NDArray[np.float64]
_NEVER = np.iinfo(np.int64).max // 4


@dataclass(frozen=True)
class Terms:
    """Codes [T] in bags of lengths [N]; `size` is above every code."""

    codes: I64
    lengths: I64
    size: int

    @property
    def bag(self) -> I64:
        return np.repeat(np.arange(self.lengths.size), self.lengths)

    @property
    def keys(self) -> I64:
        """Codes made unique to their bag."""
        return self.bag * self.size + self.codes


@dataclass(frozen=True)
class Overlap:
    method: str
    normalizer: Normalizer | None

    def __call__(self, inputs: Sequence[Bags]) -> Bags:
        query, title = align(inputs)
        both = pa.concat_arrays([text(query.values), text(title.values)]).dictionary_encode()
        codes, size = both.indices.to_numpy().astype(np.int64), len(both.dictionary) + 1
        cut = len(query.values)
        first = Terms(codes[:cut], query.all_lengths(), size)
        second = Terms(codes[cut:], title.all_lengths(), size)
        values = METHODS[self.method](first, second)
        return normalised(Bags(values, None, steps_of([query, title])), self.normalizer)


def _share(of: Terms, among: Terms) -> F64:
    """The share of the terms `of` that are `among`."""
    hits = np.bincount(of.bag[np.isin(of.keys, among.keys)], minlength=of.lengths.size)
    return hits / np.maximum(of.lengths, 1)


def _index_of(query: Terms, title: Terms) -> F64:
    """Where the query first occurs in the title as a whole; -1 where it does not."""
    places = np.where(query.lengths > 0, np.maximum(title.lengths - query.lengths + 1, 0), 0)
    place_bag = np.repeat(np.arange(places.size), places)
    place = within(places)
    per_place = query.lengths[place_bag]
    in_query = ranges(starts_of(query.lengths)[place_bag], per_place)
    in_title = ranges(starts_of(title.lengths)[place_bag] + place, per_place)
    differ = (query.codes[in_query] != title.codes[in_title]).astype(np.int64)
    out = np.full(places.size, np.inf)
    if per_place.size:
        same = np.add.reduceat(differ, starts_of(per_place)) == 0
        np.minimum.at(out, place_bag[same], place[same])
    return np.where(np.isinf(out), -1.0, out)


def _is_contain(query: Terms, title: Terms) -> F64:
    return (_index_of(query, title) >= 0).astype(np.float64)


def _is_equal(query: Terms, title: Terms) -> F64:
    return _is_contain(query, title) * (query.lengths == title.lengths)


def _distinct(terms: Terms) -> Terms:
    """Each term of a bag once."""
    keys = np.unique(terms.keys)
    lengths = np.bincount(keys // terms.size, minlength=terms.lengths.size).astype(np.int64)
    return Terms(keys % terms.size, lengths, terms.size)


def _min_cover(query: Terms, title: Terms) -> F64:
    """Terms in the shortest stretch of the title with every query term; 0 where there is none."""
    query = _distinct(query)
    following = _following(query, title)  # [(bag, query term, place)]
    counts = query.lengths * title.lengths
    bag = np.repeat(np.arange(counts.size), counts)
    place = within(counts) % np.maximum(title.lengths, 1)[bag]
    end = np.zeros(title.codes.size, np.int64)
    np.maximum.at(end, starts_of(title.lengths)[bag] + place, following)
    length = end - within(title.lengths) + 1
    out = np.full(counts.size, _NEVER)
    asked = query.lengths[title.bag] > 0
    np.minimum.at(out, title.bag[asked], length[asked])
    return np.where(out > title.lengths, 0, out).astype(np.float64)


def _following(query: Terms, title: Terms) -> I64:
    """The next place of each query term at or after each place of the title; _NEVER for none."""
    counts = np.repeat(title.lengths, query.lengths)  # places per (bag, query term)
    term_bag = query.bag
    at = ranges(starts_of(title.lengths)[term_bag], counts)
    term = np.repeat(np.arange(counts.size), counts)
    place = within(counts)
    found = np.where(title.codes[at] == query.codes[term], place, _NEVER)
    # A running minimum from the right; each segment is lifted above the ones to its right.
    lift = (counts.size - term) * (int(title.lengths.max(initial=0)) + 1)
    limit = int(title.lengths.max(initial=0))
    lowered = np.minimum(found, limit) - lift
    running = np.minimum.accumulate(lowered[::-1])[::-1] + lift
    return np.where(running >= limit, _NEVER, running)


def _distances(query: Terms, title: Terms) -> tuple[I64, I64]:
    """(bag, distance) of every pair of distinct query terms of the title, at their closest."""
    query = _distinct(query)
    places = _occurrences(query, title)
    term, place = places
    pairs_bag, gaps, first, second = _closest(query.bag[term], term, place)
    key = np.stack([first, second])
    if not gaps.size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.lexsort((gaps, key[1], key[0]))
    key, gaps, pairs_bag = key[:, order], gaps[order], pairs_bag[order]
    fresh = np.concatenate([[True], (np.diff(key, axis=1) != 0).any(axis=0)])
    return pairs_bag[fresh], gaps[fresh]


def _occurrences(query: Terms, title: Terms) -> tuple[I64, I64]:
    """(query term, place in the title) of every title term that the query has."""
    order = np.argsort(query.keys)
    keys = query.keys[order]
    if not keys.size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    at = np.searchsorted(keys, title.keys)
    at[at == keys.size] = 0
    hit = np.flatnonzero(keys[at] == title.keys)
    return order[at[hit]], within(title.lengths)[hit]


def _closest(bag: I64, term: I64, place: I64) -> tuple[I64, I64, I64, I64]:
    """(bag, gap, first term, second term) of all pairs of occurrences of different terms."""
    counts = np.bincount(bag) if bag.size else np.empty(0, np.int64)
    order = np.argsort(bag, kind="stable")
    starts = starts_of(counts)
    left = np.repeat(order, counts[bag[order]])
    right = order[ranges(starts[bag[order]], counts[bag[order]])] if order.size else order
    keep = term[left] < term[right]
    left, right = left[keep], right[keep]
    return bag[left], np.abs(place[left] - place[right]), term[left], term[right]


def _proximity(combine: str) -> Callable[[Terms, Terms], F64]:
    def compute(query: Terms, title: Terms) -> F64:
        bag, gaps = _distances(query, title)
        n = title.lengths.size
        count = np.bincount(bag, minlength=n)
        out = np.bincount(bag, weights=gaps, minlength=n) / np.maximum(count, 1)
        if combine != "avg":
            out = np.full(n, np.inf if combine == "min" else -np.inf)
            (np.minimum if combine == "min" else np.maximum).at(out, bag, gaps.astype(np.float64))
        return np.where(count > 0, out, title.lengths + 1.0)

    return compute


METHODS: dict[str, Callable[[Terms, Terms], F64]] = {
    "query_common_ratio": _share,
    "title_common_ratio": lambda query, title: _share(title, query),
    "is_contain": _is_contain,
    "is_equal": _is_equal,
    "index_of": _index_of,
    "proximity_min_cover": _min_cover,
    "proximity_min_dist": _proximity("min"),
    "proximity_max_dist": _proximity("max"),
    "proximity_avg_dist": _proximity("avg"),
}
