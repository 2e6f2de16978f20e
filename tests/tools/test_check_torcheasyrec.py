# SPDX-License-Identifier: Apache-2.0
"""Texts that train, are refused once, or surprise; the status says whether any did."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = ROOT / "tests" / "integration" / "texts"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "check_torcheasyrec.py"
    spec = importlib.util.spec_from_file_location("check_torcheasyrec", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_torcheasyrec"] = module
    spec.loader.exec_module(module)
    return module


def put(folder: Path, name: str, change: tuple[str, str] = ("", "")) -> Path:
    """A copy of texts/ple.config under another name, with one replacement."""
    text = (TEXTS / "ple.config").read_text()
    assert change[0] in text
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text.replace(*change) if change[0] else text)
    return folder


def statuses(tool: ModuleType, folder: Path, *flags: str) -> dict[str, str]:
    paths = sorted(folder.rglob("*.config"))
    found = [tool.examine(p, p.name, train="--train" in flags, timeout=300) for p in paths]
    return {outcome.text: outcome.status for outcome in found}


def test_supported_and_refused_texts_are_no_surprise(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "a", "ple_taobao.config")
    (tmp_path / "a" / "other.config").write_text("model_config { dssm {} }")
    assert tool.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "1 valid" in shown and "1 refused" in shown and "model_config.dssm" in shown


@pytest.mark.parametrize(
    ("name", "change", "status"),
    [
        ("x.config", ("num_buckets: 10 ", "num_bukets: 10 "), "broken"),
        ("x.config", ("embedding_dim: 8", ""), "loud"),
        ("ple_x.config", ("train_config {", "train_config { grad_scaler {}"), "failed"),
        ("x.config", ("train_config {", "train_config { grad_scaler {}"), "refused"),
        ("x.config", ('label_name: "buy"', 'label_name: "bye"'), "failed"),
    ],
    ids=["unknown field", "many problems", "a ple text that is refused", "an option", "a mistake"],
)
def test_surprises(
    tool: ModuleType, tmp_path: Path, name: str, change: tuple[str, str], status: str
) -> None:
    put(tmp_path, name, change)
    assert statuses(tool, tmp_path) == {name: status}
    assert tool.main([str(tmp_path)]) == (0 if status == "refused" else 1)


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("dlrm_hstu.config", True),
        ("dlrm_hstu_rtp_kuairand_1k.config", True),
        ("mmoe_has_sequence.config", True),
        ("mmoe_taobao_backbone.config", True),
        ("dlrm_criteo.config", False),
        ("dlrm_ultra_hstu_cutlass_kuairand_1k.config", True),
        ("ultra_hstu_cutlass_kuairand_1k.config", True),
        ("ultra_deep.config", False),
        ("multi_tower.config", False),
    ],
)
def test_which_texts_must_train(tool: ModuleType, name: str, matches: bool) -> None:
    assert (tool.MUST_TRAIN.fullmatch(name) is not None) == matches


def test_trains_what_is_supported(tool: ModuleType, tmp_path: Path) -> None:
    shutil.copy(TEXTS / "ple.config", tmp_path)
    assert statuses(tool, tmp_path, "--train") == {"ple.config": "trained"}


def test_an_empty_folder_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path)])
