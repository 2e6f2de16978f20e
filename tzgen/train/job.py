# SPDX-License-Identifier: Apache-2.0
"""The jobs behind the verbs train_eval and eval: build, run, leave the result as file and text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tzgen.build import build_pipeline, open_loader
from tzgen.errors import UserError
from tzgen.log import LOGGER
from tzgen.train import checkpoint
from tzgen.train.checkpoint import write_text
from tzgen.train.environment import Env
from tzgen.train.evaluator import Evaluation, evaluate
from tzgen.train.manifest import provenance
from tzgen.train.plots import plot_training
from tzgen.train.trainer import Trainer
from tzgen.train.weights import trained_pipeline

RESULT = "eval_result.txt"  # JSON, under the name that the verb eval gives it too


def train_and_report(
    config: Any, env: Env, *, source: str, continue_train: bool, ignore_optimizer: bool
) -> int:
    """Train to the configured end; leaves eval_result.txt and curves.png in model_dir.

    Returns the exit status: 0, or 128 + the signal that ended it early (a checkpoint is written).
    Raises UserError when `continue_train` is false and model_dir holds checkpoints.
    """
    model_dir = Path(required_path(config.model_dir, "model_dir"))
    required_path(config.train_input_path, "train_input_path")
    if env.is_main:
        model_dir.mkdir(parents=True, exist_ok=True)
    env.barrier()
    if not continue_train and any(model_dir.glob("model.ckpt-*")):
        raise UserError(
            f"model_dir {model_dir} holds checkpoints and --continue_train is false: "
            "empty it, name another model_dir, or leave the flag out to resume"
        )
    set_numerics(config.train_config)
    pipeline = build_pipeline(
        config, device=env.device, sum_over_ranks=env.sum, world_size=env.world_size, source=source
    )
    trainer = Trainer(pipeline, env, model_dir)
    evaluation = trainer.fit(ignore_optimizer=ignore_optimizer)
    if env.is_main:
        plot_training(model_dir)
        if trainer.interrupted_by is None:
            _tell(evaluation, trainer, model_dir)
    return 0 if trainer.interrupted_by is None else 128 + trainer.interrupted_by


def fit_then(
    config: Any,
    env: Env,
    *,
    source: str,
    predict: Callable[[], None],
    publish: Callable[[dict[str, Any]], object],
) -> int:
    """Train (or find it trained), predict on all ranks, publish on the first with where the codes
    came from; the exit status of the training."""
    status = train_and_report(
        config, env, source=source, continue_train=True, ignore_optimizer=False
    )
    if status:
        return status
    predict()
    env.barrier()
    if env.is_main:
        newest = checkpoint.open_checkpoint(Path(config.model_dir))
        publish(
            {
                "codebook_hash": _digest(newest.manifest["checksums"]),
                "checkpoint": newest.path.name,
                **provenance(config, newest.manifest["data_fingerprint"]),
            }
        )
    env.barrier()
    return 0


def _tell(evaluation: Evaluation | None, trainer: Trainer, model_dir: Path) -> None:
    """The result as a file; as text where a run that had come to its end was started again."""
    step = trainer.progress.step
    if evaluation is not None:
        write_text(model_dir / RESULT, json.dumps(evaluation.as_json(), indent=1))
        if not trainer.evaluated:
            print(f"evaluation at step {step} on {evaluation.num_rows} rows\n{evaluation.table()}")
    what = "checkpoints and logs" if evaluation is None else f"checkpoints, logs and {RESULT}"
    print(f"{step} steps done; {what} are in {model_dir}")


def evaluate_and_report(
    config: Any, env: Env, *, source: str, checkpoint_path: str | None, result_name: str
) -> Evaluation:
    """Evaluate a checkpoint on eval_input_path; leaves the result in model_dir as JSON."""
    path = required_path(config.eval_input_path, "eval_input_path")
    ema = config.eval_config.use_dense_ema if config.eval_config.HasField("use_dense_ema") else None
    pipeline, origin = trained_pipeline(config, checkpoint_path, averaged=ema)
    pipeline.module.to(env.device)
    evaluation = evaluate(
        pipeline,
        pipeline.module,
        open_loader(pipeline, path, env=env, mode="eval"),
        env=env,
        max_batches=config.eval_config.num_steps or None,
        intervals=bool(config.eval_config.bootstrap_samples),
    )
    if env.is_main:
        folder = Path(config.model_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        body = {**evaluation.as_json(), "checkpoint": origin["checkpoint"], "eval_input_path": path}
        write_text(folder / result_name, json.dumps(body, indent=1))
        print(
            f"{origin['checkpoint']} on {evaluation.num_rows} rows of {path}\n{evaluation.table()}"
        )
    return evaluation


def set_numerics(train_config: Any) -> None:
    """Precision and determinism switches of torch, from train_config."""
    torch.backends.cudnn.allow_tf32 = train_config.cudnn_allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = train_config.cuda_matmul_allow_tf32
    if train_config.deterministic:
        # use_deterministic_algorithms does the same and loads the compiler to tell it
        torch.set_deterministic_debug_mode("warn")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def required_path(value: str, name: str) -> str:
    """The path. Raises UserError when the config and the flags leave it empty."""
    if not value:
        raise UserError(f"{name} is empty: set it in the config, or give --{name}")
    LOGGER.debug("%s: %s", name, value)
    return value


def _digest(checksums: dict[str, str]) -> str:
    """One hash of a checkpoint's weights."""
    weights = sorted(f"{name}={h}" for name, h in checksums.items() if name.startswith("model/"))
    return hashlib.sha256("\n".join(weights).encode()).hexdigest()
