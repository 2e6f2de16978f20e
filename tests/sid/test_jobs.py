# SPDX-License-Identifier: Apache-2.0
"""From predictions to a generation: alignment, policies, appends, and what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import text_format

from tzgen.errors import UserError
from tzgen.log import LOGGER
from tzgen.protos.pipeline_pb2 import PipelineConfig
from tzgen.sid.bundle import Bundle, open_bundle
from tzgen.sid.jobs import bundle_job, codes_flags, report_job


def predictions(
    path: Path, first: int, last: int, *, candidates: bool = True, seed: int = 0
) -> Path:
    """Shuffled items; item i has the codes of a random table, which `seed` fixes."""
    rng = np.random.default_rng(seed)
    table = np.stack([rng.integers(0, 3, 100), rng.integers(0, 8, 100)], 1)
    order = np.random.default_rng(first).permutation(np.arange(first, last))
    columns: dict[str, Any] = {"item_id": order, "codes": pa.array(table[order].tolist())}
    if candidates:
        last_codes = (table[order, 1:] + np.arange(8)) % 8
        whole = np.stack([np.repeat(table[order, :1], 8, 1), last_codes], 2).reshape(len(order), -1)
        columns["candidate_codes"] = pa.array(whole.tolist())
        columns["candidate_scores"] = pa.array(np.tile(np.arange(8.0), (len(order), 1)).tolist())
    pq.write_table(pa.table(columns), path)
    return path


def publish(
    root: Path,
    codes: Path,
    generation: str = "g1",
    notes: dict[str, Any] | None = None,
    **changes: Any,
) -> Bundle:
    flags = {
        "bundle_path": str(root), "generation": generation, "from_generation": None,
        "codes_path": str(codes), "item_id_field": "item_id", "code_field": "codes",
        "codebook": "3,8", "policy": "suffix", "capacity": 1, "suffix_size": None,
    }  # fmt: skip
    return bundle_job(argparse.Namespace(**(flags | changes)), notes or {})


@pytest.mark.parametrize("policy", ["suffix", "next_best", "sinkhorn_last_level", "none"])
def test_item_i_gets_the_id_that_was_predicted_for_item_i(tmp_path: Path, policy: str) -> None:
    codes = predictions(tmp_path / "p.parquet", 0, 20)
    bundle = publish(tmp_path / "sids", codes, policy=policy)
    rows = pq.read_table(codes).to_pylist()
    for row in rows:
        at = bundle.table.rows_of(pa.array([row["item_id"]]))[0]
        assert bundle.table.origin[at].tolist() == row["codes"]
        assert bundle.table.codes[at, 0] == row["codes"][0]
    if policy != "none":
        assert len(np.unique(bundle.table.codes, axis=0)) == 20


@pytest.mark.parametrize("policy", ["suffix", "next_best"])
def test_an_append_keeps_what_is_published(tmp_path: Path, policy: str) -> None:
    root = tmp_path / "sids"
    first = publish(root, predictions(tmp_path / "a.parquet", 0, 15), policy=policy, suffix_size=9)
    both = predictions(tmp_path / "b.parquet", 5, 22)
    second = publish(root, both, "g2", from_generation="g1", codebook=None)
    assert len(second.table) == 22
    assert np.array_equal(second.table.codes[:15], first.table.codes)
    assert len(np.unique(second.table.codes, axis=0)) == 22
    assert second.manifest["policy"] == policy
    assert open_bundle(root / "g2").lineage[0] == first.table.sid_hash
    with pytest.raises(UserError, match="nothing to append"):
        publish(root, both, "g3", from_generation="g2", codebook=None)
    with pytest.raises(UserError, match="an append keeps the ID space"):
        publish(root, both, "g3", from_generation="g1", codebook="3,9")


def test_an_append_has_ids_of_the_same_kind(tmp_path: Path) -> None:
    codes = predictions(tmp_path / "a.parquet", 0, 15)
    publish(tmp_path / "sids", codes, suffix_size=9)
    rows = pq.read_table(codes)
    text = rows.set_column(0, "item_id", rows["item_id"].cast(pa.string()))
    pq.write_table(text, tmp_path / "text.parquet")
    with pytest.raises(UserError, match=r"item ids of type string, where .* of type int64"):
        publish(tmp_path / "sids", tmp_path / "text.parquet", "g2", from_generation="g1")


def test_codes_of_another_tokenizer_are_not_appended(tmp_path: Path) -> None:
    root = tmp_path / "sids"
    publish(root, predictions(tmp_path / "a.parquet", 0, 15), suffix_size=9)
    other = predictions(tmp_path / "b.parquet", 0, 22, seed=1)
    with pytest.raises(UserError, match=r"1[345] of 15 items have other codes"):
        publish(root, other, "g2", from_generation="g1", codebook=None)
    whose = {"codebook_hash": "aaaa"}
    publish(root, tmp_path / "a.parquet", "h1", whose, suffix_size=9)
    new = predictions(tmp_path / "c.parquet", 15, 22)
    with pytest.raises(UserError, match="of the tokenizer aaaa, these are of bbbb"):
        publish(root, new, "h2", {"codebook_hash": "bbbb"}, from_generation="h1", codebook=None)
    publish(root, new, "h2", whose, from_generation="h1", codebook=None)


def test_an_append_by_codes_alone_stays_the_same_tokenizer_s(tmp_path: Path) -> None:
    """As `bundle` does, which has no checkpoint at hand; the generation after it knows whose."""
    root, whose = tmp_path / "sids", {"codebook_hash": "aaaa"}
    publish(root, predictions(tmp_path / "a.parquet", 0, 15), "g1", whose, suffix_size=9)
    more = {"from_generation": "g1", "codebook": None}
    second = publish(root, predictions(tmp_path / "b.parquet", 15, 20), "g2", **more)
    assert second.manifest["codebook_hash"] == "aaaa"
    new, more = predictions(tmp_path / "c.parquet", 20, 25), more | {"from_generation": "g2"}
    with pytest.raises(UserError, match="of the tokenizer aaaa, these are of bbbb"):
        publish(root, new, "g3", {"codebook_hash": "bbbb"}, **more)
    assert not (root / "g3").exists()
    assert publish(root, new, "g3", whose, **more).manifest["codebook_hash"] == "aaaa"


def fit_flags(root: Path, **changes: Any) -> argparse.Namespace:
    flags = {
        "bundle_path": str(root), "generation": "g1", "from_generation": None, "policy": "suffix",
        "item_id_field": "item_id", "capacity": 1, "suffix_size": None,
    }  # fmt: skip
    return argparse.Namespace(**(flags | changes))


def test_fit_refuses_before_it_trains(tmp_path: Path) -> None:
    items = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [1], "vector": [[0.5]]}), items)

    def config(model: str) -> Any:
        data = "data_config { dataset_type: ParquetDataset }"
        text = f'model_dir: "m" train_input_path: "{items}" {data} model_config {{ {model} }}'
        return text_format.Parse(text, PipelineConfig())

    plain, root = config("sid_rqkmeans { codebook: [3, 8] }"), tmp_path / "sids"
    done = codes_flags(fit_flags(root), plain)
    assert (done.codebook, done.predict_input_path, done.codes_path) == (
        "3,8",
        str(items),
        "m/codes",
    )
    with pytest.raises(UserError, match=r"--item_id_field 'id': .* has item_id, vector"):
        codes_flags(fit_flags(root, item_id_field="id"), plain)
    for model in ("sid_rqkmeans { codebook: [3, 8] }", "sid_opq {}"):
        with pytest.raises(UserError, match="needs alternatives"):
            codes_flags(fit_flags(root, policy="next_best"), config(model))
    offering = config("sid_rqkmeans { codebook: 3 candidate_output_config { enabled: true } }")
    assert codes_flags(fit_flags(root, policy="next_best"), offering).codebook == "3"
    with pytest.raises(UserError, match="policy 'best': expected one of"):
        codes_flags(fit_flags(root, policy="best"), plain)
    for name in ("bundle_path", "generation"):
        with pytest.raises(UserError, match=f"--{name} is needed"):
            codes_flags(fit_flags(root, **{name: ""}), plain)
    with pytest.raises(UserError, match="g0 does not exist"):
        codes_flags(fit_flags(root, from_generation="g0"), plain)
    publish(root, predictions(tmp_path / "p.parquet", 0, 20))
    with pytest.raises(UserError, match="never changed"):
        codes_flags(fit_flags(root), plain)
    append = fit_flags(root, generation="g2", from_generation="g1")
    with pytest.raises(UserError, match=r"--codebook \[3, 9\] is not that of .* \[3, 8\]"):
        codes_flags(append, config("sid_rqkmeans { codebook: [3, 9] }"))
    assert codes_flags(append, plain).codebook == "3,8"


def test_a_report_is_no_part_of_a_generation_and_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, said = tmp_path / "sids", []
    codes = predictions(tmp_path / "p.parquet", 0, 20)
    publish(root, codes)
    flags = {
        "bundle_path": str(root), "generation": "g1", "item_input_path": str(codes),
        "item_id_field": "item_id", "title_field": "name", "vector_field": "codes", "output": None,
    }  # fmt: skip
    for output, text in ((root / "g1" / "r", "never changed"), (codes, "is a file")):
        with pytest.raises(UserError, match=text):
            report_job(argparse.Namespace(**(flags | {"output": str(output)})))
    monkeypatch.setattr(LOGGER, "info", lambda text, *values: said.append(text % values))
    assert report_job(argparse.Namespace(**flags)) == root / "g1-report" / "report.md"
    assert said[0] == f"{codes} has no column 'name': left out of the report"
    open_bundle(root / "g1")
    rows = {"item_id": range(20), "codes": [[1.0]] * 7 + [[float("nan")]] + [[0.0]] * 12}
    pq.write_table(pa.table(rows), tmp_path / "nan.parquet")
    flags["item_input_path"] = str(tmp_path / "nan.parquet")
    with pytest.raises(UserError, match=r"1 items hold NaN or infinity, e\.g\. of item 7"):
        report_job(argparse.Namespace(**flags))


def test_an_append_to_ids_without_a_suffix_makes_none(tmp_path: Path) -> None:
    root = tmp_path / "sids"
    publish(root, predictions(tmp_path / "a.parquet", 0, 15), policy="none")
    manifest = root / "g1" / "manifest.json"
    body = json.loads(manifest.read_text())
    del body["policy"]  # as TorchEasyRec's bundles
    manifest.write_text(json.dumps(body))
    both = predictions(tmp_path / "b.parquet", 0, 22)
    with pytest.raises(UserError, match="have no suffix"):
        publish(root, both, "g2", from_generation="g1", codebook=None)
    second = publish(root, both, "g2", from_generation="g1", codebook=None, policy="none")
    assert second.table.space.codebook == (3, 8)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    codes = predictions(tmp_path / "p.parquet", 0, 20, candidates=False)
    root = tmp_path / "sids"
    with pytest.raises(UserError, match="candidate_output_config"):
        publish(root, codes, policy="next_best")
    with pytest.raises(UserError, match="--codebook is empty"):
        publish(root, codes, codebook=None)
    with pytest.raises(UserError, match="no column 'sids'; it has item_id, codes"):
        publish(root, codes, code_field="sids")
    with pytest.raises(UserError, match="--generation is needed"):
        publish(root, codes, generation="")
    for name in ("a/b", "..", ".a", "/tmp/a"):
        with pytest.raises(UserError, match="expected a plain name"):
            publish(root, codes, generation=name)
    with pytest.raises(UserError, match="--capacity 0"):
        publish(root, codes, capacity=0)
    with pytest.raises(UserError, match="--suffix_size -1"):
        publish(root, codes, suffix_size=-1)
    with pytest.raises(UserError, match=r"code [567] at level 1; expected 0 to 4"):
        publish(root, codes, codebook="3,5")
    assert not root.exists()
