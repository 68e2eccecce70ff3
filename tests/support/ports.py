"""Ports for servers whose port must be chosen before they start.

They are below the range (32,768 to 60,999) from which Linux itself gives ports to all other servers and connections of
the suite: a free port from that range might be taken a moment later.
"""

from __future__ import annotations

import random
import socket
from contextlib import closing

_given: set[int] = set()


def free_port(first: int = 22_000, end: int = 32_000, also: tuple[int, ...] = ()) -> int:
    """A port from `first` on, before `end`, that is free on 127.0.0.1 and was not returned before in this process.

    Args:
        also: offsets; the port plus each of these is free, too.
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
