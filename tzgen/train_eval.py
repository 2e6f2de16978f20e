# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate, checkpoint, resume:

    python -m tzgen.train_eval --pipeline_config examples/configs/dlrm_hstu_ml100k.config
    torchrun --nproc-per-node 2 -m tzgen.train_eval --pipeline_config ...

The same command again resumes from model_dir.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tzgen import flags

FLAGS = (
    *flags.CONFIG,
    "model_dir",
    "train_input_path",
    "eval_input_path",
    "continue_train",
    "fine_tune_checkpoint",
    "ignore_restore_optimizer",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags, build the pipeline, train."""
    args = flags.parser("train_eval", __doc__, *FLAGS).parse_args(argv)
    flags.run_verb(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Train in the process group that torchrun describes, or alone; the exit status."""
    config = flags.checked_config(args, "train_input_path", "model_dir")
    from tzgen.train.environment import environment
    from tzgen.train.job import train_and_report

    with environment() as env:
        return train_and_report(
            config,
            env,
            source=args.pipeline_config,
            continue_train=args.continue_train,
            ignore_optimizer=args.ignore_restore_optimizer,
        )


if __name__ == "__main__":
    main()
