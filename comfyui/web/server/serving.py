"""uvicorn with the gateway's protocols and limits, and a log line that says where it listens."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import signal
import socket
import sys
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from comfyui.metrics import Metrics
from comfyui.web.server.connections import Connections, connections_within, raise_descriptor_limit
from comfyui.web.server.http import ServerHttp
from comfyui.web.server.listening import url_of
from comfyui.web.server.request_head import HeadLimits
from comfyui.web.server.socket import ServerSocket, SocketLimits

# Objects made and not freed by themselves, about 30 requests' worth; Python's own figure is a few hundred.
_COLLECT_AFTER = 10_000
# After the grace, for answers that are on their way to slow clients.
_LAST_CONNECTIONS_S = 5
_BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """Limits of clients' connections."""

    heads: HeadLimits = field(default_factory=HeadLimits)
    sockets: SocketLimits = field(default_factory=SocketLimits)


def protocols(
    options: ServingOptions, metrics: Metrics | None = None, connections: Connections | None = None
) -> dict[str, Any]:
    """Options of `uvicorn.Config` that a relay needs; each is what ComfyUI's own server does.

    Args:
        connections: how many may be open at once; None for any number.
    """
    return {
        # ComfyUI's Server header comes through; a second one would not be HTTP.
        "server_header": False,
        # `TrustedProxies` reads these headers: uvicorn reads no host and no path, and keeps headers that it does not
        # believe.
        "proxy_headers": False,
        "timeout_keep_alive": 75,
        "http": functools.partial(
            ServerHttp,
            head_limits=options.heads,
            socket_limits=options.sockets,
            connections=connections,
            metrics=metrics,
        ),
        "ws": ServerSocket,
        # A ping keeps the path open. A client that does not answer may be busy with its picture.
        "ws_ping_interval": 20.0,
        "ws_ping_timeout": None,
    }


class Server(uvicorn.Server):
    """Serves one application until a signal comes. `grace_s`: how long its prompts may go on after that."""

    def __init__(self, app: ASGIApp, options: ServingOptions, metrics: Metrics, grace_s: float) -> None:
        most = connections_within(raise_descriptor_limit())
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                # No more are accepted at once than there are descriptors for; the others wait in the system's queue.
                backlog=min(_BACKLOG, most),
                **protocols(options, metrics, Connections(most, metrics)),
            )
        )
        self.end_connections_within(grace_s)

    def end_connections_within(self, seconds: float) -> None:
        """When the server stops, open connections get this time and a moment more, and are then cut.

        These are clients that do not read their answers, and websockets.
        """
        self.config.timeout_graceful_shutdown = math.ceil(seconds) + _LAST_CONNECTIONS_S

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or ():  # on these uvicorn is silent
            logging.getLogger("uvicorn.error").info("Uvicorn running on %s (Press CTRL+C to quit)", url_of(sock))


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs `main` in the loop that uvicorn would choose."""
    # uvicorn raises the signal again once it has shut down in order; what `main` has open must still be closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
        runner.run(main)


def relieve_the_collector() -> None:
    """The present objects stay for good, so the garbage collector need not look at them again.

    By default, it took a seventh of all time, in pauses of 20 ms and more.
    """
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
