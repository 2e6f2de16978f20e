# SPDX-License-Identifier: Apache-2.0
"""Evaluate a checkpoint on eval_input_path, with confidence intervals where they are configured:

python -m tzgen.eval --pipeline_config X [--checkpoint_path model_dir/model.ckpt-1000]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tzgen import flags

FLAGS = (
    *flags.CONFIG,
    "model_dir",
    "checkpoint_path",
    "eval_input_path",
    "eval_result_filename",
    "batch_size",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags, load the checkpoint, evaluate."""
    args = flags.parser("eval", __doc__, *FLAGS).parse_args(argv)
    flags.run_verb(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Evaluate in the process group that torchrun describes, or alone."""
    config = flags.checked_config(args, "eval_input_path", *flags.checkpoint_paths(args))
    from tzgen.train.environment import environment
    from tzgen.train.job import evaluate_and_report

    with environment() as env:
        evaluate_and_report(
            config,
            env,
            source=args.pipeline_config,
            checkpoint_path=args.checkpoint_path,
            result_name=args.eval_result_filename,
        )


if __name__ == "__main__":
    main()
