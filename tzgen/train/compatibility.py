# SPDX-License-Identifier: Apache-2.0
"""May this config go on from that checkpoint? What decides the weights must not have changed.

Fields that only say how long, where to or how fast a run goes may differ: see `FREE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tzgen.errors import ConfigError, Problem

FREE = re.compile(
    "|".join(
        (
            r"(eval_input_path|model_dir|item_input_path|eval_config|export_config)(\..*)?",
            r"train_input_path",  # the reader's fingerprint decides: paths may move, data may not
            r"data_config\.(num_workers|pin_memory|batch_size|eval_batch_size|fg_threads)",
            r"data_config\.(odps_.*|shuffle_buffer_size)",
            r"train_config\.(num_steps|num_epochs|save_checkpoints.*|keep_.*|eval_steps|eval_epochs)",
            r"train_config\.(log_step_count_steps|is_profiling|use_tensorboard|tensorboard_summaries)",
            r"train_config\.(early_stopping|fine_tune_.*|embedding_engine|deterministic)(\..*)?",
            r"train_config\.(cudnn_allow_tf32|cuda_matmul_allow_tf32|global_embedding_constraints)(\..*)?",
            r"model_config\.(kernel|dlrm_hstu\.score_micro_batch)",
            # what prediction offers, and how a generator is searched and measured
            r"model_config\.(sid_rqvae|sid_rqkmeans)\.candidate_output_config(\..*)?",
            r"model_config\.(tiger|genrec)\.(beam_search|cold_items|measure_invalid)(\..*)?",
            r".*\.embedding_constraints(\..*)?",
        )
    )
)


def changed_fields(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, old text, new text) of every field in which two messages of one type differ.

    A field that is unset equals one that is set to its default.
    """
    for field in old.DESCRIPTOR.fields:
        here = f"{path}.{field.name}" if path else field.name
        was, now = getattr(old, field.name), getattr(new, field.name)
        if field.is_repeated:
            yield from _changed_list(field, list(was), list(now), here)
        elif field.message_type is not None:
            if old.HasField(field.name) != new.HasField(field.name):
                yield here, _brief(old, field.name), _brief(new, field.name)
            elif old.HasField(field.name):
                yield from changed_fields(was, now, here)
        elif was != now:
            yield here, repr(was), repr(now)


def require_compatible(old: Any, new: Any, checkpoint: str) -> None:
    """Raise ConfigError with one Problem a changed field that decides the weights."""
    problems = [
        Problem(
            path=path,
            value=now,
            expected=f"{was}, as in {checkpoint}",
            remedy="Restore it, or start anew: another model_dir, or --fine_tune_checkpoint.",
        )
        for path, was, now in changed_fields(old, new)
        if not FREE.fullmatch(path)
    ]
    if problems:
        raise ConfigError(problems, source=f"resuming {checkpoint}")


def _changed_list(
    field: Any, was: list[Any], now: list[Any], path: str
) -> Iterator[tuple[str, str, str]]:
    if field.message_type is None:
        if was != now:
            yield path, repr(was), repr(now)
        return
    for index in range(max(len(was), len(now))):
        here = f"{path}[{index}]"
        if index >= len(was):
            yield here, "absent", "present"
        elif index >= len(now):
            yield here, "present", "absent"
        else:
            yield from changed_fields(was[index], now[index], here)


def _brief(message: Any, name: str) -> str:
    return "set" if message.HasField(name) else "unset"
