# SPDX-License-Identifier: Apache-2.0
"""Two processes over gloo compute what one does: losses, metrics, weights, predictions, and errors.

57 rows in global batches of 8 leave one row for the last: a rank then has none.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from world import World, assert_close, losses, make_world, run, weights

from tzgen.train.reporting import LOG_NAME, read_log

ROOT = Path(__file__).resolve().parents[2]
HALF = "data_config.batch_size=4"  # of each of two ranks
ADAPTIVE = (
    "train_config.sparse_optimizer.rowwise_adagrad_optimizer={ lr: 0.1 }",
    "train_config.dense_optimizer.adam_optimizer={ lr: 0.01 }",
    "train_config.grad_clipping.clipping_type=norm",
    "train_config.grad_clipping.max_gradient=0.5",
)
CALM = (  # the single row of the last batch would throw the config's rates off
    "train_config.sparse_optimizer.sgd_optimizer.lr=0.05",
    "train_config.dense_optimizer.sgd_optimizer.lr=0.005",
)
LOCAL = "train_config.embedding_engine=LOCAL"
CASES = {
    "torchrec": ADAPTIVE,
    "local": (LOCAL, *ADAPTIVE),
    "sgd": CALM,
    "workers": (*CALM, "data_config.num_workers=1"),
}
STEPS = 16  # two epochs of eight


@dataclass(frozen=True)
class Ranks:
    """What the two processes left, and the same runs in this one."""

    world: World
    folder: Path

    def result(self, name: str) -> list[dict[str, Any]]:
        return [json.loads((self.folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]

    def log(self, name: str) -> list[dict[str, Any]]:
        for done in self.result(name):
            assert done["status"] == 0, done["err"]
        return read_log(self.folder / name / LOG_NAME)


def poisoned(world: World, to: Path) -> Path:
    table = pq.read_table(world.train)
    cells = table["cand__seconds"].to_pylist()
    cells[11][0] = 1e25
    index = table.column_names.index("cand__seconds")
    values = pa.array(cells, pa.list_(pa.float32()))
    table = table.remove_column(index).add_column(index, "cand__seconds", values)
    pq.write_table(table, to, row_group_size=20)
    return to


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("ranks")
    world = make_world(folder, rows=57, eval_rows=41)
    rows = {"train_input_path": world.train, "eval_input_path": world.eval}
    cases: list[dict[str, Any]] = []

    def add(name: str, *sets: str, stop: list[int] | None = None, **flags: Any) -> None:
        argv = world.argv(sets, {**rows, "model_dir": folder / name, **flags})
        cases.append({"name": name, "verb": "train_eval", "argv": argv, "stop": stop})

    for name, sets in CASES.items():
        add(name, *sets, HALF)
    micro = ("data_config.batch_size=2", "train_config.gradient_accumulation_steps=2")
    add("micro", *ADAPTIVE, *micro)
    one_epoch = "train_config.num_epochs=1"
    add("first_half", *ADAPTIVE, HALF, one_epoch)
    world.trained(folder / "second_half", *ADAPTIVE, one_epoch)
    add("second_half", *ADAPTIVE, HALF)
    add("stopped", *CALM, HALF, stop=[1, 5])
    broken = poisoned(world, folder / "poisoned.parquet")
    add("broken", *CALM, HALF, train_input_path=broken)
    for verb, flags in (
        ("eval", {"eval_input_path": world.eval, "eval_result_filename": "again.json"}),
        ("predict", {"predict_input_path": world.eval, "predict_output_path": folder / "out"}),
    ):
        argv = world.argv([*ADAPTIVE, HALF], {"model_dir": folder / "torchrec", **flags})
        cases.append({"name": verb, "verb": verb, "argv": argv, "stop": None})
    (folder / "cases.json").write_text(json.dumps(cases))
    main = Path(__file__).parent / "ranks_main.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(main), str(folder / "cases.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "is_fx_tracing" not in done.stderr, done.stderr
    return Ranks(world, folder)


@pytest.fixture(scope="module")
def alone(ranks: Ranks) -> dict[str, list[dict[str, Any]]]:
    """The logs of the same runs in one process, twice the rows a rank."""
    kept = {}
    for name in ("torchrec", "local", "sgd"):
        kept[name] = ranks.world.trained(ranks.folder / f"{name}_alone", *CASES[name])
    return kept


def assert_same_course(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    one, other = losses(mine), losses(theirs)
    assert list(one) == list(other) == list(range(1, STEPS + 1))
    for step, values in one.items():
        assert values == pytest.approx(other[step], rel=2e-4, abs=1e-5), f"step {step}"
    for a, b in zip(
        *([e for e in log if e["kind"] == "eval"] for log in (mine, theirs)), strict=True
    ):
        assert a["step"] == b["step"] and a["num_rows"] == b["num_rows"] == 41
        names = [name for name in a if name not in ("kind", "step")]
        assert [a[n] for n in names] == pytest.approx([b[n] for n in names], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["torchrec", "local", "sgd"])
def test_two_ranks_are_one(ranks: Ranks, alone: dict[str, Any], name: str) -> None:
    assert_same_course(ranks.log(name), alone[name])
    for part in ("model", "optimizer"):
        mine = weights(ranks.folder / name, STEPS, part)
        assert_close(mine, weights(ranks.folder / f"{name}_alone", STEPS, part))


def test_workers_change_nothing(ranks: Ranks) -> None:
    assert losses(ranks.log("workers")) == losses(ranks.log("sgd"))


def test_micro_batches_on_two_ranks(ranks: Ranks, alone: dict[str, Any]) -> None:
    assert_same_course(ranks.log("micro"), alone["torchrec"])


def test_two_ranks_go_on_from_one(ranks: Ranks, alone: dict[str, Any]) -> None:
    assert_same_course(ranks.log("second_half"), alone["torchrec"])


def test_one_goes_on_from_two_ranks(ranks: Ranks, alone: dict[str, Any]) -> None:
    log = ranks.world.trained(ranks.folder / "first_half", *ADAPTIVE)
    assert_same_course(log, alone["torchrec"])


def test_one_on_another_engine_goes_on_from_two(ranks: Ranks, alone: dict[str, Any]) -> None:
    mixed = ranks.folder / "mixed"
    shutil.copytree(ranks.folder / "torchrec", mixed)
    shutil.rmtree(mixed / f"model.ckpt-{STEPS}")
    assert_same_course(ranks.world.trained(mixed, LOCAL, *ADAPTIVE), alone["torchrec"])


def test_a_signal_to_one_rank_stops_both(ranks: Ranks) -> None:
    results = ranks.result("stopped")
    assert [done["status"] for done in results] == [143, 143], results
    steps = {int(p.name.rsplit("-", 1)[1]) for p in (ranks.folder / "stopped").glob("model.ckpt-*")}
    assert steps == {5}


def test_a_broken_row_of_one_rank_is_named_by_both(ranks: Ranks) -> None:
    for done in ranks.result("broken"):
        assert done["status"] == 2 and "Traceback" not in done["err"]
        assert "poisoned.parquet" in done["err"] and "l2_loss_seconds is inf" in done["err"]


def test_evaluation_and_prediction_on_two_ranks(
    ranks: Ranks, alone: dict[str, Any], tmp_path: Path
) -> None:
    for done in (*ranks.result("eval"), *ranks.result("predict")):
        assert done["status"] == 0, done["err"]
    again = json.loads((ranks.folder / "torchrec" / "again.json").read_text())
    last = ranks.log("torchrec")[-1]
    known = {name: last[name] for name in again["metrics"]}
    assert again["metrics"] == pytest.approx(known, rel=1e-5) and again["num_rows"] == 41
    flags = {
        "model_dir": ranks.folder / "torchrec",
        "predict_input_path": ranks.world.eval,
        "predict_output_path": tmp_path / "out",
    }
    done = run("predict", ranks.world.argv(ADAPTIVE, flags))
    assert done.status == 0, done.err
    parts = sorted((ranks.folder / "out").glob("*.parquet"))
    assert len(parts) == 2
    both = [pq.read_table(path)["logits_click"].to_pylist() for path in parts]
    assert sum(map(len, both)) == 41
    expected = pq.read_table(tmp_path / "out")["logits_click"].to_pylist()

    def found(rows: list[list[float]]) -> list[tuple[float, ...]]:
        return sorted(tuple(round(x, 4) for x in row) for row in rows)

    assert found([row for part in both for row in part]) == found(expected)
