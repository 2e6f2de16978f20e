# SPDX-License-Identifier: Apache-2.0
"""The jobs behind the verbs: refusals before anything is built, numerics, results as files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train.train_world import config_of

from tzgen.errors import UserError
from tzgen.protos.train_pb2 import TrainConfig
from tzgen.train import job
from tzgen.train.environment import environment


def train(config, **options) -> int:
    given = {"source": "config", "continue_train": True, "ignore_optimizer": False, **options}
    with environment() as env:
        return job.train_and_report(config, env, **given)


def test_results_are_files_and_told_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = config_of(tmp_path, "train_config.embedding_engine=LOCAL")
    config.model_dir = str(tmp_path / "deep" / "m")
    assert train(config) == 0
    result = json.loads((tmp_path / "deep" / "m" / job.RESULT).read_text())
    assert result["num_rows"] == 21 and "auc_click" in result["metrics"]
    told = capsys.readouterr()
    assert told.err.count("evaluation at step 6") == 1 and "evaluation" not in told.out
    assert "6 steps done" in told.out and str(tmp_path / "deep" / "m") in told.out
    with environment() as env:
        job.evaluate_and_report(
            config, env, source="config", checkpoint_path=None, result_name="again.txt"
        )
    again = json.loads((tmp_path / "deep" / "m" / "again.txt").read_text())
    assert again["checkpoint"] == "model.ckpt-6"
    assert again["metrics"] == pytest.approx(result["metrics"], rel=1e-6)


@pytest.mark.parametrize("field", ["model_dir", "train_input_path"])
def test_paths_are_demanded(tmp_path: Path, field: str) -> None:
    config = config_of(tmp_path)
    config.model_dir = str(tmp_path / "m")
    config.ClearField(field)
    with pytest.raises(UserError, match=f"{field} is empty.*--{field}"):
        train(config)


def test_an_empty_folder_is_demanded(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.model_dir = str(tmp_path / "m")
    (tmp_path / "m" / "model.ckpt-1").mkdir(parents=True)
    with pytest.raises(UserError, match="continue_train"):
        train(config, continue_train=False)


def test_numerics_follow_the_config() -> None:
    matmul = torch.backends.cuda.matmul.allow_tf32
    try:
        job.set_numerics(TrainConfig(cuda_matmul_allow_tf32=True, cudnn_allow_tf32=False))
        assert torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = True
        torch.utils.deterministic.fill_uninitialized_memory = True


def test_determinism_does_not_load_the_compiler() -> None:
    code = (
        "import sys, torch\nfrom tzgen.protos.train_pb2 import TrainConfig\n"
        "before = 'torch._inductor' in sys.modules\n"
        "from tzgen.train.job import set_numerics\nset_numerics(TrainConfig())\n"
        "assert torch.are_deterministic_algorithms_enabled()\n"
        "assert before or 'torch._inductor' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
