# SPDX-License-Identifier: Apache-2.0
"""The verb: exit codes, every screen, every failure, and that it writes nothing but the picture."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from catalogues import publish_for

from checking.worlds import HSTU, TOWER, hstu_rows, tower_rows, world
from tzgen import check

ROOT = Path(__file__).resolve().parents[2]
TEXTS = sorted((ROOT / "tests" / "integration" / "texts").glob("*.config"))
EXAMPLES = sorted((ROOT / "examples" / "configs").glob("*.config"))
SCREENS = ("config", "one batch", "cost", "tokens and mask")


def run(*argv: object) -> int:
    try:
        check.main([str(word) for word in argv])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def screens(shown: str) -> list[str]:
    return [line.strip("= ").split("=")[0] for line in shown.split("\n") if line.startswith("== ")]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config, with rows, in a folder that is also the current and the temporary one."""
    _, path = world(tmp_path, HSTU, hstu_rows())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return path


def test_every_screen_in_order(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--pipeline_config", files) == 0
    shown = capsys.readouterr()
    told = screens(shown.out)
    assert len(told) == len(SCREENS)
    assert all(t.startswith(s) for t, s in zip(told, SCREENS, strict=True))
    assert shown.out.rstrip().endswith("ok: no problems; nothing was trained")
    assert "4 rows in 1 file(s)" in shown.out
    assert all(len(line) <= 100 for line in shown.out.split("\n"))


@pytest.mark.parametrize("synthetic", [False, True])
def test_nothing_is_written(files: Path, synthetic: bool) -> None:
    before = everything(files.parent)
    flags = ["--synthetic"] if synthetic else []
    assert run("--pipeline_config", files, "--diff_torcheasyrec", *flags) == 0
    assert everything(files.parent) == before
    assert not (files.parent / "model").exists()


def test_the_picture_is_the_only_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    before = everything(files.parent)
    assert run("--pipeline_config", files, "--plot", "mask.png") == 0
    added = set(everything(files.parent)) - set(before)
    assert added == {str(files.parent / "mask.png")}
    assert "picture: mask.png" in capsys.readouterr().out


def test_differences_come_second(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--pipeline_config", files, "--diff_torcheasyrec") == 0
    assert screens(capsys.readouterr().out)[1].startswith("differences from TorchEasyRec")


def test_problems_end_it_with_2(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stu = "model_config.dlrm_hstu.hstu.stu"
    wrong = ("--set", f"{stu}.num_heads=0", "--set", "train_config.num_epochs=3")
    assert run("--pipeline_config", files, "--diff_torcheasyrec", *wrong) == 2
    shown = capsys.readouterr().out
    assert "2 problems" in shown and f"{stu}.num_heads" in shown and "num_epochs" in shown
    assert [screen.split()[0] for screen in screens(shown)] == ["config", "differences"]
    assert "ok:" not in shown


def test_models_that_are_not_supported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.config"
    path.write_text('model_dir: "m" model_config { dssm {} }')
    assert run("--pipeline_config", path) == 2
    assert "1. model_config.dssm" in capsys.readouterr().out


def test_strict(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = ("--set", "model_config.kernel=CUTLASS")
    assert run("--pipeline_config", files, *kernel) == 0
    assert "model_config.kernel (CUTLASS)" in capsys.readouterr().out
    assert run("--pipeline_config", files, *kernel, "--strict") == 2
    assert "--strict" in capsys.readouterr().out


def test_an_empty_train_input_path_is_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = world(tmp_path, TOWER, None)
    assert run("--pipeline_config", path) == 0
    shown = capsys.readouterr().out
    assert "train_input_path is empty" in shown and "4 synthesised rows" in shown
    assert run("--pipeline_config", path, "--synthetic") == 0
    assert "train_input_path is empty" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--train_input_path", "gone/*.parquet"), "gone/*.parquet"),
        (("--eval_input_path", "gone.parquet"), "eval_input_path: "),
        (("--plot", "mask.gif"), "expected a file ending in"),
        (("--plot", "no/mask.png"), "its folder does not exist"),
        (("--set", "data_config.bach_size=3"), "Did you mean 'batch_size'"),
        (("--sintetic",), "did you mean --synthetic?"),
    ],
    ids=lambda value: str(value),
)
def test_failures_name_what_is_wrong(
    files: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], told: str
) -> None:
    assert run("--pipeline_config", files, *argv) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert "Traceback" not in shown.err and "ok:" not in shown.out


def test_config_files_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--pipeline_config", tmp_path / "none.config") == 2
    assert "none.config" in capsys.readouterr().err
    broken = tmp_path / "broken.config"
    broken.write_text('model_dir: "m"\nmodel_confg {}')
    assert run("--pipeline_config", broken) == 2
    told = capsys.readouterr().err
    assert "model_confg" in told and "model_config" in told


def test_rows_that_must_not_be_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tower_rows(age=[[float("inf"), 1.0, 1.0]] * 4)
    _, path = world(tmp_path, TOWER, rows)
    assert run("--pipeline_config", path) == 2
    shown = capsys.readouterr()
    assert "must not be trained on" in shown.err and "is nan" in shown.err
    assert "ok:" not in shown.out


def test_a_picture_that_there_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    _, path = world(tmp_path, TOWER, tower_rows())
    assert run("--pipeline_config", path, "--plot", tmp_path / "mask.png") == 2
    assert "simple_multi_task has no HSTU layers" in capsys.readouterr().err


@pytest.mark.parametrize("path", [*TEXTS, *EXAMPLES], ids=lambda path: path.stem)
def test_every_config_of_the_project(
    path: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if publish_for(path, tmp_path):
        monkeypatch.chdir(tmp_path)
    reader = "data_config.dataset_type=ParquetDataset"
    assert run("--pipeline_config", path, "--synthetic", "--set", reader) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 100 for line in shown.split("\n"))


def test_it_takes_seconds() -> None:
    """Processor time, so that a busy machine does not decide."""
    argv = ["--pipeline_config", str(EXAMPLES[0]), "--synthetic"]
    before = os.times()
    command = [sys.executable, "-m", "tzgen.check", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 10


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom tzgen import check\n"
        "try: check.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'pyarrow', 'google.protobuf'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--synthetic" in done.stdout and "--diff_torcheasyrec" in done.stdout
