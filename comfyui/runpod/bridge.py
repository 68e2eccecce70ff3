"""`RunPodBridge`: the server that is a ComfyUI to the gateway and a client to RunPod.

It listens on loopback, on a free port, behind a password that only this process knows: whoever reached it past the
gateway would be past the gateway's keys.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

import aiohttp
import structlog
from aiohttp import web

from comfyui.exceptions import ComfyUIError, JournalError
from comfyui.inputs.fetch import UrlFetcher
from comfyui.metrics import Metrics
from comfyui.runpod.endpoint import RunPodEndpoint
from comfyui.runpod.files import FileRoutes
from comfyui.runpod.following import Follower
from comfyui.runpod.health import EndpointHealth
from comfyui.runpod.inputs import InputFiles
from comfyui.runpod.jobs import JobQueue
from comfyui.runpod.journal import Journal
from comfyui.runpod.listing import ListingRoutes
from comfyui.runpod.loaders import LOADERS
from comfyui.runpod.local import LocalComfyUI, refusal
from comfyui.runpod.narrator import Narrator
from comfyui.runpod.options import RunPodOptions
from comfyui.runpod.prompts import PromptRoutes
from comfyui.runpod.results import ResultFiles
from comfyui.runpod.retention import Retention
from comfyui.runpod.sending import Submitter
from comfyui.runpod.sockets import Hub
from comfyui.tasks import SideTasks

_log = structlog.get_logger(__name__)

_USER = "gateway"
# As ComfyUI's default; what goes into a job is far smaller, and uploads are streamed.
_LARGEST_BODY = 100 * 1024 * 1024
_HEADER_BYTES = 64 * 1024
_SHUTDOWN_S = 0.5
_LARGEST_DOWNLOAD = 1 << 40
_DOWNLOAD_S = 3600.0
_DAY_S = 86_400.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RunPodBridge:
    """Open it with ``async with``; it owns everything in it but the metrics.

    Raises:
        JournalError: when it is opened, and another gateway uses the same folder.
    """

    def __init__(self, options: RunPodOptions, metrics: Metrics | None = None) -> None:
        self._options = options
        self._metrics = metrics or Metrics()
        self._password = secrets.token_urlsafe(32)
        self._port = 0
        self._stack = AsyncExitStack()
        self._health = EndpointHealth()

    @property
    def address(self) -> str:
        """For `ComfyUIClient`; it has the password in it, so it must not be logged."""
        return f"http://{_USER}:{self._password}@127.0.0.1:{self._port}"

    @property
    def name(self) -> str:
        """By which people know it."""
        return f"runpod:{self._options.endpoint_id}"

    def tell_trouble(self, listener: Callable[[str], None]) -> None:
        """Have it called with the reason while RunPod refuses us, and with "" when that has passed."""
        self._health.listen(listener)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    async def _open(self, stack: AsyncExitStack) -> None:
        options, times = self._options, self._options.times
        folder = await asyncio.to_thread(options.data_dir.absolute)
        journal = await stack.enter_async_context(Journal(folder / "journal.sqlite3"))
        endpoint = await stack.enter_async_context(
            RunPodEndpoint(
                options.endpoint_id, options.api_key, options.endpoint_url, health=self._health, metrics=self._metrics
            )
        )
        local = await stack.enter_async_context(LocalComfyUI(options.local_address, options.answers, times))
        fetcher = await stack.enter_async_context(
            UrlFetcher(max_bytes=_LARGEST_DOWNLOAD, allow=options.url_allow, timeout_s=_DOWNLOAD_S)
        )
        hub = Hub(local, lambda: queue.remaining, buffer_bytes=options.socket_buffer_bytes)
        queue = JobQueue(journal, Narrator(hub), hub, self._health)
        for state in ("waiting", "pending", "running"):
            self._metrics.runpod_jobs.labels(state).set_function(functools.partial(_count, queue, state))
        results = ResultFiles(folder / "outputs", fetcher, self._metrics, times)
        inputs = InputFiles(folder / "inputs", results, local)
        follower = Follower(endpoint, queue, journal, results, times)
        stack.push_async_callback(follower.close)
        await queue.load()
        tasks = {
            "submitter": Submitter(endpoint, queue, inputs, self._health, times).run(),
            "follower": follower.run(),
            "health": self._health.run(endpoint, lambda: queue.remaining > 0),
        }
        if options.data_days:
            retention = Retention(
                results,
                inputs,
                queue,
                max_age_s=options.data_days * _DAY_S,
                every_s=times.clean_every_s,
                on_inputs_removed=hub.drop_own,
            )
            tasks["retention"] = retention.run()
        side = await stack.enter_async_context(SideTasks(functools.partial(_give_up, self._health)))
        for name, work in tasks.items():
            side.start(work, f"RunPod {name}")
        routes = [
            *_twins(PromptRoutes(queue, journal, inputs).routes()),
            *_twins(FileRoutes(results, inputs, local).routes()),
            *ListingRoutes(queue, journal).routes(),
            *_twins(ServerRoutes(hub, local).routes()),
            web.route("*", "/{path:.*}", local.relay),
        ]
        await self._listen(stack, routes, hub)

    async def _listen(self, stack: AsyncExitStack, routes: Iterable[web.RouteDef], hub: Hub) -> None:
        expected = aiohttp.encode_basic_auth(_USER, self._password)
        app = web.Application(client_max_size=_LARGEST_BODY, middlewares=[_guarding(expected), _translating])
        app.add_routes(routes)
        runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=_SHUTDOWN_S,
            auto_decompress=False,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        stack.callback(hub.drop_all)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]


class ServerRoutes:
    """What describes the server, and its websocket."""

    def __init__(self, hub: Hub, local: LocalComfyUI) -> None:
        self._hub = hub
        self._local = local

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/ws", self.websocket),
            web.get("/system_stats", self.system_stats),
            web.get("/object_info", self.object_info),
            web.post("/free", self.free),
        ]

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        return await self._hub.handle(request, is_own=_is_own(request))

    async def system_stats(self, request: web.Request) -> web.StreamResponse:
        if self._local.reachable:
            return await self._local.relay(request)
        return web.json_response({"system": {"comfyui_version": "", "argv": []}, "devices": []})

    async def object_info(self, request: web.Request) -> web.StreamResponse:
        """For the gateway itself there is always an answer: it must tell files from texts in a workflow."""
        if self._local.reachable or not _is_own(request):
            return await self._local.relay(request)
        return web.json_response(LOADERS)

    async def free(self, _request: web.Request) -> web.Response:
        """The local ComfyUI holds no models, and RunPod's workers cannot be told."""
        return web.Response()


def _count(queue: JobQueue, state: str) -> float:
    return queue.counted()[state]


def _is_own(request: web.Request) -> bool:
    """Asked by the gateway for itself: what it relays for a client says so."""
    return "X-Forwarded-Proto" not in request.headers


def _guarding(expected: str) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), expected.encode()):
            return web.Response(status=401)
        return await handler(request)

    return guard


@web.middleware
async def _translating(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Our errors in the gateway's shape; a bug of ours as 500 with its traceback in the log."""
    try:
        return await handler(request)
    except ComfyUIError as error:
        if isinstance(error, JournalError):
            _log.error("runpod.journal_failed", detail=error.detail, path=request.path)
        return refusal(error)
    except (web.HTTPException, ConnectionError):
        raise
    except Exception:
        _log.exception("runpod.request_crashed", path=request.path)
        return refusal(ComfyUIError("the gateway failed; its log has the reason"))


def _twins(routes: Sequence[web.RouteDef]) -> list[web.RouteDef]:
    """Each also below ``/api``."""
    return [*routes, *(web.RouteDef(one.method, f"/api{one.path}", one.handler, one.kwargs) for one in routes)]


def _give_up(health: EndpointHealth, task: asyncio.Task[None]) -> None:
    """A bug of ours: no prompt must be taken that nobody would send or follow."""
    _log.critical("runpod.crashed", task=task.get_name(), exc_info=task.exception())
    health.give_up("a part of the gateway failed; its log has the reason. Restart it")
