"""The end of a command: its exit code, and its output for scripts and people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from comfyui.sdk.display import STDERR, plain
from comfyui.sdk.errors import (
    GatewayCancelledError,
    GatewayConnectionError,
    GatewayError,
    GatewayNotFinishedError,
    GatewayOverloadedError,
    GatewayRefusedError,
    GatewayTaskError,
    GatewayTimeoutError,
)


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
    NOT_FINISHED = 8
    CANCELLED = 9
    UNKNOWN = 10
    INTERRUPTED = 130


EXIT_CODES = f"""\
exit codes:
  {Exit.OK:<4} done
  {Exit.UNEXPECTED:<4} something unexpected, such as an answer from a server that is not the gateway
  {Exit.USAGE:<4} the command line is wrong: an option, the workflow's file, an input or a --set
  {Exit.REFUSED:<4} the gateway refused the request (HTTP 400, 401, 403, 404, 409, 413, 422); nothing runs
  {Exit.FAILED:<4} the prompt failed or was cancelled (500, 502, 409), or some files could not be saved
  {Exit.TIMED_OUT:<4} the prompt did not finish within --timeout (504)
  {Exit.UNREACHABLE:<4} no gateway answers, or the gateway has no ComfyUI (no connection, 503)
  {Exit.OVERLOADED:<4} the gateway is at its limit; try again later (429)
  {Exit.NOT_FINISHED:<4} `result`: the job has not ended
  {Exit.CANCELLED:<4} `wait`, `result`, `submit --wait`: the job was cancelled (other commands: 4)
  {Exit.UNKNOWN:<4} `wait`, `result`: the gateway does not know the job (other commands: 3)
  {Exit.INTERRUPTED:<4} Ctrl-C was pressed; only `run` then cancels its prompt

With --json, standard output is one JSON document, also for errors ("error", "type", "detail", …); progress and
messages are on standard error.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a command: for scripts, for people, and for `$?`."""

    exit: Exit
    document: Mapping[str, Any]
    report: Sequence[RenderableType]


_EXIT_OF: Mapping[type[GatewayError], Exit] = {
    GatewayRefusedError: Exit.REFUSED,
    GatewayTaskError: Exit.FAILED,
    GatewayCancelledError: Exit.FAILED,
    GatewayTimeoutError: Exit.TIMED_OUT,
    GatewayConnectionError: Exit.UNREACHABLE,
    GatewayOverloadedError: Exit.OVERLOADED,
    GatewayNotFinishedError: Exit.NOT_FINISHED,
}

_WHAT_TO_DO: Mapping[str, str] = {
    "unauthorized": "set COMFYUI_GATEWAY_API_KEY to your key",
    "unreachable": "start the gateway, or name its address with --server",
}
"""What helps a person at the command line, by the type of the error."""


def exit_of(error: GatewayError) -> Exit:
    """The exit code of an error, whatever it is about."""
    return _EXIT_OF.get(type(error), Exit.UNEXPECTED)


def exit_of_job(error: GatewayError) -> Exit:
    """The exit code of a command that tells apart how a job ended, and whether there is one."""
    if error.job_status is not None:
        return Exit.CANCELLED if error.job_status == "canceled" else Exit.FAILED
    return Exit.UNKNOWN if error.type == "not_found" else exit_of(error)


def failure(exit_code: Exit, error: GatewayError) -> Outcome:
    """Tells a person on standard error at once; the document is left for standard output."""
    STDERR.print(Text(f"{plain(error.title)}: {plain(error.detail)}", style="red"))
    for node, messages in error.node_errors.items():
        for message in messages:
            STDERR.print(Text(plain(f"  node {node}: {message}")))
    if advice := _WHAT_TO_DO.get(error.type):
        STDERR.print(advice)
    if error.retry_after_s is not None:
        STDERR.print(f"try again in {error.retry_after_s:g} s")
    ids = {"prompt_id": error.prompt_id, "request_id": error.request_id}
    known = "  ".join(f"{name} {plain(value)}" for name, value in ids.items() if value)
    if known:
        STDERR.print(Text(known, style="dim"))
    return Outcome(exit_code, error.to_json(), ())
