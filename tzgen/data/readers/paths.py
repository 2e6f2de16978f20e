# SPDX-License-Identifier: Apache-2.0
"""Input paths to files: globs, comma lists, folders; local or any URL that fsspec opens."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import pyarrow.fs as pafs

from tzgen.errors import DataError, UserError

GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Listing:
    """Files in a fixed order, with the Arrow filesystem that opens them."""

    filesystem: pafs.FileSystem
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    fork_safe: bool

    def names(self) -> list[str]:
        """Paths relative to the folder that all of them share; the same on every machine."""
        folder = posixpath.commonpath([posixpath.dirname(path) or "." for path in self.paths])
        return [posixpath.relpath(path, folder) for path in self.paths]


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """fsspec's filesystem and the path on it. Raises UserError where no driver can be loaded."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(
            f"{url}: the driver for this kind of storage is missing. {error}"
        ) from error
    except ValueError as error:
        raise UserError(f"{url}: found an unknown URL scheme. {error}") from error
    return filesystem, path


def arrow_filesystem(filesystem: fsspec.AbstractFileSystem) -> pafs.FileSystem:
    """Arrow's own local filesystem where it serves, else fsspec's behind Arrow's interface."""
    if is_local(filesystem):
        return pafs.LocalFileSystem()
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return "file" in _protocols(filesystem)


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def list_files(input_path: str, suffixes: Sequence[str]) -> Listing:
    """Files of a comma list of paths, globs and folders; `suffixes` choose inside folders.

    Hidden files (leading `.` or `_`) inside folders are left out: they are other tools' notes.
    """
    patterns = [part.strip() for part in input_path.split(",") if part.strip()]
    if not patterns:
        raise UserError(
            f"input path {input_path!r} names nothing; expected a path, glob or folder."
        )
    first, _ = open_filesystem(patterns[0])
    paths: dict[str, int] = {}
    for pattern in patterns:
        filesystem, path = open_filesystem(pattern)
        if _protocols(filesystem) != _protocols(first):
            raise UserError(
                f"input path {input_path!r} mixes kinds of storage ({patterns[0]}, {pattern}); "
                "expected one kind. Copy the files to one place."
            )
        for found, size in _expand(filesystem, pattern, path, suffixes):
            if found in paths:
                raise UserError(
                    f"input path {input_path!r} names {found} twice, so its rows would count "
                    "twice. Make the patterns disjoint."
                )
            paths[found] = size
    local_or_memory = is_local(first) or "memory" in _protocols(first)
    return Listing(
        arrow_filesystem(first), tuple(paths), tuple(paths.values()), fork_safe=local_or_memory
    )


def _expand(
    filesystem: fsspec.AbstractFileSystem, pattern: str, path: str, suffixes: Sequence[str]
) -> list[tuple[str, int]]:
    try:
        roots = sorted(filesystem.glob(path)) if GLOB & set(path) else [path]
        found: list[tuple[str, int]] = []
        for root in roots:
            if filesystem.isdir(root):
                inside = filesystem.find(root, detail=True)
                found += [
                    (name, info["size"])
                    for name, info in sorted(inside.items())
                    if name.endswith(tuple(suffixes)) and not _hidden(name, root)
                ]
            elif filesystem.isfile(root):
                found.append((root, filesystem.size(root)))
    except OSError as error:
        raise DataError(
            file=pattern,
            found=f"{type(error).__name__}: {error}",
            expected="a place that can be listed",
            remedy="Check the address, the network and the credentials.",
        ) from error
    if not found:
        raise DataError(
            file=pattern,
            found=f"no file ({_what_is_there(filesystem, path)})",
            expected=f"a file, a glob or a folder with {' or '.join(suffixes)} files",
            remedy="Correct the input path.",
        )
    return found


def _hidden(name: str, root: str) -> bool:
    parts = name.removeprefix(root).strip("/").split("/")
    return any(part.startswith((".", "_")) for part in parts)


def _what_is_there(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """The nearest folder that exists and a few of its entries, to show where a path went wrong."""
    folder = path
    while folder and not filesystem.isdir(folder):
        parent = posixpath.dirname(folder)
        if parent == folder:
            break
        folder = parent
    if not filesystem.isdir(folder):
        return f"{folder} does not exist"
    names = filesystem.ls(folder, detail=False)
    entries = sorted(posixpath.basename(str(name).rstrip("/")) for name in names)
    shown = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    return f"{folder or '/'} holds {shown or 'nothing'}"
