# SPDX-License-Identifier: Apache-2.0
"""Look before training: lint, one batch forward and backward, cost, token layout and mask.

    python -m tzgen.check --pipeline_config X [--synthetic] [--plot mask.png] [--diff_torcheasyrec]

Nothing is trained; only --plot writes a file. Exits with 2 when there are problems.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tzgen import flags, log

FLAGS = (
    *flags.CONFIG,
    "model_dir",
    "train_input_path",
    "eval_input_path",
    "dataset_type",
    "synthetic",
    "plot",
    "diff_torcheasyrec",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags, check, report."""
    args = flags.parser("check", __doc__, *FLAGS).parse_args(argv)
    flags.run_verb(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, or 2 when the config has problems."""
    log.configure()
    config = flags.load_from_flags(args)
    from tzgen.checking import check_and_report

    return check_and_report(
        config,
        source=args.pipeline_config,
        strict=args.strict,
        synthetic=args.synthetic,
        diff_torcheasyrec=args.diff_torcheasyrec,
        plot_path=args.plot,
    )


if __name__ == "__main__":
    main()
