"""Chooses the ComfyUI server for a relayed request, and has the connections to it.

ComfyUI keeps settings, user data, uploads and its queue on its own disk or in its memory: clients see those of the
first ready server, as long as it is ready. Prompts and files are on the server that ran them.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self

from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.transport.relay import RelayTransport
from comfyui.web.comfyui.everywhere import Everywhere


class Upstream:
    """One backend and the relay's own connections to it: slow downloads never starve the gateway's own requests."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.base_url = backend.client.base_url
        self.path_prefix = self.base_url.raw_path.rstrip("/")
        self.credentials = {
            name.lower().encode(): value.encode("latin-1") for name, value in backend.client.credentials.items()
        }
        """Headers that ComfyUI asks the gateway for; they take the place of a client's. Names are lower-case."""
        self.transport = RelayTransport(self.base_url, backend.name, backend.client.tls)

    async def close(self) -> None:
        await self.transport.close()


class Upstreams:
    """Open it with ``async with``; the pool belongs to its creator."""

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool
        self._upstreams: dict[Backend, Upstream] = {}
        self._stack = AsyncExitStack()
        self.everywhere = Everywhere(pool)
        """Asks all of them at once."""

    async def __aenter__(self) -> Self:
        self._stack.push_async_callback(self.everywhere.close)
        for backend in self._pool.backends:
            upstream = self._upstreams[backend] = Upstream(backend)
            self._stack.push_async_callback(upstream.close)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    @property
    def several(self) -> bool:
        return len(self._upstreams) > 1

    @property
    def names(self) -> list[str]:
        """The names of all servers, in the configured order."""
        return [backend.name for backend in self._upstreams]

    @property
    def home(self) -> Upstream:
        """The first configured server, which has what no other can have."""
        return next(iter(self._upstreams.values()))

    def first(self) -> Upstream:
        """The server with clients' state: the first ready one, or the first, whose failure is then the answer."""
        for backend, upstream in self._upstreams.items():
            if backend.ready:
                return upstream
        return next(iter(self._upstreams.values()))

    def named(self, server: str) -> Upstream | None:
        """The server of this name; None if it no longer exists."""
        return next((upstream for backend, upstream in self._upstreams.items() if backend.name == server), None)

    def others(self, than: Upstream) -> list[Upstream]:
        """Further servers that may have what `than` has not."""
        return [upstream for backend, upstream in self._upstreams.items() if upstream is not than and backend.ready]
