# SPDX-License-Identifier: Apache-2.0
"""A name -> class table. Unknown names list the known ones and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tzgen.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by config name; `kind` is the word used in messages ("model", "reader", ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator. Raises ValueError when the name is taken."""

        def add(cls: type[T]) -> type[T]:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {cls.__qualname__}")
            self._classes[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._classes:
            near = difflib.get_close_matches(name, self._classes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(sorted(self._classes)) or "none"
            raise UserError(f"unknown {self.kind} {name!r}{hint} Known: {known}.")
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))
