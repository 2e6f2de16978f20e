# SPDX-License-Identifier: Apache-2.0
"""tiger and genrec: searches against exhaustive scoring, what is read, bundles, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from generator_world import (
    HISTORIES,
    TARGETS,
    TEXTS,
    append,
    config_of,
    generator,
    groups,
    item_ids,
    publish,
)
from torch import Tensor

from tzgen.decoding import BeamOptions, beam_search
from tzgen.errors import UserError
from tzgen.models.base import MODELS
from tzgen.sid.bundle import open_bundle

NAMES = tuple(TEXTS)
WIDE = "beam_search { beams: 240 num_results: 40 }"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("sids"))


def log_probabilities(model, histories) -> Tensor:
    """Of every item after each history, one item at a time by teacher forcing, [B, N]."""
    found = []
    for item in model.catalogue.ids.tolist():
        with torch.no_grad():
            batch = model.read(groups(histories, [[item]] * len(histories)))
            tensors = model.taught(*model.teach(batch, whole=False))
        score = sum(
            tensors[f"logits_{s}"]
            .log_softmax(-1)
            .gather(1, tensors["targets"][:, s : s + 1])
            .squeeze(1)
            for s in range(3)
        )
        found.append(score)
    return torch.stack(found, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_wide_search_is_exhaustive_scoring(name: str, bundle: Path) -> None:
    """Cached steps equal the whole forward, and every item of the catalogue is found."""
    model = generator(name, bundle, WIDE)
    out = model.predict(groups(HISTORIES, [[]] * 4)).decoded
    scores = log_probabilities(model, HISTORIES)
    best = scores.sort(dim=1, descending=True)
    torch.testing.assert_close(out["scores"][:, :30], best.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(out["item_ids"][:, :30], model.catalogue.ids[best.indices])
    assert (out["item_ids"][:, 30:] == -1).all() and (out["scores"][:, 30:] == -torch.inf).all()
    assert torch.equal(out["sids"][:, :30], model.catalogue.codes[best.indices])


@pytest.mark.parametrize("name", NAMES)
def test_steps_equal_recomputing_for_any_narrow_search(name: str, bundle: Path) -> None:
    """Beams that are cut and reordered at every level."""
    model = generator(name, bundle)
    batch = model.read(groups(HISTORIES, TARGETS))
    options = BeamOptions(beams=(3, 2, 4))
    with torch.no_grad():
        step = model.search_from(batch)
        found = beam_search(step, model.catalogue.trie, 4, options)
    scores = log_probabilities(model, HISTORIES)
    items = model.catalogue.trie.items[found.leaves.clamp(min=0)]
    wanted = scores.gather(1, items)
    torch.testing.assert_close(found.scores[found.valid], wanted[found.valid], rtol=1e-5, atol=1e-5)
    assert found.valid.any(1).all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_their_neighbours(name: str, bundle: Path) -> None:
    model = generator(name, bundle, WIDE)
    together = model.predict(groups(HISTORIES, TARGETS)).decoded["scores"]
    for row, (history, target) in enumerate(zip(HISTORIES, TARGETS, strict=True)):
        alone = model.predict(groups([history], [target])).decoded["scores"]
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_newest_known_items_are_read_and_nothing_else(name: str, bundle: Path) -> None:
    model = generator(name, bundle, WIDE)
    found = model.predict(groups([*HISTORIES, [106, 109, 112, 115], [109, 112]], [[]] * 6))
    scores = found.decoded["scores"]
    torch.testing.assert_close(scores[3], scores[4])  # max_items is 4
    torch.testing.assert_close(scores[2], scores[5])  # 7 and 8 are no items
    assert not torch.allclose(scores[1], scores[5])


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_leaves_what_metrics_read(name: str, bundle: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts = pa.table({"item_id": item_ids(30), "train_count": [9] * 15 + [5] * 14 + [None]})
    pq.write_table(counts, tmp_path / "items.parquet")
    more = f"measure_invalid: true cold_items {{ input_path: '{tmp_path}/items.parquet' }}"
    model = generator(name, bundle, more)
    out = model(groups(HISTORIES, TARGETS))
    tensors = out.tensors
    assert tensors["target"].tolist() == [2, 29, -1, -2]
    assert tensors["is_cold"].tolist() == [False, True, False, False]
    assert tensors["unknown"].tolist() == [0, 0, 2, 0]
    assert tensors["history"].tolist() == [0, 1, 2, 4]
    assert tensors["ranked"].shape == (4, 20) and tensors["targets"].shape == (4, 3)
    assert (tensors["targets"][2:] == -1).all() and (tensors["targets"][:2] >= 0).all()
    assert ((tensors["invalid"] >= 0) & (tensors["invalid"] <= 1)).all()
    assert tensors["invalid"].sum() > 0  # random weights write IDs that nobody has
    listed = out.decoded["item_ids"]
    assert set(listed[listed >= 0].tolist()) <= set(item_ids(30))
    assert torch.equal(listed, model.predict(groups(HISTORIES, TARGETS)).decoded["item_ids"])


@pytest.mark.parametrize("name", NAMES)
def test_seen_items_are_filtered_and_lists_varied(name: str, bundle: Path) -> None:
    model = generator(name, bundle, "beam_search { beams: 240 filter_seen: true }")
    out = model.predict(groups(HISTORIES, TARGETS)).decoded["item_ids"]
    for row, history in zip(out.tolist(), HISTORIES, strict=True):
        assert not set(row) & set(history)
    plain = generator(name, bundle, "beam_search { num_results: 5 }")
    mixed = generator(name, bundle, "beam_search { num_results: 5 mmr_relevance_weight: 0.1 }")
    first, other = (m.predict(groups(HISTORIES, TARGETS)).decoded for m in (plain, mixed))
    assert torch.equal(first["item_ids"][:, 0], other["item_ids"][:, 0])
    kinds = [len({tuple(sid[:1]) for sid in row}) for row in other["sids"].tolist()]
    assert sum(kinds) > sum(len({tuple(s[:1]) for s in row}) for row in first["sids"].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str, bundle: Path) -> None:
    model = generator(name, bundle, widths={"user": (3,)}).train()
    given = groups(HISTORIES, TARGETS) | {"user": torch.randn(4, 3)}
    tensors = model(given).tensors
    rows = 4 if name == "tiger" else 4 + 7
    assert tensors["logits_0"].shape == (rows, 5) and tensors["targets"].shape == (rows, 3)
    sum(tensors[f"logits_{s}"].square().sum() for s in range(3)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_genrec_teaches_every_item_of_the_row_from_what_is_before_it(bundle: Path) -> None:
    for name in ("transformer", "hstu"):
        model = generator(name, bundle)
        items = [100, 103, 106, 109, 112]
        whole, rows = model.teach(model.read(groups([items[:-1]], [items[-1:]])), whole=True)
        assert model.catalogue.ids[rows].tolist() == items
        for place in range(5):
            batch = model.read(groups([items[:place]], [items[place : place + 1]]))
            alone, _ = model.teach(batch, whole=False)
            torch.testing.assert_close(whole[place], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_at_all(name: str, bundle: Path) -> None:
    model = generator(name, bundle)
    assert model.predict(groups([], [])).decoded["item_ids"].shape == (0, 20)
    assert model.train()(groups([], [])).tensors["targets"].shape == (0, 3)


@pytest.mark.parametrize("name", NAMES)
def test_policy_none_lists_all_items_of_an_id(name: str, tmp_path: Path) -> None:
    model = generator(name, publish(tmp_path, policy="none"), "beam_search { beams: 20 }")
    found = model.predict(groups([[100]], [[]])).decoded
    assert len(set(found["item_ids"][0].tolist())) == 20
    ids = [tuple(sid) for sid in found["sids"][0].tolist()]
    assert len(set(ids)) < 20


def test_the_suffix_may_be_left_out_of_the_loss(bundle: Path, tmp_path: Path) -> None:
    model = generator("tiger", bundle, "suffix_loss: false").train()
    assert (model(groups([[100]], [[106]])).tensors["targets"] >= 0).tolist() == [
        [True] * 2 + [False]
    ]
    free = generator("tiger", publish(tmp_path, policy="none"), "suffix_loss: false").train()
    assert (free(groups([[100]], [[106]])).tensors["targets"] >= 0).all()


def test_weights_refuse_another_bundle_and_take_an_appended_one(tmp_path: Path) -> None:
    one = publish(tmp_path)
    weights = generator("tiger", one).state_dict()
    other = generator("tiger", publish(tmp_path, "other", seed=4))
    other.load_state_dict(weights)
    with pytest.raises(UserError, match="the model was made with the semantic IDs"):
        other.predict(groups(HISTORIES, TARGETS))
    appended = generator("tiger", append(tmp_path, open_bundle(one)), WIDE)
    appended.load_state_dict(weights)
    listed = appended.predict(groups(HISTORIES, TARGETS)).decoded["item_ids"]
    assert set(listed[0].tolist()) >= set(item_ids(40))
    assert [name for name in weights if "catalogue" in name] == ["catalogue.trained_with"]


def test_more_than_one_target_is_refused(bundle: Path) -> None:
    with pytest.raises(UserError, match="a row has 2 items"):
        generator("tiger", bundle).predict(groups([[100]], [[103, 106]]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tiger { label_temperature: 0 }", "label_temperature"),
        ("tiger { max_items: 0 }", "max_items"),
        ("tiger { transformer { d_kv: 0 } }", "d_kv"),
        ("tiger { beam_search { beams: 5 } }", "num_results"),
        ("tiger { beam_search { beams: [50, 0, 50] } }", "beams"),
        ("tiger { beam_search { groups: 7 } }", "groups"),
        ("tiger { beam_search { mmr_relevance_weight: 2 } }", "mmr_relevance_weight"),
        ("tiger { cold_items {} }", "cold_items.input_path"),
        ("genrec { transformer { dropout_ratio: 1 } }", "dropout_ratio"),
        ("genrec { transformer { num_buckets: 2 } }", "num_buckets"),
        ("genrec { hstu {} hstu_layers: 0 }", "hstu_layers"),
        ("genrec { hstu {} input_dropout_ratio: 1 }", "input_dropout_ratio"),
        ("genrec { hstu { relative_bias { use_time: true } } }", "use_time"),
        ("genrec { hstu { full_attn_tail: 2 } }", "full_attn_tail"),
        ("genrec { hstu { contextual_seq_len: 2 } }", "contextual_seq_len"),
    ],
)
def test_what_cannot_be_is_refused_by_name(text: str, told: str) -> None:
    config = config_of(text)
    problems = MODELS[config.WhichOneof("model")].check(config)
    assert any(told in str(problem) for problem in problems), problems


def test_a_config_without_groups_backbone_or_bundle_is_refused() -> None:
    config = config_of("genrec {} losses { binary_cross_entropy {} }", "")
    told = "\n".join(str(problem) for problem in MODELS["genrec"].check(config))
    for part in ("'uih'", "backbone", "bundle_path", "model_config.losses"):
        assert part in told


def test_groups_search_apart(bundle: Path) -> None:
    more = "beam_search { beams: 20 groups: 4 group_penalty: 3 } measure_invalid: true"
    out = generator("hstu", bundle, more)(groups(HISTORIES, TARGETS)).decoded["item_ids"]
    for row in out.tolist():
        listed = [item for item in row if item >= 0]
        assert len(listed) == len(set(listed)) >= 10
