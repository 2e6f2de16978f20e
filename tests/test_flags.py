# SPDX-License-Identifier: Apache-2.0
"""Command lines: strict, under TorchEasyRec's names, light, and without tracebacks."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tzgen import flags
from tzgen.config import load_pipeline
from tzgen.errors import ConfigError, Problem, UserError

TEXT = """
train_input_path: "a"
model_dir: "b"
train_config {
  sparse_optimizer { adagrad_optimizer { lr: 0.1 } }
  dense_optimizer { adam_optimizer { lr: 0.1 } }
  num_steps: 3
}
data_config { dataset_type: ParquetDataset label_fields: "y" }
feature_configs { id_feature { feature_name: "u" num_buckets: 9 embedding_dim: 4 } }
model_config {
  feature_groups { group_name: "all" feature_names: "u" }
  simple_multi_task {
    task_towers { tower_name: "t" label_name: "y" losses { binary_cross_entropy {} } }
  }
}
"""
TRAIN = (
    *flags.CONFIG,
    "model_dir",
    "train_input_path",
    "eval_input_path",
    "continue_train",
    "fine_tune_checkpoint",
    "ignore_restore_optimizer",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.config"
    file.write_text(TEXT)
    return file


def parse(*argv: str, names: tuple[str, ...] = TRAIN) -> Any:
    return flags.parser("train_eval", "Train.", *names).parse_args(list(argv))


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_both_spellings_of_the_config(path: Path) -> None:
    assert parse("--pipeline_config", str(path)).pipeline_config == str(path)
    assert parse(f"--pipeline_config_path={path}").pipeline_config == str(path)


def test_defaults() -> None:
    args = parse("--pipeline_config", "x")
    assert (args.continue_train, args.ignore_restore_optimizer) == (True, False)
    assert (args.set, args.strict, args.model_dir) == ([], False, None)


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--continue_train"], True),
        (["--continue_train", "false"], False),
        (["--continue_train=True"], True),
        (["--continue_train", "0"], False),
    ],
)
def test_booleans_with_and_without_value(argv: list[str], value: bool) -> None:
    assert parse("--pipeline_config", "x", *argv).continue_train is value


def test_unknown_flags_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "--pipeline_config", "x", "--modeldir", "y")
    assert "unknown flag --modeldir (did you mean --model_dir?)" in told
    assert "--train_input_path" in told  # the known ones are listed
    told = refused(capsys, "--pipeline_config", "x", "--model_dri=y", "--nothing_like_it")
    assert "unknown flag --model_dri (did you mean --model_dir?)" in told
    assert "unknown flag --nothing_like_it" in told
    assert "unexpected argument 'stray'" in refused(capsys, "--pipeline_config", "x", "stray")


def test_no_abbreviations(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown flag --model " in refused(capsys, "--pipeline_config", "x", "--model", "y")


def test_missing_and_bad_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--pipeline_config" in refused(capsys)
    told = refused(capsys, "--pipeline_config", "x", "--continue_train", "maybe")
    assert "expected true or false" in told


def test_config_may_be_optional() -> None:
    parser = flags.parser("predict", "", *flags.CONFIG, "export_dir", optional=("pipeline_config",))
    args = parser.parse_args(["--scripted_model_path", "d"])
    assert (args.pipeline_config, args.export_dir) == (None, "d")


def test_every_flag_can_be_added_and_has_help() -> None:
    parser = flags.parser("x", "doc", *flags.FLAGS)
    text = parser.format_help()
    for name, flag in flags.FLAGS.items():
        assert flag.help or flag.retired, name
        assert (f"--{name}" in text) == (flag.retired is None), name


def test_fields_that_flags_set_exist() -> None:
    from tzgen.config import parse_pipeline, set_field

    values = {"dataset_type": "CsvDataset", "batch_size": "3"}
    for name, flag in flags.FLAGS.items():
        if flag.field is not None:
            set_field(parse_pipeline(""), flag.field, values.get(name, "x"))


def test_flags_become_overrides_and_set_wins(path: Path) -> None:
    config = flags.load_from_flags(
        parse(
            "--pipeline_config",
            str(path),
            "--edit_config_json",
            '{"model_dir": "json", "train_config.num_steps": 5, "eval_input_path": "json"}',
            "--model_dir",
            "flag",
            "--eval_input_path",
            "flag",
            "--fine_tune_checkpoint",
            "ckpt",
            "--set",
            "eval_input_path=set",
            "--set",
            "data_config.batch_size=7",
        )
    )
    assert config.model_dir == "flag"
    assert config.eval_input_path == "set"
    assert config.train_config.num_steps == 5
    assert config.train_config.fine_tune_checkpoint == "ckpt"
    assert config.data_config.batch_size == 7


def test_retired_flags_say_what_replaces_them(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tzgen"), "propagate", True)
    args = parse(
        "--pipeline_config",
        str(path),
        "--predict_threads",
        "4",
        "--is_profiling",
        names=(*flags.CONFIG, "predict_threads", "is_profiling"),
    )
    with caplog.at_level(logging.WARNING, logger="tzgen"):
        assert flags.load_from_flags(args) == load_pipeline(path)
    assert "--predict_threads has no effect here: data_config.num_workers" in caplog.text
    assert "--is_profiling" in caplog.text


def test_checked_config_refuses_and_tells(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tzgen"), "propagate", True)
    cutlass = ("--pipeline_config", str(path), "--set", "model_config.kernel=CUTLASS")
    with caplog.at_level(logging.INFO, logger="tzgen"):
        assert flags.checked_config(parse(*cutlass)).model_config.kernel == 2
    assert "replaced: model_config.kernel (CUTLASS)" in caplog.text
    assert "note: eval_input_path is not set" in caplog.text
    with pytest.raises(ConfigError, match=r"--strict: found model_config\.kernel") as caught:
        flags.checked_config(parse(*cutlass, "--strict"))
    assert caught.value.source == str(path)
    with pytest.raises(ConfigError, match="2 problems"):
        flags.checked_config(parse(*cutlass, "--strict", "--set", "train_config.num_steps="))
    empty = parse(*cutlass, "--set", "train_input_path=", "--set", "model_dir=")
    flags.checked_config(empty)
    with pytest.raises(ConfigError, match=r"train_input_path.*--train_input_path"):
        flags.checked_config(empty, "train_input_path")


def run(error: BaseException | None, status: int | None = None) -> int:
    def body() -> int | None:
        if error is not None:
            raise error
        return status

    try:
        flags.run_verb(body)
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_run_verb_turns_errors_into_messages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(UserError("no such thing")) == 2
    assert capsys.readouterr().err == "error: no such thing\n"
    assert run(ConfigError([Problem("a", "b", "c", "d")], "x.config")) == 2
    assert capsys.readouterr().err.startswith("config error: x.config: 1 problem\n  - a: found b")
    assert run(KeyboardInterrupt()) == 130
    flags.run_verb(lambda: 0)  # success returns, so that verbs can be called from Python
    assert run(None, 3) == 3


def test_run_verb_lets_bugs_through() -> None:
    with pytest.raises(ZeroDivisionError):
        flags.run_verb(lambda: 1 // 0)


def test_help_is_light(path: Path) -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from tzgen import flags\n"
        "try: flags.parser('eval', 'doc', *flags.FLAGS).parse_args(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pyarrow', 'numpy', 'google.protobuf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        f"flags.load_from_flags(flags.parser('eval', '', *flags.CONFIG).parse_args("
        f"['--pipeline_config', {str(path)!r}]))\n"
        "heavy = {'torch', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert time.perf_counter() - start < 0.5 * 4, 'slow even for a busy machine'\n"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: python -m tzgen.eval" in done.stdout
