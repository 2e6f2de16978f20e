# SPDX-License-Identifier: Apache-2.0
"""What a user gets wrong is named, with status 2 and without a traceback: flags, fields, paths,
columns, checkpoints, packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from world import SMALL, World, make_rows, run


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model_dir with one checkpoint."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    world.trained(folder, "train_config.num_epochs=1")
    return folder


@pytest.fixture(scope="module")
def package(world: World, trained: Path) -> Path:
    folder = trained.parent / "package"
    flags = {"model_dir": trained, "eval_input_path": world.eval, "export_dir": folder}
    done = world.run("export", **flags)
    assert done.status == 0, done.err
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--modle_dir", "x"], ["--modle_dir", "--model_dir"]),
        (["stray"], ["stray"]),
        (["--continue_train", "maybe"], ["maybe", "true or false"]),
        (["--set", "train_config.num_epoch=1"], ["train_config.num_epoch", "num_epochs"]),
        (["--set", "train_config.num_epochs=many"], ["train_config.num_epochs", "many"]),
        (["--set", "train_config"], ["train_config"]),
        (["--set", "data_config.dataset_type=Parket"], ["Parket", "ParquetDataset"]),
        (["--set", "train_config.num_steps=3"], ["num_steps", "num_epochs"]),
        (["--edit_config_json", "{"], ["edit_config_json"]),
        (["--set", 'data_config.label_fields="nothing"'], ["nothing"]),
        (["--set", 'model_config.kernel="FAST"'], ["FAST", "PYTORCH"]),
        (["--set", "train_config.mixed_precision=INT8"], ["mixed_precision", "INT8"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_flags_and_fields(world: World, tmp_path: Path, words: list[str], told: list[str]) -> None:
    rows = {"train_input_path": world.train, "model_dir": tmp_path / "m"}
    run("train_eval", [*world.argv([], rows), *words]).fails(*told)
    assert not list(tmp_path.glob("m/model.ckpt*"))


def test_config_files(world: World, tmp_path: Path) -> None:
    absent = tmp_path / "absent.config"
    run("train_eval", ["--pipeline_config", absent]).fails("absent.config")
    broken = tmp_path / "broken.config"
    broken.write_text(SMALL.read_text().replace("num_epochs: 2", "num_epoks: 2"))
    run("train_eval", ["--pipeline_config", broken]).fails(
        "broken.config", "num_epoks", "num_epochs"
    )
    several = tmp_path / "several.config"
    text = SMALL.read_text().replace("num_epochs: 2", "")
    text = text.replace('"cand__video" group_type', '"cand__vide" group_type')
    several.write_text(text.replace('"uih__time"', '"uih__tiem"'))
    done = run("train_eval", ["--pipeline_config", several])
    done.fails("3 problems", "num_epochs", "uih__tiem", "cand__vide")


@pytest.mark.parametrize("verb", ["train_eval", "eval", "export", "predict"])
def test_absent_rows(world: World, trained: Path, tmp_path: Path, verb: str) -> None:
    flag = {"train_eval": "train_input_path", "predict": "predict_input_path"}
    flags = {flag.get(verb, "eval_input_path"): tmp_path / "none-*.parquet", "model_dir": trained}
    more = {"export": {"export_dir": tmp_path / "e"}, "predict": {"predict_output_path": tmp_path}}
    world.run(verb, **flags, **more.get(verb, {})).fails("none-*.parquet")


def test_missing_flags(world: World, trained: Path, package: Path, tmp_path: Path) -> None:
    world.run("export", model_dir=trained).fails("--export_dir")
    world.run("predict", model_dir=trained).fails("--predict_input_path")
    world.run("predict", model_dir=trained, predict_input_path=world.eval).fails(
        "--predict_output_path"
    )
    run("predict", ["--predict_input_path", world.eval]).fails("--export_dir", "--pipeline_config")


def edited(path: Path, tmp_path: Path, column: str, change) -> Path:
    """A copy of the rows with one column changed, or dropped (None)."""
    table = pq.read_table(path)
    new = change(table[column])
    index = table.column_names.index(column)
    table = table.remove_column(index)
    if new is not None:
        table = table.add_column(index, column, new)
    pq.write_table(table, tmp_path / "edited.parquet", row_group_size=20)
    return tmp_path / "edited.parquet"


def first_is(value: object):
    """A change of list cells: the first value of each becomes `value`."""
    return lambda c: pa.array([[value, *cell[1:]] for cell in c.to_pylist()], c.type)


def shortened(column):
    return pa.array([cell[1:] for cell in column.to_pylist()], column.type)


@pytest.mark.parametrize(
    ("column", "change", "told"),
    [
        ("user", lambda c: None, ["'user'", "edited.parquet"]),
        ("cand__action", lambda c: None, ["'cand__action'"]),
        ("cand__seconds", lambda c: pa.array(["late"] * len(c)), ["'cand__seconds'"]),
        ("cand__video", first_is(99), ["cand__video", "99", "row 0"]),
        ("city", lambda c: pa.array([{"a": 1}] * len(c)), ["'city'"]),
        ("uih__seconds", shortened, ["uih__seconds"]),
        ("cand__action", shortened, ["cand__action"]),
    ],
    ids=["absent feature", "absent label", "text", "out of range", "map", "unequal", "label"],
)
def test_columns(world: World, tmp_path: Path, column: str, change, told: list[str]) -> None:
    rows = edited(world.train, tmp_path, column, change)
    world.fit(tmp_path / "m", train_input_path=rows).fails(*told)


def test_damaged_rows(world: World, tmp_path: Path) -> None:
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(world.train.read_bytes()[:2000])
    world.fit(tmp_path / "m", train_input_path=cut).fails("cut.parquet")
    text = tmp_path / "text.parquet"
    text.write_text("hello")
    world.fit(tmp_path / "m", train_input_path=text).fails("text.parquet")
    flipped = tmp_path / "flipped.parquet"
    body = bytearray(world.train.read_bytes())
    body[40:400] = bytes(360)
    flipped.write_bytes(body)
    world.fit(tmp_path / "m", train_input_path=flipped).fails("flipped.parquet")


def test_workers_tell_errors_as_the_process_does(world: World, tmp_path: Path) -> None:
    rows = edited(world.train, tmp_path, "cand__video", first_is(99))
    done = world.fit(tmp_path / "m", "data_config.num_workers=1", train_input_path=rows)
    done.fails("edited.parquet", "cand__video", "99")


def test_labels_that_cannot_be(world: World, tmp_path: Path) -> None:
    config = tmp_path / "unmasked.config"
    config.write_text(SMALL.read_text().replace("task_bitmask: 1", ""))
    rows = edited(world.train, tmp_path, "cand__action", first_is(3))
    done = World(world.folder, config).fit(tmp_path / "m", train_input_path=rows)
    done.fails("'click'", "cand__action", "task_bitmask", "edited.parquet")


def test_continue_train_false_wants_an_empty_folder(world: World, trained: Path) -> None:
    world.fit(trained, continue_train="false").fails(str(trained), "--continue_train")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (
            "model_config.dlrm_hstu.hstu.attn_num_layers=2",
            "model_config.dlrm_hstu.hstu.attn_num_layers",
        ),
        ("train_config.seed=7", "train_config.seed"),
        (
            "train_config.dense_optimizer.sgd_optimizer.lr=0.1",
            "train_config.dense_optimizer.sgd_optimizer.lr",
        ),
        ("feature_configs[0].id_feature.hash_bucket_size=99", "hash_bucket_size"),
    ],
)
def test_a_changed_model_is_refused_with_the_difference(
    world: World, trained: Path, change: str, path: str
) -> None:
    new = change.rsplit("=", 1)[1]
    world.fit(trained, change, "train_config.num_epochs=1").fails(path, new, "model.ckpt-8")


def test_changed_rows_are_refused(world: World, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    make_rows(other, 80, seed=5)
    world.fit(trained, train_input_path=other).fails("fingerprint", "other data")


def test_damaged_checkpoints(world: World, trained: Path, tmp_path: Path) -> None:
    rows = {"eval_input_path": world.eval}
    damaged = copied(trained, tmp_path / "damaged")
    victim = next((damaged / "model.ckpt-8" / "model").glob("*.distcp"))
    victim.write_bytes(victim.read_bytes()[:-8] + b"\0" * 8)
    for verb in ("train_eval", "eval"):
        more = {"train_input_path": world.train} if verb == "train_eval" else {}
        world.run(verb, model_dir=damaged, **rows, **more).fails(victim.name, "damaged")
    victim.unlink()
    world.run("eval", model_dir=damaged, **rows).fails(victim.name, "missing")
    uncommitted = copied(trained, tmp_path / "uncommitted")
    (uncommitted / "model.ckpt-8" / "manifest.json").unlink()
    world.run("eval", model_dir=uncommitted, **rows).fails("no committed checkpoint")
    path = uncommitted / "model.ckpt-8"
    world.run("eval", checkpoint_path=path, **rows).fails("never committed")
    world.run("eval", checkpoint_path=trained / "model.ckpt-9", **rows).fails("does not exist")
    world.run("eval", model_dir=tmp_path / "nowhere", **rows).fails("nowhere")


def test_another_models_checkpoint(world: World, trained: Path) -> None:
    wide = "model_config.dlrm_hstu.fusion_mtl_tower.mlp.hidden_units=[32]"
    done = world.run("eval", wide, model_dir=trained, eval_input_path=world.eval)
    done.fails("another shape")


def test_damaged_packages(world: World, package: Path, tmp_path: Path) -> None:
    def predict(folder: Path):
        flags = {
            "export_dir": folder,
            "predict_input_path": world.eval,
            "predict_output_path": tmp_path / "out",
        }
        return run("predict", world.argv([], flags)[2:])

    for name in ("tables.safetensors", "dense.safetensors", "pipeline.config"):
        damaged = copied(package, tmp_path / name)
        (damaged / name).write_bytes((damaged / name).read_bytes()[:-4] + b"oops")
        predict(damaged).fails(name, "damaged")
        (damaged / name).unlink()
        predict(damaged).fails(name)
    bare = copied(package, tmp_path / "bare")
    (bare / "manifest.json").write_text("{")
    predict(bare).fails("manifest.json", "damaged")
    (bare / "manifest.json").unlink()
    predict(bare).fails("no exported package")
    predict(tmp_path / "nowhere").fails("nowhere")
    assert not (tmp_path / "out").exists()


def test_export_keeps_what_is_there(
    world: World, trained: Path, package: Path, tmp_path: Path
) -> None:
    flags = {"model_dir": trained, "eval_input_path": world.eval}
    world.run("export", **flags, export_dir=package).fails("already holds a package", "--overwrite")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    world.run("export", **flags, export_dir=tmp_path / "mine", overwrite=True).fails("no package")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    strict = "export_config.parity_tolerance=-1"
    world.run("export", strict, **flags, export_dir=tmp_path / "p").fails("parity_tolerance")
    assert not (tmp_path / "p").exists() and not list(tmp_path.glob(".writing*"))


def test_unknown_columns_of_predictions(world: World, package: Path, tmp_path: Path) -> None:
    flags = {
        "export_dir": package,
        "predict_input_path": world.eval,
        "predict_output_path": tmp_path / "out",
    }
    run("predict", world.argv([], {**flags, "output_columns": "score"})[2:]).fails(
        "score", "probs_click"
    )
    run("predict", world.argv([], {**flags, "reserved_columns": "usr"})[2:]).fails("usr", "user")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_watched_metric_must_exist(world: World, tmp_path: Path) -> None:
    text = "export_config.best_exporter_metric=recall"
    world.fit(tmp_path / "m", text).fails("recall", "auc_click")
    stop = "train_config.early_stopping.metric=auc"
    world.fit(tmp_path / "m", stop, eval_input_path="").fails("early_stopping", "eval_input_path")
    assert not list(tmp_path.glob("m/*.jsonl")), "refused before the first step"


def test_bitmask_columns_of_floats(world: World, tmp_path: Path) -> None:
    rows = edited(
        world.train,
        tmp_path,
        "cand__action",
        lambda c: pc.cast(c, pa.list_(pa.float64())),
    )
    world.fit(tmp_path / "m", train_input_path=rows).fails("cand__action")
