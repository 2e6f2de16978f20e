# SPDX-License-Identifier: Apache-2.0
"""A small data set and the verbs, run in this process: a start of Python costs seconds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import tzgen.export.__main__ as export
from tzgen import eval as evaluate
from tzgen import predict, train_eval
from tzgen.config import load_pipeline
from tzgen.features import create_features
from tzgen.features.synthesis import synthesise
from tzgen.train import checkpoint
from tzgen.train.reporting import LOG_NAME, read_log

SMALL = Path(__file__).parent / "small.config"
VERBS: Mapping[str, ModuleType] = {
    "train_eval": train_eval,
    "eval": evaluate,
    "export": export,
    "predict": predict,
}


@dataclass(frozen=True)
class Ran:
    """How a verb ended: exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    def fails(self, *words: str) -> None:
        """It was refused, says all of `words`, and shows no traceback."""
        assert self.status == 2, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err, f"{word!r} is not said:\n{self.err}"


@dataclass(frozen=True)
class World:
    """Rows on disk and the config that reads them."""

    folder: Path
    config: Path = SMALL

    @property
    def train(self) -> Path:
        return self.folder / "train.parquet"

    @property
    def eval(self) -> Path:
        return self.folder / "eval.parquet"

    def argv(self, sets: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
        words = ["--pipeline_config", str(self.config)]
        for text in sets:
            words += ["--set", text]
        for name, value in flags.items():
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return words

    def run(self, verb: str, *sets: str, **flags: Any) -> Ran:
        """Run a verb on the config with `--set` texts and flags (True: a switch)."""
        return run(verb, self.argv(sets, flags))

    def fit(self, model_dir: Path, *sets: str, **flags: Any) -> Ran:
        """train_eval on this world's rows."""
        rows = {"train_input_path": self.train, "eval_input_path": self.eval}
        return self.run("train_eval", *sets, **{**rows, "model_dir": model_dir, **flags})

    def trained(self, model_dir: Path, *sets: str, **flags: Any) -> list[dict[str, Any]]:
        """The log of a run that must succeed."""
        done = self.fit(model_dir, *sets, **flags)
        assert done.status == 0, done.err
        return read_log(model_dir / LOG_NAME)


def run(verb: str, argv: Sequence[str]) -> Ran:
    """Run a verb as its command line would; bugs pass through as exceptions."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            VERBS[verb].main([str(word) for word in argv])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    return Ran(status, out.getvalue(), err.getvalue())


def make_rows(path: Path, rows: int, seed: int, config: Path = SMALL) -> pa.Table:
    """Synthesised rows in row groups of 20."""
    message = load_pipeline(config)
    table = synthesise(message, create_features(message), rows, seed=seed)
    pq.write_table(table, path, row_group_size=20)
    return table


def make_world(folder: Path, rows: int = 64, eval_rows: int = 40, config: Path = SMALL) -> World:
    make_rows(folder / "train.parquet", rows, 1, config)
    make_rows(folder / "eval.parquet", eval_rows, 2, config)
    return World(folder, config)


def losses(log: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """step -> the losses of its training batch."""
    return {
        line["step"]: {k: v for k, v in line.items() if k.startswith("loss")}
        for line in log
        if line["kind"] == "train"
    }


def weights(model_dir: Path, step: int, part: str = "model") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint's part, by name."""
    folder = model_dir / f"model.ckpt-{step}" / part
    stored = checkpoint.stored_tensors(folder)
    target = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in stored.items()}
    checkpoint.load_state(target, folder)
    return target


def assert_close(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """The same names and, but for rounding, the same values."""
    assert set(mine) == set(theirs)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5, msg=name)
