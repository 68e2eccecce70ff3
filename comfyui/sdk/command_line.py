"""The command line: ``comfyui-gateway-client run|attach|status|cancel|health``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn, Self

import rich.filesize
import rich.progress
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from comfyui.sdk.client import CANCEL_TIMEOUT_S, DEFAULT_SERVER, GatewayClient, result_of
from comfyui.sdk.errors import (
    GatewayCancelledError,
    GatewayConnectionError,
    GatewayError,
    GatewayOverloadedError,
    GatewayRefusedError,
    GatewayTaskError,
    GatewayTimeoutError,
)
from comfyui.sdk.events import Event, Executing, Finished, Preview, Progress, Queued, Reconnecting
from comfyui.sdk.models import InputFile, PromptResult
from comfyui.sdk.workflow_files import UsageError, input_file, node_title, read_workflow, with_changes

_STATUS_TIMEOUT_S = 1.0
API_KEY_VARIABLE = "COMFYUI_GATEWAY_API_KEY"


class Exit(IntEnum):
    """The exit codes of the command line."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    REFUSED = 3
    FAILED = 4
    TIMED_OUT = 5
    UNREACHABLE = 6
    OVERLOADED = 7
    INTERRUPTED = 130


_EXIT_OF: Mapping[type[GatewayError], Exit] = {
    GatewayRefusedError: Exit.REFUSED,
    GatewayTaskError: Exit.FAILED,
    GatewayCancelledError: Exit.FAILED,
    GatewayTimeoutError: Exit.TIMED_OUT,
    GatewayConnectionError: Exit.UNREACHABLE,
    GatewayOverloadedError: Exit.OVERLOADED,
}


_EXIT_CODES = f"""\
exit codes:
  {Exit.OK:<4} done
  {Exit.UNEXPECTED:<4} something unexpected, such as an address where no gateway answers but something else
  {Exit.USAGE:<4} the command is wrong: an option, the workflow's file, an input, a --set
  {Exit.REFUSED:<4} refused (HTTP 400, 401, 403, 404, 409, 413, 422); nothing runs
  {Exit.FAILED:<4} failed or cancelled while running (500, 502, 409), or a file could not be saved (the others are)
  {Exit.TIMED_OUT:<4} not done within --timeout (504)
  {Exit.UNREACHABLE:<4} no gateway, or none with a ComfyUI behind it (no connection, 503)
  {Exit.OVERLOADED:<4} the gateway is at its limit: come back later (429)
  {Exit.INTERRUPTED:<4} Ctrl-C; `run` cancels its prompt

With --json, standard output is one JSON document, also for errors ("error", "type", "detail", …); progress and
messages are on standard error.
"""


_STDERR = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a command found out: for scripts, for people, and for `$?`."""

    exit: Exit
    document: Mapping[str, Any]
    report: Sequence[RenderableType]


class _Parser(argparse.ArgumentParser):
    """Leaves the reporting of a wrong command line to `main`, which knows of --json."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


class _Display:
    """What happens, on standard error: a live bar on a terminal, a line for each change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("waiting", total=None)
        self._doing = "waiting"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        match event:
            case Queued(position=position):
                self._change("queued" if position is None else f"queued, position {position}")
            case Executing(node=node, title=title):
                self._change(f"{title} (node {node})")
            case Progress(value=value, max=maximum, overall=overall):
                steps = f"{self._doing}  {value:g}/{maximum:g}"
                self._bar.update(self._task, description=_plain(steps), completed=overall, total=1.0)
            case Reconnecting(attempt=attempt, reason=reason):
                self._change(f"{reason}; attaching again, attempt {attempt}")
            case Preview() | Finished():
                pass

    def _change(self, doing: str) -> None:
        if doing == self._doing:
            return
        self._doing = doing
        self._bar.update(self._task, description=_plain(doing))
        if not self._console.is_terminal:
            self._console.print(Text(_plain(doing)))


def _plain(text: object) -> str:
    """Text that came over the network, without what would steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in str(text))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (see `Exit`)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Wide, where nobody's window limits it: a path that is cut or wrapped is of no use to grep.
    stdout = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    try:
        options = _parser().parse_args(arguments)
        answer: _Answer = asyncio.run(_command(options))
    except UsageError as error:
        answer = _failure(Exit.USAGE, GatewayError(str(error), title="Usage", code="usage"))
    except GatewayError as error:
        answer = _failure(_EXIT_OF.get(type(error), Exit.UNEXPECTED), error)
    except KeyboardInterrupt:
        answer = _failure(Exit.INTERRUPTED, GatewayError("Ctrl-C", title="Interrupted", code="interrupted"))
    if "--json" in arguments:
        print(json.dumps(answer.document, indent=2))
    else:
        for part in answer.report:
            stdout.print(part)
    return answer.exit


def _failure(exit_code: Exit, error: GatewayError) -> _Answer:
    """Tells a person on standard error at once; the document is left for standard output."""
    _STDERR.print(Text(f"{_plain(error.title)}: {_plain(error.detail)}", style="red"))
    for node, messages in error.node_errors.items():
        for message in messages:
            _STDERR.print(Text(_plain(f"  node {node}: {message}")))
    if error.retry_after_s is not None:
        _STDERR.print(f"try again in {error.retry_after_s:g} s")
    ids = {"prompt_id": error.prompt_id, "request_id": error.request_id}
    known = "  ".join(f"{name} {_plain(value)}" for name, value in ids.items() if value)
    if known:
        _STDERR.print(Text(known, style="dim"))
    return _Answer(exit_code, error.to_json(), ())


def _parser() -> _Parser:
    shared = _Parser(add_help=False)
    shared.add_argument("--server", metavar="URL", default=DEFAULT_SERVER, help="the gateway (default: %(default)s)")
    shared.add_argument(
        "--api-key",
        metavar="KEY",
        default=os.environ.get(API_KEY_VARIABLE),
        help=f"better in the environment, as {API_KEY_VARIABLE}: other users see command lines",
    )
    shared.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")

    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": _EXIT_CODES}
    parser = _Parser(prog="client.py", description="Run ComfyUI workflows through the gateway.", **layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function: Callable[..., Awaitable[_Answer]], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[shared], help=summary, description=summary, **layout)
        added.set_defaults(function=function)
        return added

    run = command("run", _run, "Run a workflow, wait for it, save its files.")
    run.add_argument(
        "workflow", metavar="WORKFLOW", help="a workflow in API format: a JSON file, or - for standard input"
    )
    run.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        action="append",
        default=[],
        help='change an input: 3.seed=7, 6.text="a red fox"; JSON where it is JSON, else text; may be repeated',
    )
    run.add_argument(
        "--input",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="send a file, for nodes that load NAME, such as sub/photo.png; may be repeated",
    )
    run.add_argument("--output", metavar="DIR", type=Path, default=Path("out"), help="default: %(default)s/")
    run.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=300.0, help="default: %(default)g")
    run.add_argument(
        "--prompt-id", metavar="UUID", type=_prompt_id, help="the same id again joins the prompt, or has its result"
    )

    status = command("status", _status, "Tell how far a prompt is; without an id, how the gateway is.")
    status.add_argument("prompt_id", metavar="PROMPT_ID", type=_prompt_id, nargs="?")
    status.add_argument("--output", metavar="DIR", type=Path, help="save the files, when it is done")
    status.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=_STATUS_TIMEOUT_S, help="wait so long for its end"
    )

    cancel = command("cancel", _cancel, "Take a prompt out of the queue, or interrupt it.")
    cancel.add_argument("prompt_id", metavar="PROMPT_ID", type=_prompt_id)

    command("health", _health, "Tell whether the gateway and a ComfyUI behind it answer.")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _prompt_id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no UUID") from None


async def _command(options: argparse.Namespace) -> _Answer:
    try:
        gateway = GatewayClient(options.server, options.api_key)
    except ValueError as error:
        raise UsageError(f"--server: {error}") from error
    async with gateway:
        answer: _Answer = await options.function(gateway, options)
    return answer


async def _run(gateway: GatewayClient, options: argparse.Namespace) -> _Answer:
    workflow, images = await asyncio.to_thread(_prepared, options)
    prompt_id = options.prompt_id or str(uuid.uuid4())
    _STDERR.print(f"prompt {prompt_id}", style="dim")
    began = time.monotonic()
    try:
        with _Display(_STDERR) as display:
            events = gateway.stream(workflow, images=images, timeout_s=options.timeout, prompt_id=prompt_id)
            result = await result_of(events, display.show)
    except asyncio.CancelledError:
        return await _interrupted(gateway, prompt_id)
    return await _saved(gateway, result, options.output, workflow=workflow, began=began)


def _prepared(options: argparse.Namespace) -> tuple[dict[str, Any], list[InputFile]]:
    """All that can be found wrong before anything is sent. Raises UsageError."""
    workflow = with_changes(read_workflow(options.workflow), options.set)
    images = [input_file(text) for text in options.input]
    _check_writable(options.output)
    return workflow, images


async def _interrupted(gateway: GatewayClient, prompt_id: str) -> _Answer:
    """After Ctrl-C: takes the prompt back, for a short while; a second Ctrl-C ends that too."""
    detail = "Ctrl-C; the prompt was cancelled"
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await gateway.cancel(prompt_id)
    except GatewayRefusedError:
        detail = "Ctrl-C; the prompt does not run any more"
    except (GatewayError, TimeoutError) as failed:
        reason = str(failed) or "no answer"
        detail = f"Ctrl-C; the prompt could not be cancelled and may go on: {reason}"
    return _failure(
        Exit.INTERRUPTED, GatewayError(detail, title="Interrupted", code="interrupted", prompt_id=prompt_id)
    )


async def _saved(
    gateway: GatewayClient,
    result: PromptResult,
    folder: Path,
    *,
    workflow: Mapping[str, Any] | None = None,
    began: float | None = None,
) -> _Answer:
    """Saves every file that can be; one that cannot is reported and does not stop the others."""
    saved: list[dict[str, Any]] = []
    for file, entry in zip(result.files, result.body["images"], strict=True):
        shown = {key: value for key, value in entry.items() if key != "base64"}
        try:
            path = await gateway.save(file, folder)
        except (GatewayError, OSError) as error:
            shown["error"] = str(error)
        else:
            shown |= {"path": str(path), "size": (await asyncio.to_thread(path.stat)).st_size}
        saved.append(shown)
    for node, messages in result.node_errors.items():
        _STDERR.print(Text(_plain(f"left out by ComfyUI: node {node}: {'; '.join(messages)}"), style="yellow"))
    report: list[RenderableType] = [_table(saved, workflow or {})] if saved else ["The workflow saved no file."]
    timings = result.timings
    parts = f"staging {timings.staging_s:.2f}, queued {timings.queued_s:.2f}, executing {timings.executing_s:.2f}"
    total = "" if began is None else f"{time.monotonic() - began:.2f} s in all; in the gateway: "
    report.append(f"{total}{parts}, collecting {timings.collecting_s:.2f} s")
    failed = sum("error" in entry for entry in saved)
    if failed:
        _STDERR.print(f"{failed} of {len(saved)} files could not be saved", style="red")
    return _Answer(Exit.FAILED if failed else Exit.OK, {**result.body, "images": saved}, report)


def _table(saved: Sequence[Mapping[str, Any]], workflow: Mapping[str, Any]) -> Table:
    table = Table("file", "node", "size", "type")
    for entry in saved:
        node = f"{entry['node_id']} {node_title(workflow.get(entry['node_id']))}".strip()
        if "error" in entry:
            name, size = Text(_plain(f"{entry['filename']}: {entry['error']}"), style="red", overflow="fold"), "-"
        else:
            name, size = Text(_plain(entry["path"]), overflow="fold"), rich.filesize.decimal(entry["size"])
        table.add_row(name, Text(_plain(node)), size, Text(_plain(entry["content_type"])))
    return table


async def _status(gateway: GatewayClient, options: argparse.Namespace) -> _Answer:
    if options.prompt_id is None:
        return await _health(gateway, options)
    state: dict[str, Any] = {"prompt_id": options.prompt_id, "status": "waiting"}
    try:
        async with aclosing(gateway.follow(options.prompt_id, timeout_s=options.timeout)) as events:
            async for event in events:
                match event:
                    case Queued(position=position):
                        state |= {"status": "queued", "position": position}
                    case Executing(node=node, title=title):
                        state |= {"status": "executing", "node": node, "title": title}
                    case Progress(overall=overall):
                        state["overall"] = overall
                    case Finished(result=result):
                        return await _done(gateway, result, options)
                    case Preview() | Reconnecting():
                        pass
    except GatewayTimeoutError:
        told = "queued or executing" if state["status"] == "waiting" else state["status"]
        more = [_plain(f"{name} {value}") for name, value in state.items() if name not in {"prompt_id", "status"}]
        return _Answer(Exit.OK, state, [Text("  ".join([told, *more]))])
    raise AssertionError("a wait ends with a result or an error")


async def _done(gateway: GatewayClient, result: PromptResult, options: argparse.Namespace) -> _Answer:
    if options.output is not None:
        return await _saved(gateway, result, options.output)
    report = [Text(f"{_plain(result.status)} after {result.execution_time_s:.2f} s, {len(result.files)} files")]
    report += [Text(_plain(f"  {file.url}")) for file in result.files]
    return _Answer(Exit.OK, result.body, report)


async def _cancel(gateway: GatewayClient, options: argparse.Namespace) -> _Answer:
    document = await gateway.cancel(options.prompt_id)
    return _Answer(Exit.OK, document, [Text(_plain(f"{document.get('status', 'cancelled')}: {options.prompt_id}"))])


async def _health(gateway: GatewayClient, _options: argparse.Namespace) -> _Answer:
    health = await gateway.health()
    report = [Text(_plain(f"{name}: {value}")) for name, value in health.body.items()]
    return _Answer(Exit.OK if health.healthy else Exit.UNREACHABLE, health.body, report)


def _check_writable(folder: Path) -> None:
    """Before a long run, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {folder}: not writable")
