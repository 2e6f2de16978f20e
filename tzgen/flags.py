# SPDX-License-Identifier: Apache-2.0
"""Command lines of the verbs: one table of flags, strict parsing, and errors without tracebacks.

Nothing heavy is imported here: `--help` must answer at once. A verb is

    def main(argv=None):
        parser = flags.parser("eval", __doc__, *flags.CONFIG, "checkpoint_path", "eval_input_path")
        flags.run_verb(lambda: body(parser.parse_args(argv)))
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from tzgen.errors import ConfigError, Problem, UserError
from tzgen.log import LOGGER, configure_alone

if TYPE_CHECKING:
    from tzgen.protos.pipeline_pb2 import PipelineConfig


@dataclass(frozen=True)
class Flag:
    """One flag. `field`: the config field that it sets. `retired`: what stands in its place."""

    help: str
    field: str | None = None
    alias: str | None = None
    kind: str = "text"  # text | number | bool | list (repeatable) | switch
    default: object = None
    retired: str | None = None


# Flags are TorchEasyRec's wherever it has one of that meaning.
FLAGS: Mapping[str, Flag] = MappingProxyType(
    {
        "pipeline_config": Flag("the config: text format, or .json", alias="pipeline_config_path"),
        "set": Flag("override one field: path.to.field=value (repeatable)", kind="list"),
        "edit_config_json": Flag("overrides as a JSON object of path -> value"),
        "strict": Flag("refuse what would be replaced with a warning", kind="switch"),
        "model_dir": Flag("checkpoints, logs and reports", field="model_dir"),
        "train_input_path": Flag("training rows", field="train_input_path"),
        "eval_input_path": Flag("evaluation rows", field="eval_input_path"),
        "item_input_path": Flag("item rows, one item each", field="item_input_path"),
        "dataset_type": Flag("reader of the rows", field="data_config.dataset_type"),
        "batch_size": Flag("rows for each rank and step", field="data_config.eval_batch_size"),
        "continue_train": Flag(
            "resume from model_dir; false demands an empty one", kind="bool", default=True
        ),
        "fine_tune_checkpoint": Flag(
            "checkpoint to start the weights from", field="train_config.fine_tune_checkpoint"
        ),
        "ignore_restore_optimizer": Flag(
            "restore weights without optimizer state", kind="bool", default=False
        ),
        "checkpoint_path": Flag("checkpoint; default: the newest (or best) in model_dir"),
        "eval_result_filename": Flag(
            "file in model_dir for the metrics", default="eval_result.txt"
        ),
        "export_dir": Flag("the exported package", alias="scripted_model_path"),
        "predict_input_path": Flag("rows to predict"),
        "predict_output_path": Flag("where predictions go"),
        "reserved_columns": Flag("input columns to copy: a,b or ALL_COLUMNS"),
        "output_columns": Flag("outputs to write: a,b; default: all"),
        "predict_steps": Flag("batches to predict; default: all", kind="number"),
        "overwrite": Flag("replace what the output path holds", kind="switch"),
        "writer_type": Flag("writer of the predictions; default: by dataset_type"),
        "asset_files": Flag(
            "", retired="vocabulary files named in the config are packaged by themselves"
        ),
        "additional_export_config": Flag(
            "", retired="the package's manifest holds what serving needs"
        ),
        "diff_torcheasyrec": Flag("list what means something else there", kind="switch"),
        "synthetic": Flag("check synthesised rows; train_input_path is not read", kind="switch"),
        "plot": Flag("draw the token layout and the attention mask into this .png"),
        "predict_threads": Flag("", retired="data_config.num_workers says how many load rows"),
        "is_profiling": Flag("", kind="bool", retired="set train_config.is_profiling"),
        "debug_level": Flag("", retired="errors always name file, row and column"),
        "odps_data_quota_name": Flag("", retired="MaxCompute is not supported yet"),
        # ---- semantic IDs ----
        "bundle_path": Flag("folder of the generations of semantic IDs"),
        "generation": Flag("name of the generation: a folder in --bundle_path"),
        "from_generation": Flag("generation to append to; its IDs never move"),
        "codes_path": Flag("predictions of a tokenizer"),
        "item_id_field": Flag("column with the item's id", default="item_id"),
        "code_field": Flag("column with the item's codes", default="codes"),
        "codebook": Flag("codes of each level: 256,256,256"),
        "policy": Flag(
            "items on one ID: suffix, next_best, sinkhorn_last_level or none", default="suffix"
        ),
        "capacity": Flag("items that an ID may hold", kind="number", default=1),
        "suffix_size": Flag("codes of the suffix; default: the largest group", kind="number"),
        "encoder": Flag("tfidf_svd, wordllama or sentence_transformers", default="tfidf_svd"),
        "encoder_path": Flag(
            "folder of a sentence-transformers model, or of a stored tfidf_svd: <output>-encoder"
        ),
        "dim": Flag("width of the vectors", kind="number", default=256),
        "seed": Flag("seed of the encoder's fit", kind="number", default=0),
        "text_field": Flag("column with the item's text", default="text"),
        "title_field": Flag("column with the item's title", default="title"),
        "vector_field": Flag("column with the item's vector", default="item_emb"),
        "output": Flag("folder to write"),
        "window": Flag("events between two items that count as a pair", kind="number", default=5),
        "history_field": Flag("column with a user's items", default="uih__item_id"),
        "target_field": Flag("column with the item after them", default="target_item_id"),
    }
)

# Every verb that reads a config.
CONFIG = ("pipeline_config", "set", "edit_config_json", "strict")
# The verbs of tzgen.sid.
_BUNDLE = (
    *("bundle_path", "generation", "from_generation", "item_id_field"),
    *("policy", "capacity", "suffix_size"),
)
SID_VERBS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "embed": (
            *("item_input_path", "output", "encoder", "encoder_path", "dim", "seed"),
            *("text_field", "vector_field"),
        ),
        "cluster": (
            *("train_input_path", "item_input_path", "output", "codebook", "window", "seed"),
            *("item_id_field", "history_field", "target_field"),
        ),
        "fit": (*CONFIG, "model_dir", "train_input_path", "item_input_path", *_BUNDLE),
        "bundle": ("codes_path", "code_field", "codebook", *_BUNDLE),
        "report": (
            *("bundle_path", "generation", "output", "item_input_path", "item_id_field"),
            *("title_field", "vector_field"),
        ),
    }
)


class StrictParser(argparse.ArgumentParser):
    """No abbreviations; an unknown flag is refused with the nearest known one."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def,override]
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return known

    def _unknown(self, unknown: Sequence[str]) -> str:
        mine = [option for option in self._option_string_actions if option.startswith("--")]
        told = []
        for text in unknown:
            flag = text.split("=", 1)[0]
            if not flag.startswith("-"):
                told.append(f"unexpected argument {text!r}")
                continue
            near = difflib.get_close_matches(flag, mine, n=1, cutoff=0.5)
            told.append(f"unknown flag {flag}" + (f" (did you mean {near[0]}?)" if near else ""))
        return f"{'; '.join(told)}. Known: {', '.join(sorted(mine))}."


def parser(verb: str, doc: str | None, *names: str, optional: Sequence[str] = ()) -> StrictParser:
    """A parser for `python -m tzgen.<verb>` with these flags of FLAGS.

    `pipeline_config` is required unless `optional` names it. `doc` is the verb's module docstring.
    """
    built = StrictParser(
        prog=f"python -m tzgen.{verb}",
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in names:
        _add(built, name, required=name == "pipeline_config" and name not in optional)
    return built


def _add(built: StrictParser, name: str, *, required: bool) -> None:
    flag = FLAGS[name]
    spelled = [f"--{name}", *([f"--{flag.alias}"] if flag.alias else [])]
    text = argparse.SUPPRESS if flag.retired else flag.help
    if flag.kind == "switch":
        built.add_argument(*spelled, dest=name, action="store_true", help=text)
    elif flag.kind == "list":
        built.add_argument(
            *spelled, dest=name, action="append", default=[], metavar="PATH=VALUE", help=text
        )
    elif flag.kind == "bool":
        built.add_argument(
            *spelled,
            dest=name,
            nargs="?",
            const=True,
            type=_bool,
            default=flag.default,
            metavar="true|false",
            help=f"{text} (default: {str(flag.default).lower()})" if flag.help else text,
        )
    else:
        built.add_argument(
            *spelled,
            dest=name,
            required=required,
            default=flag.default,
            type=int if flag.kind == "number" else str,
            metavar=name.split("_")[-1].upper(),
            help=text,
        )


def _bool(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected true or false")
    return words[text.lower()]


def load_from_flags(args: argparse.Namespace) -> PipelineConfig:
    """The config after `--edit_config_json`, then the flags that name a field, then `--set`.

    Later ones win. Nothing is checked across fields: that is `checked_config`.
    """
    from tzgen.config import apply_edit_json, apply_overrides, load_pipeline, set_field

    config = load_pipeline(args.pipeline_config)
    given = vars(args)
    if given.get("edit_config_json"):
        apply_edit_json(config, given["edit_config_json"])
    for name, flag in FLAGS.items():
        if given.get(name) is None:
            continue
        if flag.retired is not None:
            LOGGER.warning("--%s has no effect here: %s.", name, flag.retired)
        elif flag.field is not None:
            set_field(config, flag.field, given[name])
    apply_overrides(config, given.get("set", []))
    return config


def checkpoint_paths(args: argparse.Namespace) -> tuple[str, ...]:
    """What has to be set for a checkpoint to be found: model_dir, unless one is named."""
    return () if args.checkpoint_path else ("model_dir",)


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The flags that name a field, then `--set`, as override texts for another config."""
    named = [
        f"{flag.field}={vars(args)[name]}"
        for name, flag in FLAGS.items()
        if flag.field is not None and vars(args).get(name) is not None
    ]
    return [*named, *vars(args).get("set", [])]


def checked_config(args: argparse.Namespace, *paths: str) -> PipelineConfig:
    """`load_from_flags`, refused with every problem at once; what is replaced is said, once each.

    `paths`: the path fields that the verb uses, and that must not be empty. With `--strict`
    whatever would be replaced is a problem too.
    """
    from tzgen.config import check, notes, replaced

    config = load_from_flags(args)
    substitutes = replaced(config)
    strict = vars(args).get("strict", False)
    more = [
        Problem("--strict", text, "nothing replaced", "Remove the field, or drop --strict.")
        for text in (substitutes if strict else [])
    ]
    check(config, str(args.pipeline_config), more, paths)
    for text in substitutes:
        LOGGER.warning("replaced: %s", text)
    for text in notes(config):
        LOGGER.info("note: %s", text)
    return config


def run_verb(body: Callable[[], int | None]) -> None:
    """Run a verb. Returns on success; exits with what it returns, or 2 after a UserError.

    The error's text goes to stderr without a traceback; anything else is a bug and passes through.
    """
    # Before torch loads: spinning OpenMP threads slow small regions up to a hundred times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    atexit.register(gc.freeze)  # or Python searches the whole heap for garbage before it ends
    configure_alone()
    try:
        status = body() or 0
    except UserError as error:
        kind = "config error" if isinstance(error, ConfigError) else "error"
        sys.stdout.flush()
        print(f"{kind}: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    if status:
        sys.exit(status)
