# SPDX-License-Identifier: Apache-2.0
"""What workers refuse, with file and row; and that the local engine needs no TorchRec."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from embedding_world import FEATURES, GROUPS, make_batch, make_source, parse_groups

from tzgen.data.batch import Batch, Source
from tzgen.embeddings import EmbeddingGroup
from tzgen.embeddings.torchrec_import import require_torchrec
from tzgen.errors import DataError, UserError


def as_it_is(rows: Batch, source: Source) -> Batch:
    return rows


def checked(batch: Batch) -> Batch:
    group = EmbeddingGroup(FEATURES, parse_groups(GROUPS), engine="local")
    parse = pickle.loads(pickle.dumps(group.attach_kjts(as_it_is)))
    return parse(batch, make_source(batch.num_rows))


@pytest.mark.parametrize("shape", [([3, 0, 2], [1, 2, 4]), ([], [])], ids=str)
def test_good_batches_pass(shape: tuple[list[int], list[int]]) -> None:
    batch = make_batch(*shape)
    assert checked(batch) is batch


@pytest.mark.parametrize(("value", "shown"), [(40, "id 40"), (-1, "id -1")])
def test_ids_outside_the_table(value: int, shown: str) -> None:
    batch = make_batch([3, 0, 2], [1, 2, 4])
    batch.ids["uih__item"].values[3] = value  # the first step of the last row
    with pytest.raises(DataError, match=rf"part.parquet, row 102.*uih__item.*{shown}.*0 to 39"):
        checked(batch)


def test_sequences_of_a_group_must_be_equally_long() -> None:
    batch = make_batch([3, 1, 2], [1, 2, 4])
    short = make_batch([3, 2, 1], [1, 2, 4]).ids["uih__cat"]  # the same number of steps in all
    batch.ids["uih__cat"] = short
    with pytest.raises(DataError, match=r"row 101.*'?uih__cat'?.*2 steps.*1 as in 'uih__item'"):
        checked(batch)


def test_missing_features_are_named() -> None:
    batch = make_batch([1], [1])
    del batch.ids["tags"]
    with pytest.raises(ValueError, match="no ids of 'tags'"):
        checked(batch)
    batch = make_batch([1], [1])
    del batch.dense["age"]
    group = EmbeddingGroup(FEATURES, parse_groups(GROUPS), engine="local")
    with pytest.raises(ValueError, match="no numbers of 'age'"):
        group(batch)
    batch = make_batch([1], [1])
    batch.ids["uih__item"] = replace(batch.ids["uih__item"], seq_lengths=None)
    with pytest.raises(ValueError, match="is no sequence"):
        group(batch)


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
for name in ("torchrec", "fbgemm_gpu"):
    sys.modules[name] = None
from embedding_world import FEATURES, GROUPS, make_batch, parse_groups
from tzgen.embeddings import EmbeddingGroup, OptimizerSpec, sparse_optimizer
from tzgen.errors import UserError
group = EmbeddingGroup(FEATURES, parse_groups(GROUPS), engine="local")
sparse_optimizer(group, OptimizerSpec("rowwise_adagrad", 0.1))
group(make_batch([2, 1], [1, 1]))["deep"].sum().backward()
try:
    EmbeddingGroup(FEATURES, parse_groups(GROUPS), engine="torchrec")
except UserError as error:
    print(error)
"""


def test_the_local_engine_runs_without_torchrec() -> None:
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root
    )
    assert "requirements/cpu.txt" in done.stdout and "local engine" in done.stdout


def test_a_cuda_build_on_a_cpu_machine_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchrec.py").write_text('raise OSError("Could not load: fbgemm_gpu_config.so")')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchrec", raising=False)
    with pytest.raises(UserError, match=r"pip install fbgemm-gpu-cpu==1\.8\.0"):
        require_torchrec()


def test_torch_is_the_only_thing_ops_need() -> None:
    seen = "print('tzgen.errors' in sys.modules, 'torchrec' in sys.modules)"
    code = f"import sys, tzgen.ops.embedding_lookup; {seen}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_embedding_ids_are_int64() -> None:
    assert make_batch([1], [1]).ids["uih__item"].values.dtype == torch.int64
