"""The command line: ``comfyui-gateway-client run|submit|list|wait|result|status|cancel|workflows|health``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast, get_args

from rich.console import Console

from comfyui.sdk import commands, named_commands
from comfyui.sdk.client import GatewayClient
from comfyui.sdk.connection import DEFAULT_SERVER
from comfyui.sdk.errors import GatewayError, JobStatus
from comfyui.sdk.outcome import EXIT_CODES, Exit, Outcome, exit_of, failure
from comfyui.sdk.workflow_files import UsageError

__all__ = ["API_KEY_VARIABLE", "Exit", "main"]

_STATUS_TIMEOUT_S = 1.0
API_KEY_VARIABLE = "COMFYUI_GATEWAY_API_KEY"


class _Parser(argparse.ArgumentParser):
    """Leaves the reporting of a wrong command line to `main`, which knows of --json."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (see `Exit`)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Wide if there is no window: a path that is cut or wrapped is of no use to grep.
    stdout = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    try:
        options = _parser().parse_args(arguments)
        answer: Outcome = asyncio.run(_command(options))
    except UsageError as error:
        answer = failure(Exit.USAGE, GatewayError(str(error), title="Usage", code="usage"))
    except GatewayError as error:
        answer = failure(exit_of(error), error)
    except KeyboardInterrupt:
        answer = failure(Exit.INTERRUPTED, GatewayError("Ctrl-C", title="Interrupted", code="interrupted"))
    if "--json" in arguments:
        print(json.dumps(answer.document, indent=2))
    else:
        for part in answer.report:
            stdout.print(part)
    return answer.exit


def _shared(server: str | None, api_key: str | None, as_json: bool | str) -> _Parser:
    """The options of all commands, with these defaults."""
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--server", metavar="URL", default=server, help=f"the gateway's URL (default: {DEFAULT_SERVER})"
    )
    shared.add_argument(
        "--api-key",
        metavar="KEY",
        default=api_key,
        help=f"the API key; better set {API_KEY_VARIABLE}, because other users can see command lines",
    )
    shared.add_argument("--json", action="store_true", default=as_json, help="print one JSON document and nothing else")
    return shared


def _parser() -> _Parser:
    # They may stand before the command or behind it. Without a default there, they keep what stood before it.
    first = _shared(DEFAULT_SERVER, os.environ.get(API_KEY_VARIABLE), as_json=False)
    shared = _shared(argparse.SUPPRESS, argparse.SUPPRESS, argparse.SUPPRESS)
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXIT_CODES}
    about = "Run ComfyUI workflows through the gateway."
    parser = _Parser(prog="client.py", parents=[first], description=about, **layout)
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function: Callable[..., Awaitable[Outcome]], summary: str) -> argparse.ArgumentParser:
        one = added.add_parser(name, parents=[shared], help=summary, description=summary, **layout)
        one.set_defaults(function=function)
        return one

    run = command("run", commands.run, "Run a workflow, wait for it, save its files.")
    _add_workflow(run)
    _add_output(run)
    run.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=300.0, help="default: %(default)g")

    submit = command("submit", commands.submit, "Submit a workflow as a job, and print only its id, without waiting.")
    _add_workflow(submit)
    submit.add_argument(
        "--label",
        metavar="KEY=VALUE",
        type=_label,
        action="append",
        default=[],
        help="a label, by which `list` finds the job; may be repeated, up to 16 times",
    )
    submit.add_argument(
        "--priority", metavar="N", type=int, default=0, help="the job's priority, from -1000000 to 1000000"
    )
    submit.add_argument(
        "--webhook",
        metavar="URL",
        help="the URL that gets a webhook when the job ends; the gateway must have WEBHOOK_SECRET",
    )
    submit.add_argument(
        "--wait",
        metavar="SECONDS",
        type=_seconds,
        default=0.0,
        help="how long to wait for the job's end before it is printed",
    )

    listing = command("list", commands.list_jobs, "List jobs, newest first.")
    listing.add_argument(
        "--status",
        metavar="STATUS",
        type=_statuses,
        default=(),
        help=f"only jobs with these statuses, separated by commas: {', '.join(get_args(JobStatus))}",
    )
    listing.add_argument(
        "--label", metavar="KEY=VALUE", type=_label, action="append", default=[], help="may be repeated"
    )
    listing.add_argument("--workflow", metavar="NAME", help="only jobs of this named workflow")
    listing.add_argument("--limit", metavar="N", type=_count, default=50, help="default: %(default)s")

    wait = command(
        "wait",
        commands.wait,
        "Wait until a job has ended, and save its files as `run` does. Lost connections and restarts of the gateway"
        " do not end the wait.",
    )
    wait.add_argument("prompt_id", metavar="PROMPT_ID", type=_prompt_id)
    _add_output(wait)
    wait.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=300.0,
        help="how long to wait; the job goes on after that; default: %(default)g",
    )

    result = command(
        "result", commands.result, "Save the files of a job that has ended. The exit code says how the job ended."
    )
    result.add_argument("prompt_id", metavar="PROMPT_ID", type=_prompt_id)
    _add_output(result)

    status = command("status", commands.status, "Show the status of a prompt; without an id, that of the gateway.")
    status.add_argument("prompt_id", metavar="PROMPT_ID", type=_prompt_id, nargs="?")
    status.add_argument("--output", metavar="DIR", type=Path, help="save the files, if the prompt has finished")
    status.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=_STATUS_TIMEOUT_S,
        help="how long to wait for the prompt's end",
    )

    cancel = command("cancel", commands.cancel, "Take a prompt out of the queue, or interrupt it.")
    cancel.add_argument("prompt_id", metavar="PROMPT_ID", type=_prompt_id)

    named = added.add_parser("workflows", parents=[shared], help="List, show and run named workflows.")
    _add_workflows(named, shared, layout)

    command("health", commands.health, "Check whether the gateway and a ComfyUI behind it answer.")
    return parser


def _add_workflows(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser, layout: dict[str, Any]) -> None:
    """The commands about named workflows."""
    added = parser.add_subparsers(dest="about", required=True, metavar="list|show|run")

    def command(name: str, function: Callable[..., Awaitable[Outcome]], summary: str) -> argparse.ArgumentParser:
        one = added.add_parser(name, parents=[shared], help=summary, description=summary, **layout)
        one.set_defaults(function=function)
        return one

    command("list", named_commands.list_workflows, "List the named workflows that this key may run.")
    shown = command(
        "show", named_commands.show, "Show the parameters of a named workflow, and what each server lacks to run it."
    )
    shown.add_argument("name", metavar="NAME")
    run = command("run", named_commands.run, "Run a named workflow, wait for it, save its files.")
    run.add_argument("name", metavar="NAME")
    run.add_argument(
        "--set",
        metavar="NAME=TEXT",
        action="append",
        default=[],
        help='set a parameter: prompt="a red fox", steps=20; NAME:=JSON for a list; may be repeated',
    )
    run.add_argument(
        "--file",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="set a parameter that is a file; may be repeated",
    )
    run.add_argument(
        "--prompt-id",
        "--id",
        metavar="UUID",
        type=_prompt_id,
        help="the id of the run; the same id again attaches to the run",
    )
    _add_output(run)
    run.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=300.0, help="default: %(default)g")


def _add_workflow(command: argparse.ArgumentParser) -> None:
    """The options of `run` and `submit` about a prompt."""
    command.add_argument(
        "workflow", metavar="WORKFLOW", help="a workflow in API format: a JSON file, or - for standard input"
    )
    command.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        action="append",
        default=[],
        help='change an input: 3.seed=7, 6.text="a red fox"; JSON if it is valid JSON, otherwise text; may be repeated',
    )
    command.add_argument(
        "--input",
        "--image",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="send a file, for nodes that load NAME, such as sub/photo.png; may be repeated",
    )
    command.add_argument(
        "--prompt-id",
        "--id",
        metavar="UUID",
        type=_prompt_id,
        help="the id of the prompt; the same id again attaches to the prompt, or returns its result",
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    """The options for the place of files."""
    command.add_argument("--output", metavar="DIR", type=Path, default=Path("out"), help="default: %(default)s/")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _prompt_id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a UUID") from None


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE, such as order=1234")
    return key, value


def _statuses(text: str) -> tuple[JobStatus, ...]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in get_args(JobStatus):
            raise argparse.ArgumentTypeError(
                f"there is no status {name!r}; the statuses are {', '.join(get_args(JobStatus))}"
            )
    return cast("tuple[JobStatus, ...]", tuple(names))


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


async def _command(options: argparse.Namespace) -> Outcome:
    try:
        gateway = GatewayClient(options.server, options.api_key)
    except ValueError as error:
        raise UsageError(f"--server: {error}") from error
    async with gateway:
        answer: Outcome = await options.function(gateway, options)
    return answer
