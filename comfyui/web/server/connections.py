"""Limits the open connections of clients, so that file descriptors are left for everything else."""

from __future__ import annotations

import resource
import time
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import structlog

from comfyui.exceptions import TooManyConnectionsError
from comfyui.metrics import Metrics

_log = structlog.get_logger(__name__)
# Descriptors for files, name look-ups, ComfyUI's websockets, and connections that are being refused.
_RESERVED = 16
_AT_LEAST = 4
_LOG_EVERY_S = 10.0
_UNLIMITED = 1_000_000


class Closable(Protocol):
    """A connection."""

    def close_idle(self) -> None: ...


def raise_descriptor_limit() -> int:
    """Raises this process's own limit of open files as far as allowed; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # a system may have a lower one of its own
            pass
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def connections_within(descriptors: int) -> int:
    """How many clients fit: each may need a second descriptor, for its request to ComfyUI."""
    opened = Path("/proc/self/fd")
    in_use = len(list(opened.iterdir())) if opened.is_dir() else _RESERVED
    return max(_AT_LEAST, (descriptors - in_use - _RESERVED) // 2)


class Connections:
    """The open connections of one server.

    If there are too many, the one that was idle longest is closed: its client opens another when it needs one.

    Args:
        most: the largest number of open connections.
    """

    def __init__(self, most: int, metrics: Metrics | None = None) -> None:
        self._most = most
        self._metrics = metrics
        self._open = 0
        self._idle: OrderedDict[Closable, None] = OrderedDict()
        self._logged_at = float("-inf")

    def opened(self) -> bool:
        """Counts one more. False if it is one too many, which must be told so and closed."""
        self._open += 1
        if self._open <= self._most:
            return True
        if self._idle:
            longest, _ = self._idle.popitem(last=False)
            longest.close_idle()
            return True
        self._refused()
        return False

    def closed(self, connection: Closable) -> None:
        self._open -= 1
        self._idle.pop(connection, None)

    def idle(self, connection: Closable) -> None:
        """The connection has no request and no answer now."""
        self._idle[connection] = None

    def busy(self, connection: Closable) -> None:
        self._idle.pop(connection, None)

    @property
    def crowded(self) -> bool:
        """Whether there are so many that even a refusal takes a descriptor that others need."""
        return self._open > self._most + _RESERVED // 2

    @property
    def refusal(self) -> TooManyConnectionsError:
        return TooManyConnectionsError(
            f"the gateway has {self._most} connections, all that its limit of open files allows; try again later"
        )

    def _refused(self) -> None:
        if self._metrics is not None:
            self._metrics.rejected.labels("overloaded").inc()
        if time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            detail = (
                "further clients get 503 until one disconnects; raise the limit of open files (ulimit -n, LimitNOFILE)"
            )
            _log.warning("connections.full", limit=self._most, detail=detail)
