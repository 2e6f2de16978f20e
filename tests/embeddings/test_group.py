# SPDX-License-Identifier: Apache-2.0
"""The local engine against loops over rows; pointwise groups against rows exploded first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from embedding_world import FEATURES, GROUPS, POINTWISE, FakeFeature, make_batch, parse_groups
from torch import Tensor

from tzgen.data.batch import Batch, Ids, Ragged
from tzgen.embeddings import REPEAT, EmbeddingGroup, Groups, LocalTables
from tzgen.errors import ConfigError, UserError

SHAPES = {
    "mixed": ([3, 0, 2], [1, 2, 4]),
    "one row": ([4], [1]),
    "no history": ([0, 0], [1, 0]),
    "no rows": ([], []),
}


def local(text: str, *, pointwise: bool = False) -> EmbeddingGroup:
    torch.manual_seed(5)
    groups = parse_groups(text)
    return EmbeddingGroup(FEATURES, groups, engine="local", pointwise=pointwise, seed=3)


def bags(ids: Ids, table: Tensor, mode: str) -> list[Tensor]:
    """One vector a bag, by the loop."""
    weights = torch.ones(ids.values.numel()) if ids.weights is None else ids.weights
    sizes = ids.lengths.tolist()
    out = []
    for bag, scale in zip(ids.values.split(sizes), weights.split(sizes), strict=True):
        total = (table[bag] * scale[:, None]).sum(0)
        out.append(total / max(len(bag), 1) if mode == "mean" else total)
    return out


def rows(vectors: list[Tensor], width: int) -> Tensor:
    return torch.stack(vectors) if vectors else torch.zeros(0, width)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_of_each_kind_of_group(shape: str) -> None:
    group = local(GROUPS)
    batch = make_batch(*SHAPES[shape])
    got = group(batch)
    tables = {name: weight.detach() for name, weight in group.tables.named_weights()}
    cats = bags(batch.ids["uih__cat"], tables["cat_emb"], "mean")
    items = bags(batch.ids["uih__item"], tables["item_emb"], "sum")
    dwell = batch.dense["uih__dwell"]
    assert isinstance(dwell, Ragged) and isinstance(got["uih"], Ragged)
    want = torch.cat([rows(items, 8), rows(cats, 4), dwell.values], 1)
    torch.testing.assert_close(got["uih"].values, want)
    assert got["uih"].lengths.tolist() == SHAPES[shape][0]
    assert got["uih"].max_len == max([0, *SHAPES[shape][0]])

    deep = got["deep"]
    assert isinstance(deep, Tensor)
    pooled = [
        rows(bags(batch.ids["user_id"], tables["user_emb"], "sum"), 8),
        rows(bags(batch.ids["tags"], tables["tag_emb"], "mean"), 8),
        rows(bags(batch.ids["weighted_tags"], tables["wtag_emb"], "sum"), 4),
        rows(bags(batch.ids["city"], tables["city_emb"], "sum"), 4),
    ]
    torch.testing.assert_close(deep[:, :24], torch.cat(pooled, 1))
    torch.testing.assert_close(deep[:, 24:25], batch.dense["age"])
    favourites = rows(bags(batch.ids["favourites"], tables["item_emb"], "sum"), 8)
    torch.testing.assert_close(deep[:, 33:41], favourites)

    wide = rows(bags(batch.ids["tags"], tables["tag_emb_wide"], "mean"), 4)
    torch.testing.assert_close(got["wide"][:, 4:], wide)  # type: ignore[index]
    history = [
        steps.sum(0) if len(steps) else torch.zeros(8)
        for steps in rows(bags(batch.ids["uih__item"], tables["item_emb_two"], "sum"), 8).split(
            SHAPES[shape][0]
        )
    ]
    torch.testing.assert_close(got["second"][:, 8:], rows(history, 8))  # type: ignore[index]


@pytest.mark.parametrize("shape", SHAPES)
def test_widths_and_kinds(shape: str) -> None:
    group = local(GROUPS)
    got = group(make_batch(*SHAPES[shape]))
    assert set(got) == set(group.widths)
    for name, value in got.items():
        values = value.values if isinstance(value, Ragged) else value
        assert values.size(1) == sum(group.widths[name]), name
    assert isinstance(got["uih_timestamp"], Ragged)
    assert got["uih_timestamp"].values.dtype == torch.int64, "times must not pass through float32"
    assert isinstance(got["contextual"], Tensor), "a sequence group without sequences is a vector"
    assert group.widths["deep"] == (8, 8, 4, 4, 1, 4, 4, 8, 12, 5)


def exploded(batch: Batch, candidates: list[int]) -> Batch:
    """One row a candidate: row features and histories copied, candidates one value a row."""
    owner = torch.repeat_interleave(torch.arange(len(candidates)), torch.tensor(candidates))
    total = len(owner)

    def take(values: Tensor, sizes: Tensor, pick: Tensor) -> Tensor:
        parts = values.split(sizes.tolist())
        return torch.cat([parts[i] for i in pick.tolist()]) if len(pick) else values[:0]

    out = Batch(num_rows=total)
    for name, ids in batch.ids.items():
        if name.startswith("cand"):
            out.ids[name] = replace(ids, seq_lengths=None, max_len=0)
        elif ids.seq_lengths is None:
            values, lengths = take(ids.values, ids.lengths, owner), ids.lengths[owner]
            weights = None if ids.weights is None else take(ids.weights, ids.lengths, owner)
            out.ids[name] = Ids(values, lengths, weights)
        else:
            steps = ids.seq_lengths
            per_row = torch.stack([part.sum() for part in ids.lengths.split(steps.tolist())])
            values = take(ids.values, per_row, owner)
            lengths = take(ids.lengths, steps, owner)
            out.ids[name] = Ids(values, lengths, None, steps[owner], ids.max_len)
    for name, numbers in batch.dense.items():
        if isinstance(numbers, Tensor):
            out.dense[name] = numbers[owner]
    return out


@pytest.mark.parametrize("candidates", [[1, 2, 4], [0, 3, 0], [1, 1, 1]], ids=str)
def test_pointwise_equals_rows_exploded_by_candidate(candidates: list[int]) -> None:
    batch = make_batch([3, 0, 2], candidates)
    got = local(POINTWISE, pointwise=True)(batch)
    flat = [replace(f, is_sequence=False) if f.name.startswith("cand") else f for f in FEATURES]
    text = POINTWISE.replace(
        '"candidate" group_type: JAGGED_SEQUENCE', '"candidate" group_type: DEEP'
    )
    torch.manual_seed(5)
    plain = EmbeddingGroup(flat, parse_groups(text), engine="local", seed=3)
    want = plain(exploded(batch, candidates))
    for name in ("deep", "history", "candidate"):
        torch.testing.assert_close(got[name], want[name], msg=lambda text, n=name: f"{n}: {text}")
    assert got[REPEAT].tolist() == candidates  # type: ignore[union-attr]
    assert isinstance(got["uih"], Ragged) and got["uih"].lengths.tolist() == [3, 0, 2]


def test_pointwise_without_candidates_is_one_row_a_sample() -> None:
    text = 'feature_groups { group_name: "deep" feature_names: ["user_id", "age"] }'
    batch = make_batch([1, 2], [1, 2])
    got = local(text, pointwise=True)(batch)
    assert set(got) == {"deep"} and got["deep"].shape == (2, 9)  # type: ignore[union-attr]


def test_pointwise_batch_without_rows() -> None:
    got = local(POINTWISE, pointwise=True)(make_batch([], []))
    assert got["deep"].shape[0] == 0 and got[REPEAT].numel() == 0  # type: ignore[union-attr]


def test_gradients_reach_shared_tables_from_every_use() -> None:
    group = local(GROUPS)
    got = group(make_batch([2, 1], [1, 1]))
    uses = ("deep", "uih", "candidate")  # favourites, history, candidates: one table

    def norm(value: Tensor | Ragged) -> Tensor:
        return (value.values if isinstance(value, Ragged) else value).square().sum()

    def grad(names: tuple[str, ...]) -> Tensor:
        weight = group.tables.weights["item_emb"]  # type: ignore[union-attr, index]
        loss = sum(norm(got[name]) for name in names)
        (found,) = torch.autograd.grad(loss, weight, retain_graph=True)  # type: ignore[arg-type]
        return found.to_dense()

    torch.testing.assert_close(grad(uses), sum(grad((name,)) for name in uses))


def test_frozen_tables_get_no_gradient() -> None:
    group = local(GROUPS)
    assert isinstance(group.tables, LocalTables)
    sum_of(group(make_batch([2], [1]))).backward()
    assert group.tables.weights["city_emb"].grad is None
    assert group.tables.weights["user_emb"].grad is not None


def sum_of(groups: Groups) -> Tensor:
    values = [v.values if isinstance(v, Ragged) else v for v in groups.values()]
    return torch.stack([v.square().sum() for v in values if v.is_floating_point()]).sum()


def test_half_tables_are_looked_up_in_float32() -> None:
    assert FEATURES[0].table is not None
    half = replace(FEATURES[0], table=replace(FEATURES[0].table, data_type="FP16"))
    text = 'feature_groups { group_name: "deep" feature_names: ["user_id"] }'
    group = EmbeddingGroup([half], parse_groups(text), engine="local", seed=3)
    got, want = group(make_batch([1, 1], [1, 1])), local(text)(make_batch([1, 1], [1, 1]))
    assert got["deep"].dtype == torch.float32
    torch.testing.assert_close(got["deep"], want["deep"].half().float())


def test_load_tables_wants_the_right_shapes() -> None:
    group = local('feature_groups { group_name: "deep" feature_names: ["user_id"] }')
    assert isinstance(group.tables, LocalTables)
    group.tables.load_tables({"user_emb": torch.ones(30, 8), "other": torch.ones(1)})
    assert torch.equal(group.tables.weights["user_emb"].detach(), torch.ones(30, 8))
    with pytest.raises(UserError, match=r"\(3, 8\); the config says \(30, 8\)"):
        group.tables.load_tables({"user_emb": torch.ones(3, 8)})
    with pytest.raises(UserError, match="no table 'user_emb'"):
        group.tables.load_tables({})


def test_tables_on_meta_take_the_tensors_themselves() -> None:
    text = 'feature_groups { group_name: "deep" feature_names: ["user_id"] }'
    meta = torch.device("meta")
    group = EmbeddingGroup(FEATURES, parse_groups(text), engine="local", device=meta)
    assert isinstance(group.tables, LocalTables)
    table = torch.randn(30, 8)
    group.tables.load_tables({"user_emb": table})
    batch = make_batch([1, 1], [1, 1])
    assert torch.equal(group(batch)["deep"].detach(), table[batch.ids["user_id"].values])
    assert group.tables.weights["user_emb"].data_ptr() == table.data_ptr()


def config(features: str, *, kind: str = "DEEP", more: str = "") -> str:
    names = f"group_type: {kind} feature_names: [{features}]"
    return f'feature_groups {{ group_name: "g" {names} {more} }}'


SEQUENCE = 'sequence_groups { group_name: "s" feature_names: ["uih__cat", "user_id"] }'
REFUSED = [
    (config('"nobody"'), "a feature of feature_configs"),
    (config('"age"', kind="WIDE"), "wide is ids only"),
    (config('"uih__dwell"'), "sequences of numbers are not pooled"),
    (config('"age"', more=SEQUENCE), "without encoder"),
    (
        config('"age"', more=SEQUENCE + "sequence_encoders { simple_attention {} }"),
        "a query of 8 values for steps of 4",
    ),
    (
        config('"age"', more=SEQUENCE + 'sequence_encoders { pooling_encoder { input: "t" } }'),
        r"one of \['s'\]",
    ),
    (
        config('"age"', more=SEQUENCE + "sequence_encoders { hstu_encoder {} }"),
        "one of din_encoder, simple_attention",
    ),
    (
        config('"age"', more=SEQUENCE + 2 * 'sequence_encoders { pooling_encoder { name: "p" } }'),
        "a name of its own",
    ),
    (config('"uih__cat"', kind="SEQUENCE", more=SEQUENCE), "them in a DEEP group"),
    (config('"age"') * 2, "unique group_name"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refuses_groups_it_cannot_build(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        local(text)


@pytest.mark.parametrize(
    ("change", "engine", "message"),
    [
        (lambda t: replace(t, embedding_dim=6), "torchrec", "a multiple of 4"),
        (lambda t: replace(t, name="a.b"), "local", "no '.'"),
        (lambda t: replace(t, init_fn="os.system"), "local", "unknown name"),
        (lambda t: replace(t, num_embeddings=0), "local", "above 0"),
        (lambda t: replace(t, data_type="INT8"), "local", "FP32 or FP16"),
    ],
)
def test_refuses_tables_it_cannot_hold(
    change: Callable[[object], object], engine: str, message: str
) -> None:
    feature = replace(FEATURES[0], table=change(FEATURES[0].table))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        EmbeddingGroup([feature], parse_groups(config('"user_id"')), engine=engine)


def test_tables_that_disagree_are_refused() -> None:
    assert FEATURES[0].table is not None
    other = FakeFeature("other", replace(FEATURES[0].table, num_embeddings=31))
    with pytest.raises(ConfigError, match="describe the same one"):
        EmbeddingGroup(
            [FEATURES[0], other], parse_groups(config('"user_id", "other"')), engine="local"
        )


def test_unknown_engine() -> None:
    with pytest.raises(UserError, match="'remote' is unknown"):
        EmbeddingGroup(FEATURES, [], engine="remote")
