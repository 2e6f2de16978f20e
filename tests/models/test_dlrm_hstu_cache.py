# SPDX-License-Identifier: Apache-2.0
"""DlrmHSTU with caches: encode, score, append and predict by groups equal the plain forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from dense_hstu import User
from hstu_configs import INTERLEAVE, PARAMETERIZED, VARIANTS, WATCHTIME, hstu, preprocessor
from hstu_model import WIDTHS, config, groups, model, people
from torch import Tensor

from tzgen.embeddings import Groups, Ragged
from tzgen.errors import UserError
from tzgen.models import dlrm_hstu
from tzgen.models.base import Outputs
from tzgen.models.dlrm_hstu import DlrmHSTU
from tzgen.modules.stu_cache import EncodedHistory
from tzgen.protos import module_pb2

SIZES = [(5, 3), (0, 2), (9, 1), (4, 0), (1, 7)]
STABLE = {
    "plain": hstu("append_stable: true", positions=""),
    "biased": hstu("append_stable: true relative_bias {}", positions=""),
    "interleaved": hstu(
        "append_stable: true relative_bias {}",
        positions="",
        inputs=preprocessor(INTERLEAVE, actions=WATCHTIME),
    ),
    "parameterized": hstu(
        "append_stable: true", positions="", inputs=preprocessor(mlp=PARAMETERIZED)
    ),
    "mtgr": hstu("append_stable: true relative_bias {}", positions="", extra="mtgr {}"),
}


def made(message: module_pb2.HSTU, extra: str = "") -> DlrmHSTU:
    return model(config(message, extra)).eval()


def close(got: Outputs, want: Outputs, atol: float = 1e-10) -> None:
    assert set(got.logits) == set(want.logits)
    for task, expected in want.logits.items():
        torch.testing.assert_close(got.logits[task], expected, rtol=0, atol=atol)
    assert got.repeat is not None and want.repeat is not None
    assert torch.equal(got.repeat, want.repeat)


def only(given: Groups, *prefixes: str) -> Groups:
    return {name: value for name, value in given.items() if name.startswith(prefixes)}


def between(users: list[User], start: list[int], stop: list[int]) -> list[User]:
    """Events [start, stop) of each user."""
    return [
        replace(
            user,
            uih=user.uih[a:b],
            times=user.times[a:b],
            actions=user.actions[a:b],
            watchtimes=user.watchtimes[a:b],
        )
        for user, a, b in zip(users, start, stop, strict=True)
    ]


def turned(users: list[User]) -> list[User]:
    """The same rows, stored newest first."""
    return [
        replace(
            user,
            uih=user.uih.flip(0),
            times=user.times[::-1],
            candidates=user.candidates.flip(0),
            candidate_times=user.candidate_times[::-1],
            actions=user.actions[::-1],
            watchtimes=user.watchtimes[::-1],
        )
        for user in users
    ]


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_predict_is_the_forward(name: str) -> None:
    """For every variant, at chunks that cut rows, end with them and hold all."""
    built = made(VARIANTS[name])
    given = groups(people(SIZES))
    want = built(given)
    for size in (1, 4, 100):
        built.micro_batch = size
        close(built.predict(given), want)
    built, given = built.float(), {k: _single(v) for k, v in given.items()}
    built.micro_batch = 4
    close(built.predict(given), built(given), atol=1e-5)


def _single(value: Tensor | Ragged) -> Tensor | Ragged:
    if isinstance(value, Ragged):
        real = value.values.is_floating_point()
        return value.with_values(value.values.float()) if real else value
    return value.float()


@torch.no_grad()
@pytest.mark.parametrize("name", ["production", "interleaved", "mtgr", "paper", "truncated"])
@pytest.mark.parametrize("oldest_first", [True, False])
def test_parts_of_the_groups_are_enough(name: str, oldest_first: bool) -> None:
    """encode reads no candidates (but for their time), score no history and no contextual."""
    extra = f"sequence_timestamp_is_ascending: {str(oldest_first).lower()}"
    built = made(VARIANTS[name], extra)
    users = people(SIZES)
    given = groups(users if oldest_first else turned(users))
    want = built(given)
    cache = built.encode(only(given, "contextual", "uih", "candidate_timestamp"))
    close(built.score(only(given, "candidate"), cache), want)


@torch.no_grad()
def test_the_request_time_can_be_given() -> None:
    built = made(hstu())
    given = groups(people(SIZES))
    times = built.events(given).query_time
    history = only(given, "contextual", "uih")
    close(built.score(only(given, "candidate"), built.encode(history, times)), built(given))
    with pytest.raises(UserError, match=r"use_time_encoding.*request_time"):
        built.encode(history)
    made(hstu(positions="")).encode(history)  # nobody reads ages


@torch.no_grad()
def test_candidates_after_the_encoded_request_are_refused() -> None:
    built = made(hstu())
    given = groups(people(SIZES))
    cache = built.encode(given, built.events(given).query_time - 1)
    with pytest.raises(UserError, match=r"row 0, 1, 2, 4: .*use_time_encoding"):
        built.score(only(given, "candidate"), cache)


@torch.no_grad()
@pytest.mark.parametrize("name", STABLE)
@pytest.mark.parametrize("oldest_first", [True, False])
def test_appending_by_groups_is_recomputing(name: str, oldest_first: bool) -> None:
    extra = f"sequence_timestamp_is_ascending: {str(oldest_first).lower()}"
    built = made(STABLE[name], extra)
    users = people(SIZES)

    def given(rows: list[User]) -> Groups:
        return groups(rows if oldest_first else turned(rows))

    kept, ends = [2, 0, 9, 1, 0], [size for size, _ in SIZES]
    cache = built.encode(given(between(users, [0] * 5, kept)))
    fresh = given(between(users, kept, ends))
    delta = built.append(only(fresh, "uih"), cache)
    assert torch.equal(delta.lengths * 1, (cache.extended(delta).lengths - cache.lengths))
    close(built.score(only(fresh, "candidate"), cache.extended(delta)), built(given(users)))
    built.append(fresh, cache)  # the same contextual features may be there


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (hstu(), ["stu.append_stable (false)", "positional_encoder.use_time_encoding (true)"]),
        (hstu(positions=""), ["stu.append_stable (false)"]),
        (hstu("append_stable: true"), ["positional_encoder.use_time_encoding (true)"]),
        (
            hstu("append_stable: true max_attn_len: 2 full_attn_tail: 1", positions=""),
            ["stu.full_attn_tail (1)"],
        ),
    ],
)
@torch.no_grad()
def test_appending_to_an_unstable_model_names_the_fields(
    message: module_pb2.HSTU, fields: list[str]
) -> None:
    built = made(message)
    given = groups(people(SIZES))
    cache = built.encode(given)
    with pytest.raises(UserError, match="cannot be appended") as raised:
        built.append(given, cache)
    for field in fields:
        assert field in str(raised.value)


def _other_features(given: Groups, cache: EncodedHistory) -> None:
    value = given["contextual"]
    assert isinstance(value, Tensor)
    given["contextual"] = value + torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])[:, None]


def _older_events(given: Groups, cache: EncodedHistory) -> None:
    value = given["uih_timestamp"]
    assert isinstance(value, Ragged)
    given["uih_timestamp"] = value.with_values(value.values * 0)


def _fewer_rows(given: Groups, cache: EncodedHistory) -> None:
    given.update(groups(people(SIZES[:2])))
    given.pop("contextual")


BAD_APPENDS: dict[str, tuple[Callable[[Groups, EncodedHistory], None], str]] = {
    "other contextual features": (_other_features, "row 1: group contextual is not"),
    "older events": (_older_events, r"row 0, 2: new events are older"),
    "fewer rows": (_fewer_rows, "2 rows and the cache 5"),
}


@torch.no_grad()
@pytest.mark.parametrize("name", BAD_APPENDS)
def test_appends_that_do_not_belong_to_the_cache_are_refused(name: str) -> None:
    change, message = BAD_APPENDS[name]
    built = made(STABLE["mtgr"])
    users = people(SIZES)
    kept = [2, 0, 4, 4, 1]
    cache = built.encode(groups(between(users, [0] * 5, kept)))
    fresh = groups(between(users, kept, [size for size, _ in SIZES]))
    change(fresh, cache)
    with pytest.raises(UserError, match=message):
        built.append(fresh, cache)


@torch.no_grad()
def test_score_wants_the_rows_of_the_cache() -> None:
    built = made(hstu(positions=""))
    cache = built.encode(groups(people(SIZES)))
    with pytest.raises(UserError, match="2 rows and the cache 5"):
        built.score(groups(people(SIZES[:2])), cache)


@torch.no_grad()
def test_what_predict_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain forward for next to no history, chunks for many candidates or when told so."""
    built = made(hstu())
    given = groups(people(SIZES))
    seen: list[str] = []
    transducer = built.transducer
    for name in ("forward", "encode_user", "score"):
        inner = getattr(transducer, name)
        monkeypatch.setattr(
            transducer, name, lambda *a, n=name, f=inner: (seen.append(n), f(*a))[1]
        )

    def calls() -> list[str]:
        seen.clear()
        built.predict(given)
        return list(seen)

    assert calls() == ["forward"]
    built.micro_batch = 5
    assert calls() == ["encode_user", "score", "score", "score"]
    built.micro_batch = 0
    monkeypatch.setattr(dlrm_hstu, "CACHE_FROM", 10)
    assert calls() == ["encode_user", "score"]
    monkeypatch.setattr(dlrm_hstu, "CACHE_FROM", 1000)
    monkeypatch.setattr(dlrm_hstu, "CHUNK", 7)
    assert calls() == ["encode_user", "score", "score"]


@torch.no_grad()
def test_batches_without_candidates_or_rows() -> None:
    built = made(hstu(), "score_micro_batch: 3")
    out = built.predict(groups(people([(3, 0), (0, 0)])))
    assert out.logits["click"].shape == (0,) and out.logits["kind"].shape == (0, 3)
    given = groups(people([(0, 0)]))
    for key, value in given.items():
        cut = value[:0] if isinstance(value, Tensor) else Ragged(value.values, value.lengths[:0], 0)
        given[key] = cut
    assert built.predict(given).logits["click"].shape == (0,)
    cache = built.encode(given, given["uih"].lengths)
    assert built.score(given, cache).logits["click"].shape == (0,)


@torch.no_grad()
def test_without_contextual_features() -> None:
    widths = {name: width for name, width in WIDTHS.items() if name != "contextual"}
    built = model(config(STABLE["biased"]), widths).eval()
    users = people(SIZES)
    kept, ends = [2, 0, 9, 1, 0], [size for size, _ in SIZES]
    cache = built.encode(groups(between(users, [0] * 5, kept)))
    cache = cache.extended(built.append(groups(between(users, kept, ends)), cache))
    close(built.score(groups(users), cache), built(groups(users)))


@torch.no_grad()
def test_memory_of_scoring_follows_the_chunk() -> None:
    """The largest tensor of a chunked prediction is smaller than that of the plain forward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.is_floating_point() and out.dim() == 2:
                self.rows = max(self.rows, out.size(0))
            return out

    built = made(hstu(positions=""), "score_micro_batch: 8")
    given = groups(people([(12, 90), (9, 70)]))
    with Largest() as chunked:
        built.predict(given)
    with Largest() as whole:
        built(given)
    assert whole.rows >= 160 + 21 + 4
    assert chunked.rows <= 160  # the candidates themselves, as they came in


def test_score_micro_batch_comes_from_the_config() -> None:
    assert made(hstu(), "score_micro_batch: 17").micro_batch == 17
    assert made(hstu()).micro_batch == 0


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["PYTORCH", "CPU_TORCH"])
def test_predict_under_autocast(kernel: str) -> None:
    """Keys and values are cached in the reduced dtype; attention keeps its own, and its bias."""
    built = made(VARIANTS["paper"], "score_micro_batch: 4").float()
    for layer in built.transducer.stack.layers:
        layer.kernel = kernel
    given = {name: _single(value) for name, value in groups(people(SIZES)).items()}
    exact = built(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert built.encode(given).layers[0].k.dtype == torch.bfloat16
        got, plain = built.predict(given), built(given)
    for task, want in exact.logits.items():
        torch.testing.assert_close(got.logits[task].float(), want, rtol=0.1, atol=0.1)
        torch.testing.assert_close(got.logits[task], plain.logits[task], rtol=0.05, atol=0.05)


@torch.no_grad()
def test_caches_are_for_inference() -> None:
    """Under grad mode caches are refused: nothing would be learned from them."""
    built = made(VARIANTS["paper"])
    with torch.enable_grad(), pytest.raises(ValueError, match="no gradients"):
        built.score(groups(people(SIZES)), built.encode(groups(people(SIZES))))
