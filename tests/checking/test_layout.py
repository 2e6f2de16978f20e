# SPDX-License-Identifier: Apache-2.0
"""The picture against the mask's definition, written out again without tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checking.worlds import HSTU, ULTRA, hstu_rows, tried
from tzgen.checking import layout
from tzgen.checking.batch import batch_section
from tzgen.checking.dry_run import DryRun, transducers
from tzgen.checking.layout import Picture, draw, layout_section, pictures, row_of, shrink
from tzgen.ops.hstu_attention.mask import MaskSpec, dense_mask

INTERLEAVED = (
    "contextual_preprocessor {",
    "contextual_interleave_preprocessor { enable_interleaving: true",
)
C, H, T = "contextual", "history", "candidates"


def marks(lines: list[str]) -> list[list[bool]]:
    """What the drawn rows say, cell by cell."""
    found = []
    for line in lines:
        cells = line.replace("|", " ").split()
        if len(cells) > 8 and cells[-1].isdigit() and {"#", "."} & set(cells):
            found.append([cell == "#" for cell in cells if cell in ("#", ".")])
    return found


def kinds_of(picture: Picture) -> list[str]:
    return [layout.KINDS[kind] for kind in picture.kinds]


def sees(picture: Picture, i: int, j: int, window: int = 0) -> bool:
    """Zhai et al.'s mask with a contextual prefix, in words."""
    kinds, contextual = kinds_of(picture), kinds_of(picture).count(C)
    if i == j:
        return True
    if kinds[j] == T:
        return False  # nobody sees another candidate
    if kinds[i] == C:
        return True  # the whole history
    if kinds[j] == C:
        return True
    end = kinds.count(C) + kinds.count(H)
    place = min(i, end) - contextual
    return j - contextual < place and (not window or place - (j - contextual) <= window)


def picture_of(folder: Path, *replacements: tuple[str, str]) -> Picture:
    text = HSTU
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    (picture,) = pictures(tried(folder, text, hstu_rows()))
    return picture


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("interleaved", [False, True], ids=["plain", "interleaved"])
def test_drawn_cells_follow_the_definition(tmp_path: Path, window: int, interleaved: bool) -> None:
    changes = [("attention_dim: 3", f"attention_dim: 3 max_attn_len: {window}")]
    picture = picture_of(tmp_path, *changes, *([INTERLEAVED] if interleaved else []))
    count = len(picture.labels)
    expected = [[sees(picture, i, j, window) for j in range(count)] for i in range(count)]
    assert marks(draw(picture)) == expected
    assert picture.seen.tolist() == expected and picture.remarks == ()


def test_it_is_the_mask_that_the_layers_use(hstu: DryRun) -> None:
    (picture,) = pictures(hstu)
    (transducer,) = transducers(hstu.module).values()
    spec = transducer.stack.layers[0].mask  # type: ignore[union-attr]
    assert isinstance(spec, MaskSpec)
    assert torch.equal(picture.seen, dense_mask(2 + 6 + 3, 3, spec))
    assert picture.title == "transducer, all layers"


def test_tokens_and_legend(hstu: DryRun, tmp_path: Path) -> None:
    lines = draw(pictures(hstu)[0])
    assert lines[0] == "  one row = [ c1 c2 | h1 h2 h3 h4 h5 h6 | t1 t2 t3 ]"
    told = "\n".join(lines)
    assert "c1 user, c2 city" in told
    assert "an item and its action in one token" in told and "learned dummy" in told
    pairs = draw(picture_of(tmp_path, INTERLEAVED))
    assert pairs[0] == "  one row = [ c1 c2 | h1 a1 h2 a2 h3 a3 h4 a4 | t1 t2 t3 ]"
    told = "\n".join(pairs)
    assert "its item (h), then its action (a)" in told and "dummy" not in told


def test_columns_stand_under_their_labels(hstu: DryRun) -> None:
    lines = draw(pictures(hstu)[0])
    at = next(n for n, line in enumerate(lines) if line.endswith("sees"))
    head, first = lines[at], lines[at + 1]
    assert first.startswith("  contextual c1")
    places = [head.index(label) + 1 for label in ("c1", "c2", "h1", "h6", "t1", "t3")]
    assert [first[place] for place in places] == ["#", "#", "#", "#", ".", "."]
    assert all(len(line) <= 100 for line in lines)


def test_contextual_features_in_one_token(tmp_path: Path) -> None:
    joined = ("max_seq_len: 8", "max_seq_len: 8 concat_contextual_features: true")
    lines = draw(picture_of(tmp_path, joined))
    assert lines[0].startswith("  one row = [ c1 | h1")
    assert any("c1 user + city" in line for line in lines)


def test_lengths_that_do_not_fit_are_shrunk_and_told() -> None:
    spec = MaskSpec(contextual_len=40, max_attn_len=256, window_keeps_contextual=False)
    drawn, told = shrink(spec)
    assert drawn == MaskSpec(4, 3, window_keeps_contextual=False)
    assert told[0].startswith("contextual_len is 40; drawn as 4")
    assert told[1].startswith("max_attn_len is 256; drawn as 3")
    assert shrink(MaskSpec(2, 2)) == (MaskSpec(2, 2), [])


def test_a_shrunk_window_says_so(tmp_path: Path) -> None:
    picture = picture_of(tmp_path, ("attention_dim: 3", "attention_dim: 3 max_attn_len: 24"))
    count = len(picture.labels)
    expected = [[sees(picture, i, j, 3) for j in range(count)] for i in range(count)]
    assert picture.seen.tolist() == expected
    assert any("max_attn_len is 24; drawn as 3" in line for line in draw(picture))


def test_a_mask_that_takes_contextual_tokens_for_history_says_so(tmp_path: Path) -> None:
    picture = picture_of(tmp_path, ("attention_dim: 3", "attention_dim: 3 contextual_seq_len: 0"))
    assert "contextual_seq_len makes the mask take 0 tokens" in picture.remarks[0]
    assert not picture.seen[0, 1], "causal, as the mask has it"


def test_masks_by_time_show_the_times(tmp_path: Path) -> None:
    timed = tried(tmp_path, HSTU, hstu_rows())
    (transducer,) = transducers(timed.module).values()
    spec = MaskSpec(contextual_len=2, timestamp_mask=True, realtime_len=5)
    picture = layout.picture(transducer, spec, "x", ["user", "city"])
    lines = draw(picture)
    shown = lines[-1].replace("|", " ").split()
    assert " ".join(shown) == "time, s 10 20 30 40 50 60 45 55 65"
    rows = marks(lines)
    # the last 2 events are not static: a request sees those before it
    assert [row[6:8] for row in rows[-3:]] == [[False, False], [True, False], [True, True]]


def test_layers_of_different_masks_are_drawn_apart(tmp_path: Path) -> None:
    run = tried(tmp_path, HSTU, hstu_rows())
    (transducer,) = transducers(run.module).values()
    transducer.stack.layers[1].mask = MaskSpec(contextual_len=2, max_attn_len=1)
    first, second = pictures(run)
    assert (first.title, second.title) == ("transducer, layers [0]", "transducer, layers [1]")
    assert not torch.equal(first.seen, second.seen)


def test_channels_and_cuts_are_drawn_apart(tmp_path: Path) -> None:
    run = tried(tmp_path, ULTRA, hstu_rows())
    first, second, cut = pictures(run)
    assert [one.title for one in (first, second, cut)] == [
        "channel uih, all layers",
        "channel again, layers [0]",
        "channel again, layers [1]",
    ]
    assert second.labels[2:8] == ("h1", "h2", "h3", "h4", "h5", "h6") and second.remarks == ()
    assert cut.labels == ("c1", "c2", "h4", "h5", "h6", "t1", "t2", "t3")
    assert "its last 4 tokens are left (truncation); drawn as 3" in cut.remarks[0]
    for one in (second, cut):  # sla_k1 2, sla_k2 3
        end = one.kinds.count(0) + one.kinds.count(1)
        for i in range(len(one.labels)):
            for j in range(len(one.labels)):
                near = j <= i and (j > i - 2 or j < 3)
                want = i == j or (j < end and (i >= end or near))
                assert bool(one.seen[i, j]) == want, (one.title, i, j)
    told = layout_section(run)
    assert told.count("tokens and mask: ") == 3
    assert row_of(run, cut.transducer, 600, cut.tail_len)[:2] == (2 + 4 + 3, 3)  # type: ignore[index]
    report = batch_section(run)
    assert "tokens, channel uih " in report and "tokens, channel again " in report


def test_lengths_of_semi_local_attention_are_shrunk_too() -> None:
    drawn, told = shrink(MaskSpec(2, sla_k1=256, sla_k2=32))
    assert drawn == MaskSpec(2, sla_k1=3, sla_k2=3) and len(told) == 2
    drawn, told = shrink(MaskSpec(2, 64, full_attn_tail=32))
    assert drawn == MaskSpec(2, 3, full_attn_tail=2) and len(told) == 2


def test_models_without_attention(tower: DryRun) -> None:
    assert pictures(tower) == []
    assert "simple_multi_task has no HSTU layers" in layout_section(tower)


def test_the_longest_row_that_can_be_drawn(hstu: DryRun) -> None:
    name = "head.model.transducer"
    times = torch.zeros(11, dtype=torch.int64)
    length, targets, own = row_of(hstu, name, 600) or (0, 0, None)
    assert (length, targets) == (11, 3) and own is not None and torch.equal(own, times)
    assert (row_of(hstu, name, 10) or (0, 0))[:2] == (6, 1)
    assert row_of(hstu, name, 3) is None
    assert row_of(hstu, "no such", 600) is None
