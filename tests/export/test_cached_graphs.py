# SPDX-License-Identifier: Apache-2.0
"""Caches as flat tensors and back; which groups each graph takes."""

from __future__ import annotations

import pytest
import torch
from export.export_world import batch_of, config_of, pipeline_of

from tzgen.export.cached import cached_model
from tzgen.export.cached_graphs import CacheLayout, TracedGraph, make_graphs
from tzgen.export.graphs import inputs_of

STABLE = (
    "model_config.dlrm_hstu.hstu.stu.append_stable=true",
    "model_config.dlrm_hstu.hstu.positional_encoder.use_time_encoding=false",
    "model_config.dlrm_hstu.hstu.stu.relative_bias.use_time=true",
)


def graphs_of(*overrides: str) -> dict[str, TracedGraph]:
    config = config_of("dlrm_hstu", *overrides)
    pipeline = pipeline_of(config)
    model = cached_model(pipeline.model)
    assert model is not None
    with torch.no_grad():
        groups = pipeline.module.embeddings(batch_of(config, pipeline))
    return make_graphs(pipeline, model, groups, inputs_of(groups, dict.fromkeys(groups, 30)))


def test_the_layout_follows_the_model() -> None:
    aged, stable = graphs_of(), graphs_of(*STABLE)
    assert list(aged) == ["encode", "score"] and list(stable) == ["encode", "score", "append"]
    layers = ("k.0", "v.0", "k.1", "v.1")
    assert aged["encode"].graph.layout.names == ("lengths", "query_time", "contextual", *layers)
    assert stable["encode"].graph.layout.names == ("lengths", "contextual", "timestamps", *layers)
    tokens = aged["encode"].graph.model.channel.contextual[0]
    assert aged["encode"].graph.layout.max_len == tokens + 30
    again = CacheLayout(**aged["encode"].graph.layout.as_json())
    assert again == aged["encode"].graph.layout


def test_there_and_back() -> None:
    made = graphs_of(*STABLE)
    layout = made["encode"].graph.layout
    with torch.no_grad():
        flat = made["encode"].graph(*made["encode"].example)
    cache = layout.unflatten(flat, 12)
    assert cache.max_len == 12 and cache.layers[1].max_len == 12
    assert cache.layers[0].k.size(0) == int(cache.lengths.sum())
    for before, after in zip(flat, layout.flatten(cache), strict=True):
        assert before is after


def test_outputs_share_no_memory_with_inputs() -> None:
    for made in graphs_of(*STABLE).values():
        with torch.no_grad():
            results = made.graph(*made.example)
        given = {tensor.untyped_storage().data_ptr() for tensor in made.example if tensor.numel()}
        for result in results:
            assert result.numel() == 0 or result.untyped_storage().data_ptr() not in given


@pytest.mark.parametrize("name", ["encode", "score", "append"])
def test_graphs_export_with_everything_dynamic(name: str) -> None:
    """torch.export keeps one attention a layer; other row and token counts run."""
    from tzgen.export.graphs import trace

    made = graphs_of(*STABLE)[name]
    program = trace(made.graph, made.example)
    parts = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    nodes = [str(node.target) for part in parts for node in part.graph.nodes]  # autocast nests them
    # the last layer of a history leaves keys and values alone
    wanted = {"encode": (1, 0), "score": (0, 2), "append": (0, 1)}[name]
    found = tuple(
        nodes.count(f"tzgen.{op}.default") for op in ("hstu_attention", "hstu_attention_cached")
    )
    assert found == wanted
    with torch.no_grad():
        for got, want in zip(
            program.module()(*made.example), made.graph(*made.example), strict=True
        ):
            torch.testing.assert_close(got, want)
