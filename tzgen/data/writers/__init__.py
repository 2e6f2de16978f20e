# SPDX-License-Identifier: Apache-2.0
"""Writers by TorchEasyRec's names. A new one: a file here, `@WRITERS.register`, an import below."""

from __future__ import annotations

from tzgen.data.writers.base import MANIFEST, WRITERS, Barrier, Writer, alone
from tzgen.data.writers.csv import CsvWriter
from tzgen.data.writers.parquet import ParquetWriter

__all__ = ["MANIFEST", "WRITERS", "CsvWriter", "ParquetWriter", "Writer", "open_writer"]


def open_writer(
    writer_type: str,
    path: str,
    *,
    rank: int = 0,
    world_size: int = 1,
    barrier: Barrier = alone,
    overwrite: bool = False,
) -> Writer:
    """A writer of `part-<rank>` under the folder or URL `path`; every rank opens one.

    `barrier` returns when all ranks have called it (torch.distributed.barrier). Raises UserError
    where output already is, unless `overwrite`.
    """
    return WRITERS[writer_type](
        path, rank=rank, world_size=world_size, barrier=barrier, overwrite=overwrite
    )
