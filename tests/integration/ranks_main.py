# SPDX-License-Identifier: Apache-2.0
"""Started by torchrun: runs the verbs that a JSON file lists, one after the other, in one group.

    torchrun --nproc-per-node 2 ranks_main.py cases.json

cases.json: [{"name", "verb", "argv", "stop": [rank, step] or null}]. `stop` sends SIGTERM to one
rank only. Each rank leaves <name>.<rank>.json beside it: {"status", "err"}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from world import run

from tzgen.train import environment, trainer


def main(path: Path) -> None:
    with environment.environment() as env:

        @contextmanager
        def joined() -> Iterator[environment.Env]:
            yield env

        environment.environment = joined  # type: ignore[assignment]
        plain = trainer.Trainer._after_step
        for case in json.loads(path.read_text()):

            def after_step(self: trainer.Trainer, *args: object, case: dict = case) -> None:
                plain(self, *args)  # type: ignore[arg-type]
                if case["stop"] == [env.rank, self.progress.step]:
                    os.kill(os.getpid(), signal.SIGTERM)

            trainer.Trainer._after_step = after_step  # type: ignore[method-assign]
            done = run(case["verb"], case["argv"])
            result = json.dumps({"status": done.status, "err": done.err})
            (path.parent / f"{case['name']}.{env.rank}.json").write_text(result)
            env.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
