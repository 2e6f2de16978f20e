# SPDX-License-Identifier: Apache-2.0
"""The screen of one batch: shapes, ids, histories, labels and losses are those of the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from checking.worlds import HSTU, TOWER, hstu_rows, tower_rows, tried
from tzgen.checking import rows
from tzgen.checking.batch import batch_section
from tzgen.checking.dry_run import DryRun


def lines_of(run: DryRun) -> list[str]:
    return [" ".join(line.split()) for line in batch_section(run).split("\n")]


def test_groups(hstu: DryRun) -> None:
    lines = lines_of(hstu)
    assert "contextual DEEP [4, 24] float32 2 features" in lines
    assert "uih JAGGED_SEQUENCE [10, 8] float32 0..6, mean 2.5 seen__item (8)" in lines
    assert "uih_action JAGGED_SEQUENCE [10, 1] int64 0..6, mean 2.5 seen__act (1)" in lines
    assert "candidate JAGGED_SEQUENCE [7, 8] float32 1..3, mean 1.8 shown__item (8)" in lines
    assert "contextual user (12), city (12)" in lines


def test_ids_and_histories(hstu: DryRun) -> None:
    lines = lines_of(hstu)
    assert "out-of-range ids none (out_of_range_ids ERROR)" in lines
    assert "truncated seen in 1 of 4 rows (25.0 %), to the newest 6" in lines
    tokens = "6.2 a row, all kinds; at most 11; above max_seq_len 8: 1 of 4 rows (25.0 %)"
    assert f"tokens {tokens}" in lines
    assert "candidates 7 in 4 rows" in lines


def test_a_row_may_fill_max_seq_len(tmp_path: Path) -> None:
    run = tried(tmp_path, HSTU.replace("max_seq_len: 8", "max_seq_len: 11"), hstu_rows())
    (line,) = [one for one in lines_of(run) if one.startswith("tokens")]
    assert line.endswith("at most 11; above max_seq_len 11: 0 of 4 rows (0.0 %)")


def test_labels_and_losses(hstu: DryRun) -> None:
    lines = lines_of(hstu)
    # bit 1 of [3], [0, 1, 1], [2, 1], [0]; then bit 2
    assert "click shown__act 1 1 7 0.5714 [7]" in lines
    assert "like shown__act 2 1 7 0.2857 [7]" in lines
    terms = hstu.output.terms
    click, like = (float(terms[f"binary_cross_entropy_{name}"].mean) for name in ("click", "like"))
    assert f"binary_cross_entropy_click {click:.4f} 1 7" in lines
    assert f"binary_cross_entropy_like {like:.4f} 0.5 7" in lines
    assert f"what is minimised {click + 0.5 * like:.4f}" in lines


def test_labels_without_bits_and_rows_without_sequences(tower: DryRun) -> None:
    lines = lines_of(tower)
    assert "all DEEP [4, 7] float32 2 features" in lines
    assert "t y 1 4 0.7500 [4]" in lines
    assert "truncated no row is longer than its sequence_length" in lines
    assert not any(line.startswith(("tokens", "candidates")) for line in lines)


@pytest.mark.parametrize("policy", ["CLIP", "DEFAULT"])
def test_out_of_range_ids_are_counted(tmp_path: Path, policy: str) -> None:
    text = TOWER.replace("dataset_type:", f"out_of_range_ids: {policy} dataset_type:")
    run = tried(tmp_path, text, tower_rows(user=[0, 99, -1, 2]))
    (line,) = [one for one in lines_of(run) if one.startswith("out-of-range")]
    assert line.startswith("out-of-range ids user 2 of ")
    assert line.endswith(f"(out_of_range_ids {policy})")


def test_a_part_of_the_rows_through_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "TOKEN_BUDGET", 5)
    run = tried(tmp_path, HSTU, hstu_rows())
    assert (run.tried, run.batch.num_rows) == (2, 4)
    lines = lines_of(run)
    told = " ".join(lines)
    assert "the first 4 rows in file order; 2 of them through the model" in told
    assert "truncated seen in 1 of 4 rows (25.0 %), to the newest 6" in lines, "of all rows"
    assert "click shown__act 1 1 7 0.5714 [4]" in lines, "labels of all, logits of two rows"


def test_no_line_passes_the_margin(hstu: DryRun, tower: DryRun) -> None:
    for run in (hstu, tower):
        assert all(len(line) <= 100 for line in batch_section(run).split("\n"))
