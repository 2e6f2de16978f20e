# SPDX-License-Identifier: Apache-2.0
"""FLOPs against formulas that are written out by hand from the sizes in worlds.py."""

from __future__ import annotations

import importlib
import itertools
import pkgutil

import pytest
import torch

from checking.worlds import HSTU, hstu_rows, tried
from tzgen.checking.dry_run import DryRun
from tzgen.checking.flops import FORMULAS, flop_counter, visible_pairs
from tzgen.ops import hstu_attention as attention
from tzgen.ops.hstu_attention.mask import MaskSpec, dense_mask
from tzgen.ops.jagged_dense_bmm import jagged_dense_bmm_broadcast_add
from tzgen.ops.softmax_attention import softmax_attention
from tzgen.ops.stu_linear import stu_input

EVENTS, SHOWN = [3, 6, 0, 1], [1, 3, 2, 1]  # of HSTU's rows, after truncation
NO_PRODUCTS = {"embedding_lookup", "dropout"}  # look up and add; multiply by a mask
SERVING = {"hstu_attention_cached"}  # not called by a dry run


def total(run: DryRun, prefix: str) -> int:
    return sum(run.flops[prefix].values())


def test_tower_by_hand(tower: DryRun) -> None:
    """4 rows, [user 4 | age 3] -> 5 -> 6 -> 1, a multiply-add is two."""
    assert total(tower, "Global") == 4 * 2 * (7 * 5 + 5 * 6 + 6 * 1)


def test_stu_stack_by_hand(hstu: DryRun) -> None:
    """Two layers of D 10, H 2, hidden 5, attention 3 over [2 contextual | events | candidates]."""
    tokens = [2 + n + t for n, t in zip(EVENTS, SHOWN, strict=True)]
    pairs = 0
    for n, t in zip(EVENTS, SHOWN, strict=True):
        contextual = 2 * (2 + n)  # see the whole history
        history = sum(2 + at for at in range(1, n + 1))  # the prefix, earlier ones, themselves
        pairs += contextual + history + t * (2 + n + 1)
    uvqk = 2 * sum(tokens) * 10 * (2 * 2 * 5 + 2 * 2 * 3)
    attend = 2 * pairs * 2 * (3 + 5)
    output = 2 * sum(tokens) * (3 * 2 * 5) * 10
    stack = "head.model.transducer.stack"
    assert total(hstu, stack) == 2 * (uvqk + attend + output)
    assert hstu.flops[stack][torch.ops.tzgen.hstu_attention] == 2 * attend


def test_other_parts_by_hand(hstu: DryRun) -> None:
    events, shown = sum(EVENTS), sum(SHOWN)
    contextual = 2 * 4 * 2 * 12 * 10  # 4 rows, each of 2 tokens by its own [12, 10]
    content = 2 * (events + shown) * (8 * 6 + 6 * 10)
    actions = 2 * (events + 4) * (8 * 6 + 6 * 10)  # one dummy a row
    preprocessor = contextual + content + actions
    assert total(hstu, "head.model.transducer.preprocessor") == preprocessor
    item = 2 * shown * (8 * 16 + 16 * 10)
    assert total(hstu, "head.model.item_mlp") == item
    tower = 2 * shown * (10 * 14 + 14 * 2)
    stack = total(hstu, "head.model.transducer.stack")
    assert total(hstu, "Global") == preprocessor + stack + item + tower


def test_flops_follow_the_rows(hstu: DryRun, tmp_path) -> None:  # type: ignore[no-untyped-def]
    twice = tried(tmp_path, HSTU.replace("batch_size: 4", "batch_size: 8"), hstu_rows(2))
    assert total(twice, "Global") == 2 * total(hstu, "Global")


SPECS = [
    MaskSpec(),
    MaskSpec(contextual_len=2),
    MaskSpec(contextual_len=2, max_attn_len=3),
    MaskSpec(contextual_len=2, append_stable=True),
    MaskSpec(contextual_len=1, timestamp_mask=True, realtime_len=3),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_pairs_are_those_of_the_mask(spec: MaskSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    from tzgen.checking import flops

    monkeypatch.setattr(flops, "QUERIES", 4)  # blocks smaller than a row
    lengths, targets = [9, 3, 0, 9, 14], [2, 1, 0, 2, 4]
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    times = torch.randint(0, 6, (sum(lengths),)) if spec.timestamp_mask else None
    expected = 0
    for start, n, t in zip(offsets.tolist(), lengths, targets, strict=False):
        own = None if times is None else times[start : start + n]
        expected += int(dense_mask(n, t, spec, own).sum())
    assert visible_pairs(offsets, torch.tensor(targets), spec, times) == expected


def test_attention_without_candidates() -> None:
    q = torch.randn(5, 2, 3, requires_grad=True)
    v = torch.randn(5, 2, 4)
    with flop_counter() as counter:
        attention.hstu_attention(
            q, q, v, torch.tensor([0, 2, 5]), max_len=3, alpha=1.0, divisor=1.0, mask=MaskSpec()
        )
    assert counter.get_total_flops() == 2 * (3 + 6) * 2 * (3 + 4)


def test_weights_of_each_row() -> None:
    with flop_counter() as counter:
        jagged_dense_bmm_broadcast_add(
            torch.randn(5, 3), torch.tensor([0, 2, 5]), torch.randn(2, 3, 4), torch.randn(2, 4)
        )
    assert counter.get_total_flops() == 2 * 5 * 3 * 4


@pytest.mark.parametrize(("wanted", "width"), [("uvqk", 2 + 2 + 3 + 3), ("vk", 2 + 3)])
def test_projection_to_what_is_wanted(wanted: str, width: int) -> None:
    """The dispatcher hands arguments over without those that have their default value."""
    x, norm, weight = torch.randn(5, 4), torch.randn(4), torch.randn(10, 4)
    with flop_counter() as counter:
        bias, widths = torch.randn(10), (2, 2, 3, 3)
        stu_input(x, norm, norm, weight, bias, widths=widths, wanted=wanted)
    assert counter.get_total_flops() == 2 * 5 * 4 * width


def test_every_op_is_counted_or_has_nothing_to_count() -> None:
    """A new op with products inside would silently count as none."""
    import tzgen.ops

    for module in pkgutil.iter_modules(tzgen.ops.__path__):
        importlib.import_module(f"tzgen.ops.{module.name}")  # registers
    names = {str(name) for name in torch._C._dispatch_get_all_op_names()}
    ours = {n.split("::")[1].split(".")[0] for n in names if n.startswith("tzgen::")}
    forward = {name for name in ours if "backward" not in name and not name.endswith("_grad")}
    assert forward - NO_PRODUCTS - SERVING == set(FORMULAS)


def test_softmax_attention() -> None:
    """Rows of 2 and 3 queries; all pairs, all pairs of two sequences, or causal ones."""
    q, v = torch.randn(5, 2, 3), torch.randn(5, 2, 4)
    longer = torch.randn(9, 2, 3), torch.randn(9, 2, 4)
    offsets, keys = torch.tensor([0, 2, 5]), torch.tensor([0, 1, 9])
    options = {"max_len": 3, "scale": 1.0}
    for pairs, given in (
        (4 + 9, (q, v, {})),
        (2 * 1 + 3 * 8, (*longer, {"key_offsets": keys, "max_key_len": 8})),
        (3 + 6, (q, v, {"mask": MaskSpec()})),
    ):
        k, values, more = given
        with flop_counter() as counter:
            softmax_attention(q, k, values, offsets, **options, **more)
        assert counter.get_total_flops() == 2 * pairs * 2 * (3 + 4)
