# SPDX-License-Identifier: Apache-2.0
"""encode, score and append of a loaded package against its prediction of whole rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from export.export_world import batch_of, config_of, in_pages, pipeline_of

from tzgen.build import Pipeline
from tzgen.data.batch import Batch
from tzgen.errors import UserError
from tzgen.export import cached as cached_module
from tzgen.export.cached import CompiledCached, EagerCached, cached_model
from tzgen.export.cached_graphs import make_graphs
from tzgen.export.graphs import inputs_of
from tzgen.export.loaded import LoadedPackage, load_package
from tzgen.export.parity import cached_answers, largest_difference, split_histories
from tzgen.export.writing import export_package

STABLE = (
    "model_config.dlrm_hstu.hstu.stu.append_stable=true",
    "model_config.dlrm_hstu.hstu.positional_encoder.use_time_encoding=false",
    "model_config.dlrm_hstu.hstu.stu.relative_bias.use_time=true",
)


@pytest.fixture(scope="module", params=["ages", "stable"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_of("dlrm_hstu", *(STABLE if request.param == "stable" else ()))
    pipeline = pipeline_of(config)
    batch = batch_of(config, pipeline)
    folder = tmp_path_factory.mktemp("packages") / request.param
    return export_package(pipeline, batch, folder, provenance={})


def uncompiled(pipeline: Pipeline, batch: Batch) -> CompiledCached:
    """The compiled form's own code over graphs that were not compiled."""
    model = cached_model(pipeline.model)
    assert model is not None
    with torch.no_grad():
        groups = pipeline.module.embeddings(batch)
    bounds = dict.fromkeys(groups, 64)
    made = make_graphs(pipeline, model, groups, inputs_of(groups, bounds))
    return CompiledCached(
        model,
        made["encode"].graph.layout,
        inputs={name: traced.graph.inputs for name, traced in made.items()},
        outputs={name: traced.graph.output_names for name, traced in made.items()},
        graph=lambda name: made[name].graph,
    )


@pytest.fixture(params=["eager", "flat graphs"])
def loaded(request: pytest.FixtureRequest, package: Path) -> Iterator[LoadedPackage]:
    made = load_package(package)
    if request.param == "flat graphs":
        made.cached = uncompiled(made.pipeline, rows_of(made, 2))
    yield made


def rows_of(loaded: LoadedPackage, count: int) -> Batch:
    return batch_of(loaded.pipeline.config, loaded.pipeline, num_rows=count, seed=count)


@pytest.mark.parametrize("count", [1, 5])
def test_scores_from_caches_are_those_of_whole_rows(loaded: LoadedPackage, count: int) -> None:
    rows = rows_of(loaded, count)
    want, _ = loaded.predict(rows)
    answers = cached_answers(loaded, rows, "rows")
    stable = not cached_model(loaded.pipeline.model).append_refusals
    assert set(answers) == {"rows, encoded", *(["rows, appended"] if stable else [])}
    for kind, answer in answers.items():
        name, difference = largest_difference(want, answer)
        assert difference < 1e-5, f"{kind}: {name}"


def test_pages_are_read_in_place_or_gathered(loaded: LoadedPackage) -> None:
    with torch.no_grad():
        groups = loaded.pipeline.module.embeddings(rows_of(loaded, 4))
    cache = loaded.encode(groups)
    want, got = loaded.score(groups, cache), loaded.score(groups, in_pages(cache))
    assert largest_difference(want, got)[1] < 1e-6
    assert int(cache.lengths.max()) <= cache.max_len


def test_an_unstable_package_refuses_to_append_by_name(package: Path) -> None:
    loaded = load_package(package)
    with torch.no_grad():
        groups = loaded.pipeline.module.embeddings(rows_of(loaded, 3))
    cache = loaded.encode(groups)
    if package.name == "stable":
        loaded.append(split_histories(groups, "uih", True)[1], cache)
        return
    with pytest.raises(UserError, match=r"stu.append_stable \(false\).*use_time_encoding"):
        loaded.append(groups, cache)


def test_rows_longer_than_what_was_compiled_are_refused(package: Path) -> None:
    loaded = load_package(package)
    with torch.no_grad():
        groups = loaded.pipeline.module.embeddings(rows_of(loaded, 3))
    compiled = uncompiled(loaded.pipeline, rows_of(loaded, 2))
    cache = loaded.encode(groups)
    long = cached_module.replace(cache, max_len=5000)
    with pytest.raises(UserError, match=r"rows of up to 5000 tokens.*compiled for"):
        compiled.score(groups, long)


def test_models_without_histories_say_so(tmp_path: Path) -> None:
    config = config_of("mmoe")
    pipeline = pipeline_of(config)
    batch = batch_of(config, pipeline)
    loaded = load_package(export_package(pipeline, batch, tmp_path / "p", provenance={}))
    with pytest.raises(UserError, match="has the graphs full and cannot encode"):
        loaded.encode({})


def test_eager_packages_predict_in_micro_batches(package: Path) -> None:
    """The package's prediction takes score_micro_batch like the checkpoint's."""
    override = "model_config.dlrm_hstu.score_micro_batch=2"
    loaded, plain = load_package(package, overrides=[override]), load_package(package)
    assert isinstance(loaded.cached, EagerCached)
    model = cached_model(loaded.pipeline.model)
    assert model is not None and model.micro_batch == 2
    calls = []
    score = model.transducer.score
    model.transducer.score = lambda *args: (calls.append(1), score(*args))[1]
    rows = rows_of(loaded, 4)
    got, want = loaded.predict(rows)[0], plain.predict(rows)[0]
    assert len(calls) > 1
    assert largest_difference(want, got)[1] < 1e-5


@pytest.mark.parametrize("name", ["dlrm_hstu", "dlrm_hstu_mtgr", "dlrm_hstu_interleave"])
def test_checkpoints_predict_in_micro_batches(name: str) -> None:
    """Pipeline.predict, which checkpoints run, by chunks and whole."""
    config = config_of(name)
    plain = pipeline_of(config)
    rows = batch_of(config, plain, num_rows=5)
    chunked = pipeline_of(config_of(name, "model_config.dlrm_hstu.score_micro_batch=3"))
    want, repeat = plain.predict(rows)
    got, got_repeat = chunked.predict(rows)
    assert largest_difference(want, got)[1] < 1e-5
    assert repeat is not None and got_repeat is not None and torch.equal(repeat, got_repeat)


def test_truncated_models_score_from_caches_by_their_modules(tmp_path: Path) -> None:
    """No graph can foresee how many tokens are left behind the cut; the modules can."""
    hstu = "model_config.dlrm_hstu.hstu"
    cut = (f"{hstu}.attn_truncation_split_layer=1", f"{hstu}.attn_truncation_tail_len=2")
    config = config_of("dlrm_hstu", *cut)
    pipeline = pipeline_of(config)
    rows = batch_of(config, pipeline, num_rows=4)
    loaded = load_package(export_package(pipeline, rows, tmp_path / "p", provenance={}))
    assert loaded.package.graph_names == ("full",)
    assert "as saved, encoded" in loaded.package.manifest["parity"]
    with torch.no_grad():
        groups = loaded.pipeline.module.embeddings(rows)
    cache = loaded.encode(groups)
    first, second = (int(layer.lengths.sum()) for layer in cache.layers)
    assert second < first
    assert largest_difference(loaded.predict(rows)[0], loaded.score(groups, cache))[1] < 1e-5
    with pytest.raises(UserError, match="attn_truncation_tail_len"):
        loaded.append(groups, cache)
