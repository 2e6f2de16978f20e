# SPDX-License-Identifier: Apache-2.0
"""The torchrec engine against the local one: outputs, updates, pipelining, two processes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from embedding_world import (
    FEATURES,
    GROUPS,
    POINTWISE,
    FakeFeature,
    make_batch,
    make_source,
    parse_groups,
)
from torch import Tensor, nn

from tzgen.data.batch import Batch, Ragged
from tzgen.embeddings import (
    EmbeddingGroup,
    Groups,
    OptimizerSpec,
    dense_parameters,
    model_state,
    sparse_optimizer,
)
from tzgen.errors import UserError
from tzgen.features.tables import Constraints, TableSpec

pytest.importorskip("torchrec", reason="the torchrec engine needs torchrec and fbgemm")

from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from tzgen.embeddings import sharding
from tzgen.embeddings.sharding import ensure_process_group, gather_tables, shard
from tzgen.embeddings.torchrec_batch import EmbeddingBatch

CPU = torch.device("cpu")
SHAPES = [([3, 0, 2], [1, 2, 4]), ([4], [1]), ([0, 0], [1, 0]), ([], [])]
RULES = {
    "sgd": OptimizerSpec("sgd", 0.1),
    "adagrad": OptimizerSpec("adagrad", 0.1, initial_accumulator_value=0.1),
    "rowwise": OptimizerSpec("rowwise_adagrad", 0.1),
    "clipped": OptimizerSpec("adagrad", 0.1, max_gradient=0.05),
}


class Module(nn.Module):
    """Stands for the TrainModule: embeddings, then a leaf that makes a loss of all groups."""

    def __init__(self, engine: str, text: str = GROUPS, *, pointwise: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        groups = parse_groups(text)
        self.embeddings = EmbeddingGroup(
            FEATURES, groups, engine=engine, pointwise=pointwise, seed=3
        )
        self.loss = Loss({n: sum(w) for n, w in self.embeddings.widths.items()})

    def forward(self, batch: Batch) -> tuple[Tensor, Groups]:
        groups = self.embeddings(batch)
        return self.loss(groups), groups


class Loss(nn.Module):
    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.tops = nn.ModuleDict(
            {
                name.replace(".", "_"): nn.Linear(width, 3)
                for name, width in widths.items()
                if not name.endswith("_timestamp")
            }
        )

    def forward(self, groups: Groups) -> Tensor:
        total = torch.zeros(())
        for name, value in groups.items():
            values = value.values if isinstance(value, Ragged) else value
            if values.is_floating_point():
                total = total + self.tops[name.replace(".", "_")](values).tanh().sum()
        return total


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    mine = not dist.is_initialized()
    ensure_process_group(CPU)
    yield
    if mine:
        dist.destroy_process_group()


def sharded(spec: OptimizerSpec = RULES["sgd"], text: str = GROUPS, **options: bool) -> nn.Module:
    return shard(Module("torchrec", text, **options), device=CPU, optimizer=spec)


def for_torchrec(module: nn.Module, batch: Batch) -> EmbeddingBatch:
    parse = module.module.embeddings.attach_kjts(lambda rows, source: rows)
    return parse(batch, batch.source)


def whole(tensor: Tensor) -> Tensor:
    """The one shard of a tensor in a group of one."""
    return tensor.local_shards()[0].tensor if isinstance(tensor, ShardedTensor) else tensor


def assert_same(got: Groups, want: Groups) -> None:
    assert set(got) == set(want)
    for name, value in want.items():
        mine = got[name]
        if isinstance(value, Ragged):
            assert isinstance(mine, Ragged) and mine.max_len == value.max_len
            assert torch.equal(mine.lengths, value.lengths)
            mine, value = mine.values, value.values
        torch.testing.assert_close(mine, value, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("pointwise", [False, True])
def test_same_groups_from_both_engines(pointwise: bool) -> None:
    text = POINTWISE if pointwise else GROUPS
    theirs = sharded(text=text, pointwise=pointwise)
    ours = Module("local", text, pointwise=pointwise)
    for seed, shape in enumerate(SHAPES):
        batch = make_batch(*shape, seed=seed)
        _, got = theirs(for_torchrec(theirs, batch))
        _, want = ours(batch)
        assert_same(got, want)


@pytest.mark.parametrize("name", RULES)
def test_five_steps_of_both_engines(name: str) -> None:
    spec = RULES[name]
    theirs, ours = sharded(spec), Module("local")
    handles = [sparse_optimizer(theirs, spec), sparse_optimizer(ours, spec)]
    frozen = dict(gather_tables(ours))["city_emb"]
    for step in range(5):
        batch = make_batch(*SHAPES[step % 3], seed=step)
        if step == 3:
            for handle in handles:
                handle.set_lr(0.03)
        theirs(for_torchrec(theirs, batch))[0].backward()
        ours(batch)[0].backward()
    got, want = gather_tables(theirs), gather_tables(ours)
    assert set(got) == set(want)
    for table in want:
        torch.testing.assert_close(
            got[table],
            want[table],
            atol=1e-6,
            rtol=1e-6,
            msg=lambda t, n=table: f"{n}: {t}",
        )
    assert torch.equal(got["city_emb"], frozen), "a frozen table has moved"
    assert not torch.equal(got["item_emb"], Module("local").embeddings.tables.weights["item_emb"])
    mine, other = (handle.state() for handle in handles)
    assert set(mine) == set(other)
    for key, tensor in mine.items():
        torch.testing.assert_close(whole(tensor), other[key], atol=1e-6, rtol=1e-6)
    dense = dict(dense_parameters(ours))
    for key, parameter in dense_parameters(theirs):
        torch.testing.assert_close(parameter.grad, dense[key].grad, atol=1e-5, rtol=1e-5)


def test_no_table_reaches_the_dense_optimizer() -> None:
    theirs, ours = sharded(), Module("local")
    names = [name for name, _ in dense_parameters(theirs)]
    assert names == [name for name, _ in dense_parameters(ours)]
    assert not [name for name in names if "_emb." in name or "tables" in name]
    assert len(names) < len(list(theirs.named_parameters()))
    for name, parameter in theirs.named_parameters():
        fused = "_in_backward_optimizers" in vars(parameter)
        assert fused == (name not in names), name


def test_every_collection_is_pipelined() -> None:
    theirs, ours = sharded(), Module("local")
    handle = sparse_optimizer(ours, RULES["sgd"])
    batches = [make_batch(*SHAPES[i % 2], seed=i) for i in range(4)]
    dense = torch.optim.SGD([p for _, p in dense_parameters(theirs)], lr=0.0)
    pipeline = TrainPipelineSparseDist(theirs, dense, CPU)
    stream = iter([for_torchrec(theirs, batch) for batch in batches])
    for batch in batches:
        got = pipeline.progress(stream)
        loss, want = ours(batch)
        loss.backward()
        assert_same(got, want)
    collections = theirs.module.embeddings.tables.collections
    assert len(pipeline._pipelined_modules) == len(collections) == 4
    assert handle.lr == 0.1


def test_the_batch_moves_and_pickles(tmp_path: Path) -> None:
    theirs = sharded()
    batch = for_torchrec(theirs, make_batch([2, 1], [1, 1]))
    torch.save(batch, tmp_path / "batch.pt")
    again = torch.load(tmp_path / "batch.pt", weights_only=False)
    moved = again.to(CPU, non_blocking=True).map(lambda tensor: tensor.clone())
    assert isinstance(moved, EmbeddingBatch) and set(moved.kjts) == set(batch.kjts)
    for name, kjt in batch.kjts.items():
        assert torch.equal(moved.kjts[name].values(), kjt.values())
        assert moved.kjts[name].values() is not kjt.values()
    assert_same(theirs(moved)[1], theirs(batch)[1])
    with pytest.raises(AttributeError, match="kjts"):
        theirs(make_batch([2, 1], [1, 1]))


def test_checkpoint_names_do_not_depend_on_the_engine() -> None:
    spec = RULES["rowwise"]
    theirs, ours = sharded(spec), Module("local")
    got, want = model_state(theirs), model_state(ours)
    assert set(got) == set(want) and "tables.item_emb" in got
    for name, tensor in want.items():
        assert torch.equal(whole(got[name]), tensor), name
    assert set(sparse_optimizer(theirs, spec).state()) == set(sparse_optimizer(ours, spec).state())


def test_handle_state_is_live_and_loads() -> None:
    spec = RULES["rowwise"]
    theirs, other = sharded(spec), sharded(spec)
    handle, second = sparse_optimizer(theirs, spec), sparse_optimizer(other, spec)
    theirs(for_torchrec(theirs, make_batch([3], [1])))[0].backward()
    total = whole(handle.state()["sparse.item_emb.momentum1"]).sum()
    assert total > 0
    second.load(handle.state())
    for name, tensor in handle.state().items():
        assert torch.equal(whole(second.state()[name]), whole(tensor))


def test_checkpoints_cross_engines(tmp_path: Path) -> None:
    """Two steps sharded, saved, loaded into the local engine: the third step is the same."""
    spec = RULES["adagrad"]
    theirs, ours = sharded(spec), Module("local")
    handle, other = sparse_optimizer(theirs, spec), sparse_optimizer(ours, spec)
    for seed in range(2):
        theirs(for_torchrec(theirs, make_batch([3, 1], [1, 2], seed=seed)))[0].backward()
    dcp.save({**model_state(theirs), **handle.state()}, checkpoint_id=tmp_path)
    target = {**model_state(ours), **other.state()}
    dcp.load(target, checkpoint_id=tmp_path)
    other.load(target)
    last = make_batch([2, 2], [1, 1], seed=9)
    theirs(for_torchrec(theirs, last))[0].backward()
    ours(last)[0].backward()
    want = gather_tables(theirs)
    for name, weight in gather_tables(ours).items():
        torch.testing.assert_close(weight, want[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise"])
def test_initial_weights_do_not_depend_on_the_plan(kind: str) -> None:
    module = shard(
        Module("torchrec"),
        device=CPU,
        optimizer=RULES["sgd"],
        constraints=Constraints(sharding_types=(kind,)),
    )
    want = gather_tables(Module("local"))
    for name, weight in gather_tables(module).items():
        assert torch.equal(weight, want[name]), name


def test_data_parallel_is_replaced_with_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sharding, "warn_once", said.append)
    asked = Constraints(sharding_types=("data_parallel",), compute_kernels=("dense",))
    module = shard(Module("torchrec"), device=CPU, optimizer=RULES["sgd"], constraints=asked)
    assert any("'item_emb': data_parallel" in text for text in said)
    assert not [name for name, _ in dense_parameters(module) if "tables" in name]


def test_refusals_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not exist in fbgemm on a CPU"):
        shard(Module("torchrec"), device=CPU, optimizer=OptimizerSpec("adam", 0.1))
    monkeypatch.setattr("tzgen.embeddings.memory.available_bytes", lambda device: 1000)
    with pytest.raises(UserError, match="item_emb"):
        shard(Module("torchrec"), device=CPU, optimizer=RULES["sgd"])


def test_impossible_constraints_are_a_user_error() -> None:
    with pytest.raises(UserError, match="no way to place the tables"):
        shard(
            Module("torchrec"),
            device=CPU,
            optimizer=RULES["sgd"],
            constraints=Constraints(compute_kernels=("fused_uvm",)),
        )


@pytest.mark.parametrize("weighted", [False, True])
def test_tables_pooled_in_two_ways(weighted: bool) -> None:
    """A sum and a mean over one table: TorchRec's bags have one pooling a table."""
    table = TableSpec("t", 20, 4)
    features = [
        FakeFeature("a", table, value_dim=0, weighted=weighted),
        FakeFeature("b", replace(table, pooling="MEAN"), value_dim=0, weighted=weighted),
        FakeFeature("c", TableSpec("m", 20, 4, pooling="MEAN"), value_dim=0, weighted=weighted),
        FakeFeature("d", TableSpec("n", 20, 4, data_type="FP16"), value_dim=0),
    ]
    text = 'feature_groups { group_name: "g" feature_names: ["a", "b", "c", "d"] }'
    groups = parse_groups(text)
    ours = EmbeddingGroup(features, groups, engine="local", seed=1)
    inner = EmbeddingGroup(features, groups, engine="torchrec", seed=1)
    theirs = shard(inner, device=CPU, optimizer=RULES["sgd"])
    batch = make_batch([0] * 5, [0] * 5, features=features)
    parse = inner.attach_kjts(lambda rows, source: rows)
    torch.testing.assert_close(theirs(parse(batch, make_source(5)))["g"], ours(batch)["g"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trained(kind: str, batches: list[Batch], spec: OptimizerSpec) -> dict[str, Tensor]:
    """Tables after one pass of both ranks over their batches; the local engine averages too."""
    if kind == "local":
        module: nn.Module = Module("local")
        handle = sparse_optimizer(module, spec, process_group=dist.group.WORLD)
    else:
        asked = None if kind == "default" else Constraints(sharding_types=(kind,))
        module = shard(Module("torchrec"), device=CPU, optimizer=spec, constraints=asked)
        handle = sparse_optimizer(module, spec)
    for batch in batches:
        module(batch if kind == "local" else for_torchrec(module, batch))[0].backward()
    assert handle.state()
    return gather_tables(module)


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    uneven = [make_batch(*SHAPES[(i + rank) % 4], seed=10 * i + rank) for i in range(4)]
    even = [make_batch([2 + rank, 0, 1], [1, 1, 2], seed=10 * i + rank) for i in range(3)]
    spec = RULES["rowwise"]
    results = {
        "uneven": {k: trained(k, uneven, spec) for k in ("local", "table_wise", "default")},
        "even": {k: trained(k, even, spec) for k in ("local", "table_wise", "row_wise")},
    }
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """Whatever the sharding and the engine, two ranks end with the same tables."""
    mp.spawn(worker, args=(free_port(), str(tmp_path)), nprocs=2)
    results = torch.load(tmp_path / "results.pt")
    start = gather_tables(Module("local"))
    for case, kinds in results.items():
        want = kinds["local"]
        assert not torch.equal(want["item_emb"], start["item_emb"])
        for kind, tables in kinds.items():
            assert set(tables) == set(start)
            for name, weight in tables.items():
                torch.testing.assert_close(
                    weight,
                    want[name],
                    atol=1e-6,
                    rtol=1e-6,
                    msg=lambda t, w=(case, kind, name): f"{w}: {t}",
                )
