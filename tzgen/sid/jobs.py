# SPDX-License-Identifier: Apache-2.0
"""The jobs behind `python -m tzgen.sid bundle` and `report`: rows in, artefacts out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tzgen.data.readers import ParquetDataset, open_reader
from tzgen.errors import UserError
from tzgen.log import LOGGER
from tzgen.sid.bundle import Bundle, open_bundle, require_new, write_bundle
from tzgen.sid.cluster import cluster_items, codebook_beside
from tzgen.sid.collisions import Candidates, check_policy, resolve
from tzgen.sid.embed import embed_items
from tzgen.sid.report import rows_for, write_report
from tzgen.sid.rows import matrix, read_all
from tzgen.sid.space import Ints, SidSpace
from tzgen.sid.table import SidTable, make_table, merged_table, resolved_table

CANDIDATES, SCORES = "candidate_codes", "candidate_scores"
CHANGED = 0.5  # of the published items: from there on the codes are another tokenizer's


def codes_flags(args: argparse.Namespace, config: Any) -> argparse.Namespace:
    """The flags of fit as those of predict and of bundle: every item of --item_input_path (else
    train_input_path) gets codes in `<model_dir>/codes`."""
    codes = f"{config.model_dir}/codes"
    model = getattr(config.model_config, config.model_config.WhichOneof("model"))
    fields = model.DESCRIPTOR.fields_by_name
    if "codebook" in fields:
        sizes = list(model.codebook)
    elif "num_subvectors" in fields:
        sizes = [model.codebook_size] * model.num_subvectors
    else:
        raise UserError(
            f"fit is for tokenizers (sid_*); the model is {model.DESCRIPTOR.name}: use train_eval"
        )
    items = config.item_input_path or config.train_input_path
    _require_publishable(args, model, tuple(sizes))
    there = open_reader(config.data_config, items, None).schema.names
    if args.item_id_field not in there:
        raise UserError(f"--item_id_field {args.item_id_field!r}: {items} has {', '.join(there)}")
    return argparse.Namespace(
        **vars(args),
        codebook=",".join(map(str, sizes)),
        code_field="codes",
        codes_path=codes,
        predict_input_path=items,
        predict_output_path=codes,
        reserved_columns=args.item_id_field,
        output_columns=None,
        predict_steps=None,
        checkpoint_path=None,
        writer_type="ParquetWriter",
        overwrite=True,
    )


def _require_publishable(args: argparse.Namespace, model: Any, sizes: tuple[int, ...]) -> None:
    """What bundle would refuse at the end is refused before anything is trained."""
    _check_numbers(args)
    root = Path(_given(args, "bundle_path"))
    require_new(root, _given(args, "generation"))
    before = open_bundle(root / args.from_generation) if args.from_generation else None
    has_field = "candidate_output_config" in model.DESCRIPTOR.fields_by_name
    offered = has_field and model.candidate_output_config.enabled
    check_policy(_policy(args, before), offered=offered)
    if before is not None:
        _require_same_space(before, sizes)


def _check_numbers(args: argparse.Namespace) -> None:
    if args.capacity < 1:
        raise UserError(f"--capacity {args.capacity}: expected the items that an ID may hold, >= 1")
    if (args.suffix_size or 0) < 0:
        raise UserError(f"--suffix_size {args.suffix_size}: expected how many codes it has, >= 1")


def embed_job(args: argparse.Namespace) -> None:
    """Vectors for every row of --item_input_path."""
    rows = embed_items(
        _given(args, "item_input_path"),
        Path(_given(args, "output")),
        encoder=args.encoder,
        dim=args.dim,
        encoder_path=Path(args.encoder_path) if args.encoder_path else None,
        text_field=args.text_field,
        vector_field=args.vector_field,
        seed=args.seed,
    )
    LOGGER.info("%d vectors in %s", rows, args.output)


def cluster_job(args: argparse.Namespace) -> None:
    """Codes for every row of --item_input_path from the sequences of --train_input_path."""
    codebook = cluster_items(
        _given(args, "train_input_path"),
        _given(args, "item_input_path"),
        Path(_given(args, "output")),
        sizes=_sizes(_given(args, "codebook")),
        window=args.window,
        item_id_field=args.item_id_field,
        history_field=args.history_field,
        target_field=args.target_field,
        seed=args.seed,
    )
    LOGGER.info("codes of the codebook %s in %s", list(codebook), args.output)


def _sizes(text: str) -> tuple[int, ...]:
    parts = str(text).split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--codebook {text!r}: expected positive numbers like 256,256,256")
    return tuple(int(part) for part in parts)


def _given(args: argparse.Namespace, name: str) -> str:
    value = getattr(args, name)
    if not value:
        raise UserError(f"--{name} is needed")
    return str(value)


def bundle_job(args: argparse.Namespace, notes: Mapping[str, Any]) -> Bundle:
    """Publish the tokenizer's predictions of --codes_path as a generation; say what came of it.

    With --from_generation the items that it does not hold are added to it.
    """
    root = Path(_given(args, "bundle_path"))
    require_new(root, _given(args, "generation"))
    _check_numbers(args)
    reader = ParquetDataset(_given(args, "codes_path"))
    rows = read_all(reader, [args.item_id_field, args.code_field], optional=(CANDIDATES, SCORES))
    item_id = rows[args.item_id_field].combine_chunks()
    codes = matrix(rows[args.code_field], args.code_field)
    before = None if not args.from_generation else open_bundle(root / args.from_generation)
    space = SidSpace(_codebook(args, codes, before))
    candidates = _candidates(rows, space)
    if before is not None:
        _require_same_tokenizer(before, item_id, codes, notes.get("codebook_hash"))
        item_id, codes, candidates = _only_new(before, item_id, codes, candidates)
    table, order = _sorted_table(item_id, codes, space)
    if candidates is not None:
        costs = None if candidates.costs is None else candidates.costs[order]
        candidates = Candidates(candidates.codes[order], costs)
    policy = _policy(args, before)
    found = resolve(
        table.codes,
        space,
        policy,
        candidates=candidates,
        capacity=args.capacity,
        suffix_size=_suffix_size(args, before, policy),
        taken=None if before is None else before.table.codes,
    )
    new = resolved_table(table, found)
    whole = new if before is None else merged_table(before.table, new)
    bundle = write_bundle(
        root,
        _given(args, "generation"),
        whole,
        policy=policy,
        capacity=args.capacity,
        notes={**_whose(before), **notes, "input_hash": reader.fingerprint},
        appended=None if before is None else (before, new),
    )
    moved = int((found.codes[:, : space.levels] != table.codes).any(axis=1).sum())
    LOGGER.info(
        "%d items, %d new, %d moved by %s, %d left on a crowded ID; hash %s, in %s",
        len(whole),
        len(new),
        moved,
        policy,
        int(found.unplaced.sum()),
        whole.sid_hash[:12],
        bundle.path,
    )
    return bundle


def report_job(args: argparse.Namespace) -> Path:
    """Measure a generation into --output (default: beside it, `<generation>-report`)."""
    bundle = open_bundle(Path(_given(args, "bundle_path")) / _given(args, "generation"))
    folder = Path(args.output or f"{bundle.path}-report")
    if bundle.path.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"--output {folder} is in the generation, which is never changed")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; expected a folder to write: name another")
    titles = vectors = None
    if args.item_input_path:
        reader = ParquetDataset(args.item_input_path)
        there = reader.schema.names
        asked = (args.title_field, args.vector_field)
        wanted = [name for name in asked if name in there]
        for name in set(asked) - set(wanted):
            LOGGER.info("%s has no column %r: left out of the report", args.item_input_path, name)
        rows = read_all(reader, [args.item_id_field, *wanted])
        order = rows_for(bundle, rows[args.item_id_field].combine_chunks(), "items given")
        if args.title_field in wanted:
            titles = rows[args.title_field].take(pa.array(order)).to_pylist()
        if args.vector_field in wanted:
            vectors = matrix(rows[args.vector_field], args.vector_field, np.float32)[order]
            _require_finite(vectors, bundle, args.vector_field)
    path = write_report(bundle, folder, titles=titles, vectors=vectors)
    LOGGER.info("report in %s", path)
    return path


def _require_finite(vectors: np.ndarray[Any, Any], bundle: Bundle, column: str) -> None:
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        name = bundle.table.item_id[int(bad.argmax())].as_py()
        raise UserError(
            f"column {column!r}: the vectors of {int(bad.sum())} items hold NaN or infinity, e.g. "
            f"of item {name!r}: embed them again, or give another --vector_field"
        )


def _codebook(args: argparse.Namespace, codes: Ints, before: Bundle | None) -> tuple[int, ...]:
    """--codebook, or that of the generation before (less its suffix)."""
    levels = codes.shape[1]
    if args.codebook:
        given = _sizes(args.codebook)
        if before is not None:
            _require_same_space(before, given)
        return given
    if before is not None:
        return before.table.space.codebook[:levels]
    found = codebook_beside(args.codes_path)
    if found is not None:
        return found
    raise UserError("--codebook is empty: give the codes of each level, for example 256,256,256")


def _whose(before: Bundle | None) -> dict[str, Any]:
    """The tokenizer that an append goes on with, where its codes alone (`bundle`) do not say."""
    return {} if before is None else {"codebook_hash": before.manifest.get("codebook_hash")}


def _require_same_space(before: Bundle, sizes: tuple[int, ...]) -> None:
    held = before.table.space.codebook[: before.table.origin.shape[1]]
    if sizes != held:
        raise UserError(
            f"--codebook {list(sizes)} is not that of {before.path}, {list(held)}: an append keeps "
            "the ID space"
        )


def _require_same_tokenizer(
    before: Bundle, item_id: pa.Array, codes: Ints, codebook_hash: str | None
) -> None:
    """Published items must have the codes that they had. Else these are another tokenizer's, or of
    vectors from an encoder that was fitted anew, and a code means something else now."""
    published = before.table.origin
    if codes.shape[1] != published.shape[1]:
        raise UserError(
            f"the codes have {codes.shape[1]} levels and those of {before.path} "
            f"{published.shape[1]}: an append keeps the ID space"
        )
    remedy = (
        "predict with the tokenizer, and the encoder of vectors, of that generation; or publish "
        "one of its own, without --from_generation"
    )
    known = before.manifest.get("codebook_hash")
    if known and codebook_hash and known != codebook_hash:
        raise UserError(
            f"{before.path} holds codes of the tokenizer {known[:12]}, these are of "
            f"{codebook_hash[:12]}: {remedy}"
        )
    at = before.table.rows_of(item_id)
    rows = np.flatnonzero(at >= 0)
    changed = int((published[at[rows]] != codes[rows]).any(axis=1).sum())
    if changed > CHANGED * len(rows):
        raise UserError(
            f"{changed} of {len(rows)} items have other codes than in {before.path}: {remedy}"
        )
    if changed:
        LOGGER.warning(
            "%d of %d items have other codes than in %s; their published IDs stay",
            changed,
            len(rows),
            before.path,
        )


def _policy(args: argparse.Namespace, before: Bundle | None) -> str:
    """--policy; an append goes on with that of the generation before."""
    if before is None:
        return str(args.policy)
    policy = str(before.manifest.get("policy", args.policy))
    if policy == "suffix" and before.table.codes.shape[1] == before.table.origin.shape[1]:
        raise UserError(
            f"--policy suffix: the IDs of {before.path} have no suffix, and an append keeps the ID "
            "space; give next_best, sinkhorn_last_level or none"
        )
    if policy != args.policy:
        LOGGER.info("collision policy %s, as in %s", policy, before.path)
    return policy


def _suffix_size(args: argparse.Namespace, before: Bundle | None, policy: str) -> int:
    if policy == "suffix" and before is not None:
        return before.table.space.codebook[-1]
    return int(args.suffix_size or 0)


def _candidates(rows: pa.Table, space: SidSpace) -> Candidates | None:
    """The predictions' alternatives: the last code of each whole ID of candidate_codes."""
    if CANDIDATES not in rows.column_names:
        return None
    flat = matrix(rows[CANDIDATES], CANDIDATES)
    if flat.shape[1] % space.levels:
        raise UserError(
            f"column {CANDIDATES!r} has {flat.shape[1]} numbers a row; expected a multiple of the "
            f"{space.levels} levels"
        )
    costs = None
    if SCORES in rows.column_names:
        costs = matrix(rows[SCORES], SCORES, np.float64)
    return Candidates(flat[:, space.levels - 1 :: space.levels], costs)


def _only_new(
    before: Bundle, item_id: pa.Array, codes: Ints, candidates: Candidates | None
) -> tuple[pa.Array, Ints, Candidates | None]:
    """Rows of items that the generation before does not hold; published IDs never move."""
    fresh = np.flatnonzero(before.table.rows_of(item_id) < 0)
    if not len(fresh):
        raise UserError(f"every item is in {before.path} already: there is nothing to append")
    if candidates is not None:
        costs = None if candidates.costs is None else candidates.costs[fresh]
        candidates = Candidates(candidates.codes[fresh], costs)
    return item_id.take(pa.array(fresh)), codes[fresh], candidates


def _sorted_table(item_id: pa.Array, codes: Ints, space: SidSpace) -> tuple[SidTable, Ints]:
    """The table, and the row of the input that each of its rows came from."""
    table = make_table(item_id, codes, space)
    order: Ints = pc.sort_indices(item_id).to_numpy().astype(np.int64)
    return table, order


def run_verb(verb: str, args: argparse.Namespace) -> None:
    """embed, cluster, bundle or report."""
    if verb == "embed":
        embed_job(args)
    elif verb == "cluster":
        cluster_job(args)
    elif verb == "bundle":
        bundle_job(args, {})
    else:
        report_job(args)
