"""supervisord's event listener: ends the container when a program keeps failing, and restarts a broken ComfyUI.

supervisord gives up a program (FATAL) and continues with the others, so an orchestrator would see a running container.
This listener therefore leaves a mark for deploy/init.sh and stops supervisord, which drains what still runs. A program
that lives longer than ``startsecs`` before each crash never becomes FATAL; the listener gives it up after some crashes.

It uses only the standard library and supervisor's protocol, because it must work when everything else is broken.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, TextIO

_HEALTH_TIMEOUT_S = 3.0

Clock = Callable[[], float]


def parse_tokens(line: str) -> dict[str, str]:
    """Parses ``key:value key:value`` in supervisor's headers and payloads."""
    return dict(token.split(":", 1) for token in line.split())


@dataclass
class CrashCount:
    """Counts crashes; a program crashes too often if it does so more than `most` times within `window_s`."""

    most: int
    window_s: float
    clock: Clock = time.monotonic
    _crashes: dict[str, deque[float]] = field(default_factory=dict)

    def crashed(self, program: str) -> bool:
        now = self.clock()
        times = self._crashes.setdefault(program, deque())
        times.append(now)
        while now - times[0] > self.window_s:
            times.popleft()
        return len(times) > self.most


@dataclass
class BrokenWatch:
    """Finds a ComfyUI that was broken (it answers but runs no prompts) for `patience_s` without interruption."""

    patience_s: float
    clock: Clock = time.monotonic
    _since: float | None = None

    def seen(self, health: Mapping[str, Any] | None) -> bool:
        """Whether to restart ComfyUI now. `health` is the body of the gateway's ``/health``, or None without one."""
        if health is None or not any(server.get("state") == "broken" for server in health.get("servers", ())):
            self._since = None
            return False
        now = self.clock()
        self._since = now if self._since is None else self._since
        if now - self._since < self.patience_s:
            return False
        self._since = None
        return True


class Listener:
    """Reads events from supervisord and answers each one until supervisord closes the pipe."""

    def __init__(self, environ: Mapping[str, str], events: TextIO, replies: TextIO, log: TextIO) -> None:
        self._environ = environ
        self._events = events
        self._replies = replies
        self._log = log
        self._mark = Path(environ["RUN_DIR"]) / "failed"
        self._crashes = CrashCount(int(environ.get("MAX_CRASHES", "5")), float(environ.get("CRASH_WINDOW", "600")))
        self._broken = BrokenWatch(float(environ.get("RESTART_BROKEN_AFTER", "30")))
        # It must not restart a ComfyUI that another program runs.
        self._watches_comfyui = environ.get("WORKER") == "gateway" and environ.get("START_COMFYUI") == "true"

    def run(self) -> None:
        while True:
            self._reply("READY\n")
            header = self._events.readline()
            if not header:
                return
            tokens = parse_tokens(header)
            payload = self._events.read(int(tokens["len"]))
            self._handle(tokens["eventname"], payload)
            self._reply("RESULT 2\nOK")

    def _reply(self, text: str) -> None:
        self._replies.write(text)
        self._replies.flush()

    def _say(self, text: str) -> None:
        self._log.write(f"events | {text}\n")
        self._log.flush()

    def _handle(self, event: str, payload: str) -> None:
        if event.startswith("TICK"):
            self._look_at_comfyui()
            return
        program = parse_tokens(payload)
        name = program["processname"]
        if event == "PROCESS_STATE_FATAL":
            self._give_up(f"{name} cannot be started")
        elif event == "PROCESS_STATE_EXITED":
            self._say(f"{name} ended unexpectedly and is started again")
            if self._crashes.crashed(name):
                self._give_up(f"{name} ended more than {self._crashes.most} times in {self._crashes.window_s:g} s")

    def _give_up(self, reason: str) -> None:
        if self._mark.exists():
            return
        self._say(f"{reason}: stopping the container")
        self._mark.write_text(reason, encoding="utf-8")
        os.kill(os.getppid(), signal.SIGTERM)

    def _look_at_comfyui(self) -> None:
        if self._watches_comfyui and self._broken.seen(self._health()):
            self._say("comfyui answers but runs no prompts; it is restarted")
            self._restart("comfyui")

    def _health(self) -> dict[str, Any] | None:
        """The body of the gateway's ``/health``; in the cases of interest the status is 503."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _AnyStatus())
        url = f"http://127.0.0.1:{self._environ.get('SERVER_PORT', '18188')}/health"
        try:
            with opener.open(url, timeout=_HEALTH_TIMEOUT_S) as reply:
                body = json.load(reply)
        except (OSError, ValueError):
            return None
        return body if isinstance(body, dict) else None

    def _restart(self, program: str) -> None:
        from xmlrpc.client import Fault

        from supervisor.childutils import getRPCInterface  # type: ignore[import-untyped]

        supervisor = getRPCInterface(self._environ).supervisor
        try:
            supervisor.stopProcess(program)
            supervisor.startProcess(program, False)
        except (Fault, OSError) as error:
            self._say(f"{program} was not restarted: {error}")


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Returns every answer, because urllib raises an exception for 503 by default."""

    def http_response(self, _request: urllib.request.Request, response: HTTPResponse) -> HTTPResponse:
        return response


if __name__ == "__main__":
    Listener(os.environ, sys.stdin, sys.stdout, sys.stderr).run()
