"""`Feed` passes news to listeners."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

ListenerT = TypeVar("ListenerT")


class Feed(Generic[ListenerT]):
    """The owner of news iterates over it and calls each listener; without listeners that costs almost nothing."""

    __slots__ = ("_listeners",)

    def __init__(self) -> None:
        self._listeners: tuple[ListenerT, ...] = ()

    def __iter__(self) -> Iterator[ListenerT]:
        return iter(self._listeners)

    @contextmanager
    def heard_by(self, listener: ListenerT) -> Iterator[None]:
        """`listener` is called until the block ends."""
        self._listeners = (*self._listeners, listener)
        try:
            yield
        finally:
            self._listeners = tuple(one for one in self._listeners if one is not listener)
