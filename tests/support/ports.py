"""Ports for servers that must be told theirs before they start.

They are below those (32,768 to 60,999) that Linux gives out by itself, to all other servers and connections of the
suite: a port that is free now would otherwise be somebody's in a moment.
"""

from __future__ import annotations

import random
import socket
from contextlib import closing

_given: set[int] = set()


def free_port(first: int = 22_000, end: int = 32_000, also: tuple[int, ...] = ()) -> int:
    """A port from `first` on, before `end`, that is free on 127.0.0.1 and was not given before in this process.

    Args:
        also: the port plus each of these is free, too.
    """
    for _ in range(1000):
        port = random.randrange(first, end)  # noqa: S311
        if port not in _given and all(_is_free(port + more) for more in (0, *also)):
            _given.add(port)
            return port
    raise RuntimeError("no free port")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
