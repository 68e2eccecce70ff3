"""The FastAPI application (``uvicorn server:app``) and its entry point, ``python server.py``."""

from __future__ import annotations

import argparse
import functools
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog

from comfyui.assets.rooms import assets_of
from comfyui.exceptions import ComfyUIDiskError, SettingsError
from comfyui.executors.elsewhere import Elsewhere
from comfyui.executors.quarantine import Quarantine
from comfyui.fallback import fallback_engine
from comfyui.handler import ComfyUIHandler
from comfyui.inputs.staging import InputStager
from comfyui.inputs.store import FOLDER_NAME, InputStore
from comfyui.jobs.entries import Entries
from comfyui.jobs.following import let_go
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.measures import JournalMeasures
from comfyui.jobs.pruning import pruning
from comfyui.jobs.runpod_journal import take_over_runpod_journal
from comfyui.jobs.stored import unfinished_prompts
from comfyui.jobs.telling import Payloads
from comfyui.jobs.webhooks.announcements import Announcements
from comfyui.jobs.webhooks.outbox import Outbox, some_wait
from comfyui.jobs.webhooks.sending import WebhookSender
from comfyui.jobs.webhooks.signers import Signers
from comfyui.logs import configure_logging
from comfyui.metrics import Metrics
from comfyui.named.library import FleetDefinitions, NamedWorkflows
from comfyui.outputs.delivery import Deliverer
from comfyui.outputs.files import OutputFiles
from comfyui.outputs.images import ImageConverter
from comfyui.outputs.thumbnails import THUMBNAILS_FOLDER, Thumbnails
from comfyui.servers.idle import freeing_when_idle
from comfyui.servers.pool import BackendPool
from comfyui.settings import ENV_FILE, MB, load
from comfyui.warmup import WarmUp
from comfyui.web.api.ops import VERSION
from comfyui.web.api.rendering import JobRenderer
from comfyui.web.app import Gateway, Opened
from comfyui.web.front import keys_command
from comfyui.web.front.tickets import Tickets
from comfyui.web.server.draining import draining_on_signal
from comfyui.web.server.huge_pages import use_huge_pages
from comfyui.web.server.listening import bind, warn_of_strangers
from comfyui.web.server.serving import Server, relieve_the_collector, run
from config import GatewayOptions, Settings

_log = structlog.get_logger("gateway")
# How many names of keys the line of the start has.
_NAMES_SHOWN = 100
_JOURNAL_UNUSABLE = 74  # sysexits.h: EX_IOERR


def create_app(
    settings: Settings | None = None,
    *,
    options: GatewayOptions | None = None,
    metrics: Metrics | None = None,
    on_drained: Callable[[float], None] | None = None,
    on_failed: Callable[[], None] | None = None,
) -> Gateway:
    """The application; everything that owns I/O is opened by its lifespan and closed in reverse order.

    Args:
        options: those of the settings when not given.
        on_drained: see `draining_on_signal`.
        on_failed: see `Gateway`.

    Raises:
        SettingsError: a file or package that a setting needs cannot be used.
    """
    settings = settings or load(Settings, env_file=ENV_FILE)
    metrics = metrics or Metrics()
    options = options or settings.options()
    accesses, warmup, signer = settings.accesses(), settings.warmup_prompt(), settings.signer()
    journal = _journal(settings, metrics)

    @asynccontextmanager
    async def opening() -> AsyncIterator[Opened]:
        if settings.state_dir is None:
            _log.info("jobs.in_memory", detail="STATE_DIR is empty: a restart forgets all jobs")
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(
                BackendPool.connect(
                    settings.comfyui_server_address,
                    options.servers,
                    access=accesses,
                    metrics=metrics,
                    runs_prompts=settings.runs_on_comfyui,
                )
            )
            stager = await stack.enter_async_context(
                InputStager(
                    max_bytes=settings.max_input_bytes,
                    limits=options.handler.limits,
                    url_allow=settings.input_url_allow,
                    url_timeout_s=settings.input_url_timeout,
                )
            )
            await stack.enter_async_context(journal)
            await stack.enter_async_context(
                pruning(
                    journal,
                    keep_days=settings.jobs_keep_days,
                    keep=settings.jobs_keep,
                    usage_keep_days=settings.usage_keep_days,
                )
            )
            inputs = await stack.enter_async_context(_inputs(settings))
            runpod = await _runpod(options, pool, journal, metrics, stack, settings.shutdown_grace_seconds)
            if options.store is not None:
                await stack.enter_async_context(options.store)
            converter = ImageConverter(options.conversion)
            thumbnails = await stack.enter_async_context(_thumbnails(settings, converter))
            files = await stack.enter_async_context(
                OutputFiles(
                    pool.open_file,
                    options.store,
                    converter=converter,
                    last_uploads_s=options.delivery.last_uploads_s,
                )
            )
            deliverer = Deliverer(files, options.delivery)
            announcements = Announcements(settings.webhook_url or None)
            warm_up = WarmUp(warmup, timeout_s=settings.max_timeout) if warmup is not None else None
            handler = await stack.enter_async_context(
                ComfyUIHandler(
                    pool,
                    stager,
                    options.handler,
                    metrics=metrics,
                    quarantine=Quarantine(settings.quarantine_after, settings.quarantine_seconds, journal),
                    also_ready=warm_up,
                    entries=Entries(journal, announcements, keep_files=options.delivery.merged),
                    owners=options.app.keys,
                    inputs=inputs,
                    deliverer=deliverer,
                    elsewhere=runpod,
                )
            )
            assets = assets_of(
                journal,
                inputs,
                handler.uploads,
                handler.standing,
                pool,
                handler.made,
                functools.partial(let_go, handler.admission.runs),
                keep_s=settings.jobs_keep_days * 86_400,
            )
            await stack.enter_async_context(assets.uploaded.expiring())
            await stack.enter_async_context(assets.outputs)
            named = NamedWorkflows(settings.workflows_dir, FleetDefinitions(pool, handler.fleet), options.named)
            await stack.enter_async_context(named.following())
            await stack.enter_async_context(assets.fresh)
            if settings.runs_on_comfyui:
                await stack.enter_async_context(freeing_when_idle(pool, settings.free_after_idle))
            tickets = Tickets(options.app.keys, public_url=settings.public_url, link_s=options.app.link_s)
            if signer is not None or (settings.keys_file is not None and settings.public_url):
                sender = await stack.enter_async_context(WebhookSender(options.sender))
                payloads = Payloads(journal, JobRenderer(deliverer, tickets))
                await stack.enter_async_context(
                    Outbox(
                        journal,
                        announcements,
                        payloads,
                        Signers(signer, options.app.keys),
                        sender,
                        metrics,
                        options.outbox,
                    )
                )
            elif await some_wait(journal):
                _log.warning(
                    "webhooks.wait", detail="WEBHOOK_SECRET or PUBLIC_URL is not set: webhooks that wait are not sent"
                )
            if warm_up is not None:
                await stack.enter_async_context(warm_up.running(handler))
            with draining_on_signal(handler, settings.shutdown_grace_seconds, on_drained):
                yield Opened(handler, assets, deliverer, thumbnails, tickets, named)

    return Gateway(options.app, metrics, opening, journal=journal, on_failed=on_failed)


def _journal(settings: Settings, metrics: Metrics) -> Journal:
    if settings.state_dir is None:
        return MemoryJournal(keep=settings.jobs_keep)
    return SqliteJournal(
        settings.state_dir, lock_wait_s=settings.shutdown_grace_seconds, observer=JournalMeasures(metrics)
    )


def _inputs(settings: Settings) -> InputStore:
    folder = None if settings.state_dir is None else settings.state_dir / FOLDER_NAME
    max_bytes = int(settings.max_stored_inputs_mb * MB)
    return InputStore(folder, max_bytes=max_bytes, keep_s=settings.inputs_keep_days * 86_400)


def _thumbnails(settings: Settings, converter: ImageConverter) -> Thumbnails:
    return Thumbnails(converter, None if settings.state_dir is None else settings.state_dir / THUMBNAILS_FOLDER)


async def _runpod(
    options: GatewayOptions,
    pool: BackendPool,
    journal: Journal,
    metrics: Metrics,
    stack: AsyncExitStack,
    lock_wait_s: float,
) -> Elsewhere | None:
    """The server that stands for RunPod; None if no prompts run there. Raises `JournalError`."""
    if options.runpod is None:
        return None
    # Gateways without RunPod need not load it.
    from comfyui.executors.runpod.server import RunPodServer

    unfinished = functools.partial(unfinished_prompts, journal)
    runpod = await stack.enter_async_context(
        RunPodServer(options.runpod, pool.backends[0], journal, unfinished, pool.news, pool.frames, metrics)
    )
    pool.join(runpod)
    await take_over_runpod_journal(
        options.runpod.data_dir, runpod.name, journal, now=time.time(), lock_wait_s=lock_wait_s
    )
    return runpod


async def _serve(settings: Settings) -> None:
    metrics = Metrics()

    def leave_to_connections(left_s: float) -> None:
        server.end_connections_within(left_s)

    def stop() -> None:
        server.should_exit = True

    options = settings.options()
    app = create_app(settings, options=options, metrics=metrics, on_drained=leave_to_connections, on_failed=stop)
    server = Server(app, options.serving, metrics, settings.shutdown_grace_seconds)
    if not options.app.keys:
        warn_of_strangers(settings.server_host, settings.server_port)
    runpod = settings.runpod_endpoint_id if "runpod" in settings.backend else None
    keys = options.app.keys.shown_names()[:_NAMES_SHOWN] or None
    _log.info("gateway.starting", comfyui=settings.shown_addresses, runpod=runpod, keys=keys, version=VERSION)
    relieve_the_collector()
    # The kernel takes 0.1 s for it; the start does not wait.
    threading.Thread(target=use_huge_pages, name="huge pages", daemon=True).start()
    try:
        sockets = bind(settings.server_host, settings.server_port)
    except ValueError as error:
        raise SettingsError(f"SERVER_HOST, SERVER_PORT: {error}") from error
    try:
        await server.serve(sockets)
    finally:
        if app.failure is not None:
            raise app.failure


def _settings() -> Settings:
    settings = load(Settings, env_file=ENV_FILE)
    configure_logging(settings.log_level, settings.log_output)
    return settings


async def _main(*, with_fallback: bool) -> None:
    settings = _settings()
    if not with_fallback:
        await _serve(settings)
        return
    async with fallback_engine(settings.accesses()) as engine:
        if engine is not None:
            addresses = ", ".join(settings.shown_addresses)
            _log.warning("engine.embedded", detail=f"no ComfyUI answers at {addresses}: using a simulation at {engine}")
            settings = settings.with_comfyui_at(engine)
        await _serve(settings)


def main() -> int:
    """Serve until a signal comes. Exit status 2 when a setting cannot be used, 74 when the journal of jobs cannot."""
    prog = "comfyui-gateway"
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [-h] [--fallback-engine]\n       {prog} keys {{add,rotate}} NAME ...",
        description="Serves the gateway. Its settings are environment variables: docs/configuration.md.",
    )
    # Without its own `prog`, a command's help would begin with both lines of the usage.
    commands = parser.add_subparsers(prog=prog, dest="command", metavar="keys", title="instead of serving")
    keys_command.add_arguments(
        commands.add_parser("keys", help="make and rotate the keys of KEYS_FILE: see keys --help")
    )
    parser.add_argument(
        "--fallback-engine",
        action="store_true",
        help="if no ComfyUI answers, start the embedded engine (a simulation) and use it",
    )
    arguments = parser.parse_args()
    try:
        if arguments.command == "keys":
            settings = load(Settings, env_file=ENV_FILE)
            print(keys_command.run(arguments, settings.keys_file, settings.state_dir))
            return 0
        run(_main(with_fallback=arguments.fallback_engine))
    except SettingsError as error:
        print(
            f"comfyui-gateway cannot {'start' if arguments.command is None else 'do that'}:\n{error}", file=sys.stderr
        )
        return 2
    except ComfyUIDiskError:
        return _JOURNAL_UNUSABLE  # the log has said why
    except KeyboardInterrupt:
        return 130
    return 0


def __getattr__(name: str) -> Any:
    """``app`` for ``uvicorn server:app``, made on first access: an import alone reads no environment."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return create_app(_settings())


if __name__ == "__main__":
    sys.exit(main())
