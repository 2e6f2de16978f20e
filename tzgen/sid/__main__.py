# SPDX-License-Identifier: Apache-2.0
"""Items to semantic IDs; each verb takes --help:

    python -m tzgen.sid embed  --item_input_path items --output vectors --encoder tfidf_svd
    python -m tzgen.sid fit    --pipeline_config X --bundle_path sids --generation g1
    python -m tzgen.sid bundle --codes_path codes --codebook 9,9 --bundle_path sids --generation g1
    python -m tzgen.sid report --bundle_path sids --generation g1 --item_input_path items

fit is train_eval, predict for all items, then bundle.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tzgen import flags


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the verb and its flags, run it."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in flags.SID_VERBS:
        top = flags.parser("sid", __doc__)
        top.add_argument("verb", choices=sorted(flags.SID_VERBS), help="what to do")
        top.parse_args(words)
    names = flags.SID_VERBS[words[0]]
    args = flags.parser(f"sid {words[0]}", __doc__, *names).parse_args(words[1:])
    flags.run_verb(lambda: run(words[0], args))


def run(verb: str, args: argparse.Namespace) -> int | None:
    """Do it; only fit needs more than the folder that this file is in."""
    config = flags.checked_config(args, "train_input_path") if verb == "fit" else None
    from tzgen.sid import jobs

    if config is None:
        jobs.run_verb(verb, args)
        return None
    from tzgen.export.jobs import checkpoint_job
    from tzgen.train.environment import environment
    from tzgen.train.job import fit_then
    from tzgen.train.weights import trained_pipeline

    with environment() as env:
        codes = jobs.codes_flags(args, config)
        return fit_then(
            config,
            env,
            source=str(args.pipeline_config),
            predict=lambda: checkpoint_job(codes, config, trained_pipeline, env.device).run(env),
            publish=lambda notes: jobs.bundle_job(codes, notes),
        )


if __name__ == "__main__":
    main()
