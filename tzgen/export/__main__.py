# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint as a package that serves and predicts without the trainer:

python -m tzgen.export --pipeline_config X --export_dir D [--checkpoint_path C]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tzgen import flags

FLAGS = (
    *flags.CONFIG,
    "model_dir",
    "checkpoint_path",
    "export_dir",
    "eval_input_path",
    "item_input_path",
    "overwrite",
    "asset_files",
    "additional_export_config",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags, load the checkpoint, write the package."""
    args = flags.parser("export", __doc__, *FLAGS).parse_args(argv)
    flags.run_verb(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Export in one process."""
    config = flags.checked_config(args, *flags.checkpoint_paths(args))
    from tzgen.export.jobs import export_job
    from tzgen.train.weights import trained_pipeline

    print(f"exported to {export_job(args, config, trained_pipeline)}")


if __name__ == "__main__":
    main()
