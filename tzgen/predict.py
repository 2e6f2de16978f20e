# SPDX-License-Identifier: Apache-2.0
"""Batch prediction from a checkpoint or an exported package, one output row for each input row:

    python -m tzgen.predict --export_dir D --predict_input_path 'data/*.parquet' \\
        --predict_output_path out --reserved_columns user_id
    python -m tzgen.predict --pipeline_config X --predict_input_path ... --predict_output_path out
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tzgen import flags

FLAGS = (
    *flags.CONFIG,
    "model_dir",
    "export_dir",
    "checkpoint_path",
    "predict_input_path",
    "predict_output_path",
    "reserved_columns",
    "output_columns",
    "predict_steps",
    "dataset_type",
    "writer_type",
    "batch_size",
    "overwrite",
    "predict_threads",
    "is_profiling",
    "debug_level",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags, load the model, predict."""
    built = flags.parser("predict", __doc__, *FLAGS, optional=("pipeline_config",))
    args = built.parse_args(argv)
    flags.run_verb(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Predict with what the flags name; each process takes its share of the rows."""
    paths = () if args.export_dir else flags.checkpoint_paths(args)
    config = flags.checked_config(args, *paths) if args.pipeline_config else None
    from tzgen.export.jobs import checkpoint_job, package_job
    from tzgen.train.environment import environment
    from tzgen.train.weights import trained_pipeline

    with environment() as env:
        if args.export_dir:
            job = package_job(args, flags.overrides_of(args), env.device)
        else:
            job = checkpoint_job(args, config, trained_pipeline, env.device)
        job.run(env)


if __name__ == "__main__":
    main()
