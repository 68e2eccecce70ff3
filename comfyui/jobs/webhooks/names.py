"""`OwnThreadsResolver`: looks names up in threads of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

Lookup = Callable[..., list[Any]]
"""`socket.getaddrinfo`."""


class OwnThreadsResolver(AbstractResolver):
    """Unlike aiohttp's own, it does not use the few threads that the whole process shares: a silent name server holds a
    thread for up to half a minute, and callers choose the names.

    Args:
        threads: at most; they are begun when they are needed.
    """

    def __init__(self, threads: int, *, lookup: Lookup = socket.getaddrinfo) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="webhook names")
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError, or UnicodeError for what no name can be."""
        look_up = partial(self._lookup, host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        return [
            ResolveResult(
                hostname=host,
                # Without its zone: an address that needs one is link-local, and there is none to choose here.
                host=address[0].partition("%")[0],
                port=address[1],
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, address in found
            if kind in {socket.AF_INET, socket.AF_INET6}
        ]

    async def close(self) -> None:
        """Look-ups under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
