# SPDX-License-Identifier: Apache-2.0
"""Pages against plain Python lists of tokens, and what a failed write leaves behind: nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tzgen.modules.kv_cache import CacheFull, CacheShape, PagedKVCache
from tzgen.ops.hstu_attention_cached.reference import cached_row

SHAPE = CacheShape(num_layers=2, num_heads=2, attention_dim=3, hidden_dim=5, page_size=4)


def make(pages: int = 8, shape: CacheShape = SHAPE) -> PagedKVCache:
    return PagedKVCache(shape, num_pages=pages)


def tokens(
    counts: list[int], shape: CacheShape = SHAPE
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Random k and v of every layer, and the offsets of their rows."""
    total = sum(counts)
    k = [torch.randn(total, shape.num_heads, shape.attention_dim) for _ in range(shape.num_layers)]
    v = [torch.randn(total, shape.num_heads, shape.hidden_dim) for _ in range(shape.num_layers)]
    return k, v, torch.tensor([0, *counts]).cumsum(0)


def put(
    cache: PagedKVCache, handles: list[int], counts: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    k, v, offsets = tokens(counts, cache.shape)
    with cache.write(handles, counts) as write:
        for layer in range(cache.shape.num_layers):
            write.layer(layer, k[layer], v[layer], offsets)
        write.commit()
    return k, v


def held(cache: PagedKVCache, handle: int, layer: int) -> tuple[Tensor, Tensor]:
    view = cache.views([handle])[layer]
    return cached_row(view.k, view, 0), cached_row(view.v, view, 0)


def test_ragged_writes_read_back_in_every_layer() -> None:
    cache = make(20)
    a, b, c = (cache.create() for _ in range(3))
    wanted: dict[int, list[list[Tensor]]] = {h: [[], []] for h in (a, b, c)}
    for handles, counts in (([a, b, c], [5, 0, 9]), ([c, a], [1, 3]), ([b], [4]), ([a, b], [1, 1])):
        k, v = put(cache, handles, counts)
        start = 0
        for handle, count in zip(handles, counts, strict=True):
            for layer in range(2):
                part = slice(start, start + count)
                joined = torch.cat([k[layer][part].flatten(1), v[layer][part].flatten(1)], dim=1)
                wanted[handle][layer].append(joined)
            start += count
    views = cache.views([c, a, b])
    assert [view.lengths.tolist() for view in views] == [[10, 9, 5]] * 2
    assert views[0].table is views[1].table and views[0].max_len == 10
    for handle, layers in wanted.items():
        for layer, parts in enumerate(layers):
            got_k, got_v = held(cache, handle, layer)
            assert torch.equal(torch.cat([got_k.flatten(1), got_v.flatten(1)], 1), torch.cat(parts))


def test_only_the_first_tokens_of_longer_rows_are_kept() -> None:
    cache = make()
    handles = [cache.create(), cache.create()]
    k, v, offsets = tokens([6, 4])  # two candidates at the end of each row
    with cache.write(handles, [4, 2]) as write:
        for layer in range(2):
            write.layer(layer, k[layer], v[layer], offsets)
        write.commit()
    assert torch.equal(held(cache, handles[0], 0)[0], k[0][:4])
    assert torch.equal(held(cache, handles[1], 1)[1], v[1][6:8])


def test_timestamps_lie_beside_the_tokens() -> None:
    cache = make(shape=replace(SHAPE, timestamps=True))
    handle = cache.create()
    k, v, offsets = tokens([5])
    times = torch.arange(5) + (1 << 40)
    with cache.write([handle], [5]) as write:
        for layer in range(2):
            write.layer(layer, k[layer], v[layer], offsets)
        with pytest.raises(ValueError, match="lacks timestamps"):
            write.commit()
        write.timestamps(times, offsets)
        write.commit()
    view = cache.views([handle])[1]
    assert view.timestamps is not None
    assert torch.equal(cached_row(view.timestamps, view, 0), times)


def test_a_failed_write_leaves_nothing() -> None:
    cache = make(4)
    handle = cache.create()
    first, _ = put(cache, [handle], [6])
    k, v, offsets = tokens([7])
    with pytest.raises(KeyError, match="lost"), cache.write([handle], [7]) as write:
        write.layer(0, k[0], v[0], offsets)
        assert cache.used_pages == 4
        raise KeyError("lost")
    assert cache.length(handle) == 6 and cache.used_pages == 2
    assert torch.equal(held(cache, handle, 0)[0], first[0])
    with cache.write([handle], [1]):  # left without commit
        pass
    assert cache.length(handle) == 6
    again, _ = put(cache, [handle], [7])
    assert torch.equal(held(cache, handle, 0)[0], torch.cat([first[0], again[0]]))


def test_a_view_does_not_change_by_a_later_commit() -> None:
    cache = make()
    handle = cache.create()
    first, _ = put(cache, [handle], [3])
    view = cache.views([handle])[0]
    put(cache, [handle], [6])
    assert torch.equal(cached_row(view.k, view, 0), first[0])


def test_a_write_without_room_changes_nothing() -> None:
    cache = make(3)
    a, b = cache.create(), cache.create()
    put(cache, [a], [8])
    with (
        pytest.raises(CacheFull, match="1 free pages of 3, and the write needs 2") as full,
        cache.write([a, b], [1, 1]),
    ):
        pytest.fail("there is no room")
    assert (full.value.needed, full.value.free) == (2, 1)
    assert cache.used_pages == 2 and cache.length(b) == 0
    put(cache, [b], [4])
    cache.free(a)
    put(cache, [b], [8])
    assert cache.used_pages == 3


def test_bytes() -> None:
    cache = PagedKVCache.within(SHAPE, byte_budget=10_000)
    assert SHAPE.page_bytes == 4 * 2 * 2 * (3 + 5) * 4  # tokens, layers, heads, widths, float32
    assert replace(SHAPE, timestamps=True).page_bytes == SHAPE.page_bytes + 4 * 8
    assert cache.num_pages == 10_000 // SHAPE.page_bytes
    pools = [*cache._k, *cache._v]
    assert cache.capacity_bytes == sum(pool.numel() * 4 for pool in pools) <= 10_000
    handle = cache.create()
    put(cache, [handle], [5])
    assert cache.used_bytes == cache.bytes_of(handle) == 2 * SHAPE.page_bytes
    with pytest.raises(ValueError, match="holds no page: one of 4 tokens takes 512 bytes"):
        PagedKVCache.within(SHAPE, byte_budget=100)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8])
def test_page_borders(count: int) -> None:
    cache = make()
    handle = cache.create()
    k, _ = put(cache, [handle], [count])
    more, _ = put(cache, [handle], [1])
    assert cache.pages_needed(handle, 0) == 0 and cache.pages_needed(None, 5) == 2
    assert cache.used_pages == -(-(count + 1) // 4)
    assert torch.equal(held(cache, handle, 1)[0], torch.cat([k[1], more[1]]))


def test_pages_are_used_again_and_low_ones_first() -> None:
    cache = make(6)
    a, b = cache.create(), cache.create()
    put(cache, [a, b], [8, 8])
    cache.free(a)
    c = cache.create()
    put(cache, [c], [12])
    assert cache.views([c])[0].table is not None
    assert cache.views([c])[0].table.tolist() == [[0, 1, 4]]
    assert c not in (a, b)


def test_what_is_refused() -> None:
    cache = make()
    a, b = cache.create(), cache.create()
    k, v, offsets = tokens([2])
    with pytest.raises(ValueError, match="no sequence 99"):
        cache.views([99])
    with pytest.raises(ValueError, match="once at a time"), cache.write([a, a], [1, 1]):
        pass
    with pytest.raises(ValueError, match="one count"), cache.write([a], [1, 1]):
        pass
    with pytest.raises(ValueError, match="one count"), cache.write([a], [-1]):
        pass
    with cache.write([a], [2]) as write:
        with pytest.raises(ValueError, match="being written"):
            cache.free(a)
        with pytest.raises(ValueError, match="once at a time"), cache.write([b, a], [1, 1]):
            pass
        with pytest.raises(ValueError, match=r"holds torch\.float32; got k torch\.float64"):
            write.layer(0, k[0].double(), v[0], offsets)
        with pytest.raises(ValueError, match=r"keeps \[2\] tokens; the rows have \[1, 1\]"):
            write.layer(0, k[0], v[0], torch.tensor([0, 1, 2]))
        with pytest.raises(ValueError, match=r"have \[1\]"):
            write.layer(0, k[0], v[0], torch.tensor([0, 1]))
        with pytest.raises(ValueError, match="without timestamps"):
            write.timestamps(torch.zeros(2, dtype=torch.int64), offsets)
        write.layer(1, k[1], v[1], offsets)
        with pytest.raises(ValueError, match="lacks layer 0"):
            write.commit()
        write.layer(0, k[0], v[0], offsets)
        write.commit()
        with pytest.raises(ValueError, match="committed before"):
            write.commit()
    cache.free(a)
    with pytest.raises(ValueError, match="freed, or never made"):
        cache.length(a)
    with pytest.raises(ValueError, match="needs room"):
        make(0)


def test_random_lives_against_lists() -> None:
    """Appends, frees and failed writes at random; freed pages are poisoned."""
    cache, choose = make(12), random.Random(5)
    model: dict[int, Tensor] = {}
    for _ in range(300):
        step = choose.random()
        if step < 0.2:
            model[cache.create()] = torch.zeros(0, 2, 3)
        elif step < 0.35 and model:
            handle = choose.choice(list(model))
            pages = cache._sequence(handle).pages
            cache.free(handle)
            cache._k[0][pages] = torch.nan
            del model[handle]
        elif model:
            handles = choose.sample(list(model), k=min(len(model), choose.randint(1, 3)))
            counts = [choose.randint(0, 6) for _ in handles]
            k, v, offsets = tokens(counts)
            fails = choose.random() < 0.3
            try:
                with cache.write(handles, counts) as write:
                    for layer in range(2):
                        write.layer(layer, k[layer], v[layer], offsets)
                    if not fails:
                        write.commit()
            except CacheFull as full:
                assert full.needed > cache.free_pages
                fails = True
            if not fails:
                for row, handle in enumerate(handles):
                    new = k[0][int(offsets[row]) : int(offsets[row + 1])]
                    model[handle] = torch.cat([model[handle], new])
        assert cache.used_pages == sum(SHAPE.pages_of(x.size(0)) for x in model.values())
        for handle, want in model.items():
            assert torch.equal(held(cache, handle, 0)[0], want)


@pytest.mark.parametrize("between", [False, True], ids=["one piece", "two pieces"])
@pytest.mark.parametrize("held", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("new", [0, 1, 4, 9])
def test_a_write_of_one_sequence_lies_where_its_pages_do(
    held: int, new: int, between: bool
) -> None:
    """Pages of four tokens that follow each other, or with another sequence's page between."""
    cache = PagedKVCache(CacheShape(1, 1, 1, 1, page_size=4), num_pages=8)
    first, other = cache.create(), cache.create()
    values = torch.arange(1.0, held + new + 1).view(-1, 1, 1)
    for handle, part in (
        (first, values[:held]),
        (other, -values[:between]),
        (first, values[held:]),
    ):
        offsets = torch.tensor([0, part.size(0)])
        with cache.write([handle], [part.size(0)]) as write:
            assert isinstance(write._slots, slice) or (between and handle == first)
            write.layer(0, part, part * 2, offsets)
            write.commit()
    (view,) = cache.views([first])
    assert view.table is not None
    assert torch.equal(view.k[view.table[0]].flatten(0, 1)[: held + new], values)
    assert torch.equal(view.v[view.table[0]].flatten(0, 1)[: held + new], values * 2)
