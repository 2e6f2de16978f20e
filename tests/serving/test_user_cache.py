# SPDX-License-Identifier: Apache-2.0
"""What of a user's history is used again, what is evicted, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tzgen.errors import UserError
from tzgen.modules.kv_cache import CacheShape, PagedKVCache
from tzgen.serving.user_cache import CacheBudgetError, History, UserCache

SHAPE = CacheShape(num_layers=1, num_heads=1, attention_dim=2, hidden_dim=2, page_size=4)


def make(pages: int = 10, append_stable: bool = True) -> UserCache:
    return UserCache(PagedKVCache(SHAPE, num_pages=pages), append_stable=append_stable)


def history(*ids: int, context: int | None = None) -> History:
    """Events at times 10, 20, ...."""
    times = torch.arange(1, len(ids) + 1) * 10
    extra = () if context is None else (torch.tensor([context]),)
    return History((torch.tensor(ids, dtype=torch.int64), times), extra)


def serve(
    cache: UserCache, users: Sequence[str], histories: Sequence[History], version: str = "v1"
) -> tuple[str, ...]:
    """Write what is missing, one token an event whose key is the event's id; check what is held."""
    with cache.request(users, version, histories) as request:
        new = [len(h) - done for h, done in zip(histories, request.cached, strict=True)]
        if not request.complete:
            fresh = [h.events[0][d:] for h, d in zip(histories, request.cached, strict=True)]
            k = torch.cat(fresh).float()[:, None, None].expand(-1, 1, 2)
            with request.write(new) as write:
                write.layer(0, k, k, torch.tensor([0, *new]).cumsum(0))
                write.commit()
        view = request.views()[0]
        assert view.table is not None
        for row, one in enumerate(histories):
            pages = view.k[view.table[row]].flatten(0, 1)[: len(one), 0, 0]
            assert view.lengths[row] == len(one)
            assert torch.equal(pages, one.events[0].float()), f"row {row} holds other events"
    return request.kinds


def test_hit_append_miss_and_their_counts() -> None:
    cache = make()
    assert serve(cache, ["a", "b"], [history(1, 2, 3), history(5)]) == ("MISS", "MISS")
    assert serve(cache, ["b", "a"], [history(5), history(1, 2, 3, 4)]) == ("HIT", "APPEND")
    assert serve(cache, ["c", "a"], [history(), history(1, 2, 3, 4)]) == ("MISS", "HIT")
    assert serve(cache, ["c"], [history(8, 9)]) == ("APPEND",)
    got = cache.statistics()
    assert (got.hits, got.appends, got.misses, got.changed) == (2, 2, 3, 0)
    assert (got.reused_events, got.new_events) == (1 + 3 + 4, 4 + 1 + 0 + 2)
    assert got.users == 3 and got.used_bytes == 3 * SHAPE.page_bytes


@pytest.mark.parametrize(
    "present",
    [
        pytest.param(history(1, 9, 3), id="another event"),
        pytest.param(history(2, 3, 4), id="the window slid"),
        pytest.param(history(1, 2), id="shorter"),
        pytest.param(history(), id="empty"),
        pytest.param(history(1, 2, 3, context=1), id="context"),
        pytest.param(History((torch.tensor([1, 2, 3]), torch.tensor([10, 20, 31]))), id="time"),
        pytest.param(History((torch.tensor([1, 2, 3, 4]).int(), torch.arange(4))), id="dtype"),
    ],
)
def test_a_history_that_changed_is_encoded_anew(present: History) -> None:
    cache = make()
    serve(cache, ["a"], [history(1, 2, 3)])
    assert serve(cache, ["a"], [present]) == ("CHANGED",)
    assert serve(cache, ["a"], [present]) == ("HIT",)
    assert cache.pages.used_pages == (1 if len(present) else 0)


def test_an_unstable_model_never_appends() -> None:
    cache = make(append_stable=False)
    serve(cache, ["a"], [history(1, 2)])
    assert serve(cache, ["a"], [history(1, 2)]) == ("HIT",)
    assert serve(cache, ["a"], [history(1, 2, 3)]) == ("CHANGED",)


def test_another_version_never_hits() -> None:
    cache = make()
    serve(cache, ["a", "b"], [history(1), history(2)])
    assert serve(cache, ["a"], [history(1)], version="v2") == ("MISS",)
    assert serve(cache, ["a"], [history(1)]) == ("HIT",)
    assert cache.keep_only("v2") == 2
    assert serve(cache, ["a"], [history(1)], version="v2") == ("HIT",)
    assert serve(cache, ["a"], [history(1)]) == ("MISS",)
    assert cache.forget("a") == 2 and cache.statistics().users == 0
    assert cache.pages.used_pages == 0


def test_the_least_recently_used_go_first() -> None:
    cache = make(pages=4)
    for user in "abcd":
        serve(cache, [user], [history(1)])
    serve(cache, ["a"], [history(1)])
    serve(cache, ["e"], [history(1, 2, 3, 4, 5)])  # two pages: b and c go
    kinds = {}
    for user in "ad":
        kinds[user] = serve(cache, [user], [history(1)])
    assert kinds == {"a": ("HIT",), "d": ("HIT",)}
    assert cache.statistics().evictions == 2
    assert serve(cache, ["b"], [history(1)]) == ("MISS",)


def test_a_request_keeps_its_own_users() -> None:
    """The oldest entries are in the request: the others make room, however new they are."""
    cache = make(pages=4)
    for user in "abcd":
        serve(cache, [user], [history(1)])
    longer = history(1, 2, 3, 4, 5)
    assert serve(cache, ["a", "b"], [longer, longer]) == ("APPEND", "APPEND")
    assert cache.statistics().users == 2


def test_users_beyond_the_budget_are_refused() -> None:
    cache = make(pages=3)
    serve(cache, ["a"], [history(1, 2)])
    message = r"user big alone needs 4 pages \(256 bytes\) of the KV cache, and the cache holds 3"
    with pytest.raises(CacheBudgetError, match=message):
        serve(cache, ["big"], [history(*range(13))])
    with pytest.raises(CacheBudgetError, match=r"2 users need 4 more pages .* send fewer users"):
        serve(cache, ["x", "y"], [history(*range(5)), history(*range(5))])
    with pytest.raises(CacheBudgetError, match="user a alone needs 4 pages"):
        serve(cache, ["a"], [history(*range(1, 14))])
    assert serve(cache, ["a"], [history(1, 2)]) == ("HIT",), "a refused append takes nothing"
    assert cache.pages.used_pages == 1


def test_a_refusal_evicts_nobody() -> None:
    cache = make(pages=3)
    for user in "abc":
        serve(cache, [user], [history(1)])
    with pytest.raises(CacheBudgetError):
        serve(cache, ["big"], [history(*range(13))])
    assert cache.statistics().evictions == 0 and cache.statistics().users == 3


def test_a_failed_request_leaves_the_cache_as_it_was() -> None:
    cache = make()
    serve(cache, ["a"], [history(1, 2, 3)])
    longer = history(1, 2, 3, 4, 5)
    with (
        pytest.raises(KeyError),
        cache.request(["a", "new"], "v1", [longer, longer]) as request,
        request.write([2, 5]),
    ):
        assert request.views()[0].lengths.tolist() == [3, 0]
        raise KeyError("lost")
    assert cache.statistics().users == 1 and cache.pages.used_pages == 1
    with cache.request(["a"], "v1", [longer]) as request, request.write([2]):
        pass  # no commit
    assert serve(cache, ["a", "new"], [longer, longer]) == ("APPEND", "MISS")


def test_what_is_refused() -> None:
    cache = make()
    with (
        pytest.raises(UserError, match="user a is in this request"),
        cache.request(["a", "a"], "v1", [history(1), history(1)]),
    ):
        pass
    with cache.request(["a"], "v1", [history(1)]) as request:
        with pytest.raises(UserError, match="twice"), cache.request(["a"], "v1", [history(1)]):
            pass
        with pytest.raises(ValueError, match="nothing is cached of user a: write first"):
            request.views()
        with request.write([0]) as write:
            write.layer(0, *[torch.zeros(0, 1, 2)] * 2, torch.tensor([0, 0]))
            write.commit()
        with pytest.raises(ValueError, match="written before"), request.write([1]):
            pass
        with pytest.raises(UserError, match="open request"):
            cache.forget("a")
        assert cache.keep_only("v2") == 0, "what is in use stays"
    with (
        pytest.raises(ValueError, match="2 users, but 1 histories"),
        cache.request(["a", "b"], "v1", [history(1)]),
    ):
        pass
    with pytest.raises(ValueError, match="one number of events"):
        History((torch.zeros(2), torch.zeros(3)))


def test_digest_reads_what_it_says() -> None:
    one = history(1, 2, 3)
    assert one.digest(2) == history(1, 2).digest(2) == history(1, 2, 9).digest(2)
    assert one.digest(2) != one.digest(3)
    columns = torch.tensor([[1, 10], [2, 20], [3, 30]])
    strided = History((columns[:, 0], columns[:, 1]))
    assert strided.digest(3) == one.digest(3)
    vectors = History((torch.randn(3, 4), torch.tensor([True, False, True])))
    assert vectors.digest(1) != vectors.digest(2)
