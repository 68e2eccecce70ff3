"""Misbehaviour on request.

Faults are named; each has a JSON object as its configuration, or a list of such objects where several are wanted at
once. They are switched on at start (`--fault name`, `--fault 'name={"times": 2}'`) or at run time:

- `POST /engine/faults` with `{name: config, …}` merges by name (`true` stands for `{}`),
- `GET /engine/faults` shows the faults that are on, `DELETE /engine/faults` switches all off.

Every configuration may have `times`: how often it strikes before it is used up (without it: until it is switched off).

On requests, each may have `route` (a shell pattern on the path without `/api`, default `*`) and `method`:

    status                        answer with `status` (500) and `body` ("") instead of doing anything
    hang                          answer nothing for `seconds` (until the engine stops), then cut
    cut                           close the connection without an answer, nothing is done
    half_json                     do it, send half of the answer, then cut
    segfault, exit                with `route` or `method`: the whole process ends instead, as below
    delay                         wait `seconds` (1), then do it
    long_answer                   do it, and send `bytes` (no end) blanks before the answer, whose length is not said
    wrong_value                   do it, and answer with another value at `path`; see below
    prompt_reply_lost_before_queue  POST /prompt: cut without an answer, nothing was queued
    prompt_reply_lost_after_queue   POST /prompt: queued, but cut without an answer

On websockets:

    ws_refuse                     the handshake is answered with `status` (503)
    ws_drop                       at once, not later: end all that are open; `abrupt`: without a close frame
    ws_flood                      at once, not later: `count` (50000) messages `text` ("{}") in one go to all that are
                                  open; `ping`: as many pings
    ws_silent                     they stay open and carry nothing, not even the first `status`
    ws_wrong_value                the message of this `type` (of every type) has another value at `path`; see below
    ws_deaf_reconnect             a reconnect under a clientId that was seen before: a first `status`, then nothing

On files; `match` is a shell pattern on the file's name (`*`):

    output_deleted                the file is deleted when it is asked for by /view: 404
    upload_renamed                an upload is stored, and answered, as `name` in `subfolder` (each: as asked)
    view_cut                      /view stops after `after_bytes` (half of the file)

On prompts:

    forget                        at once, not later: queue, running prompt, history and cache are gone, websockets
                                  drop, as after a restart; files stay
    cached_empty                  a prompt that is wholly cached ends with empty outputs
    node_error                    a node raises `exception_type` ("RuntimeError") with `message`; by `class_type` and/or
                                  `node_id`, without either the first node that runs
    out_of_memory                 the same with torch's out-of-memory error, until POST /free unloads the models
    cuda_fault                    every prompt from now on fails with an illegal memory access, whatever is freed
    prompt_thread_dead            prompts are accepted, nothing runs
    prompt_thread_dies            when the node of this `class_type` and/or `node_id` is to run, the prompt thread
                                  ends; the prompt stays the running one, and no event comes any more

`path` leads to the value by names and indexes, `"*"` is the first member of any name; without it the whole JSON is
meant. An answer without such a value stays as it is. The new one is `value`, or `text`: JSON as Python reads it, with
NaN, infinities and lone surrogates. `raw`, in place of both, is the whole text.

On the process, which must be one of its own (`python -m comfyui.engine`). With `class_type` or `node_id` they strike
that node, without either the first node that runs; with `route` or `method` a request; with `at` "start" the start, and
with `at` "validation" a submission, before the prompt is queued, when it has such a node:

    segfault                      the process ends by SIGSEGV; it writes `message` before, if there is one
    exit                          the process ends with exit status `status` (1); `message` as above
    hang                          with `class_type` or `node_id`: the node stays for `seconds` (until the engine stops)
                                  and heeds no interrupt

`--faults-file` keeps the faults, and what is left of their `times`, over a crash and the next start.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from comfyui.engine.crashing import CRASHES

Config = dict[str, Any]

INSTANT = frozenset({"ws_drop", "ws_flood", "forget"})
"""These happen when they are switched on and leave nothing on."""

NAMES = INSTANT | {
    *CRASHES,
    "status",
    "hang",
    "cut",
    "half_json",
    "delay",
    "long_answer",
    "wrong_value",
    "prompt_reply_lost_before_queue",
    "prompt_reply_lost_after_queue",
    "ws_refuse",
    "ws_silent",
    "ws_wrong_value",
    "ws_deaf_reconnect",
    "output_deleted",
    "upload_renamed",
    "view_cut",
    "cached_empty",
    "node_error",
    "out_of_memory",
    "cuda_fault",
    "prompt_thread_dead",
    "prompt_thread_dies",
}

_PATTERNS = frozenset({"route", "method", "match"})
_EXACT = frozenset({"class_type", "node_id", "type"})
_STAGED = frozenset({*CRASHES, "hang"})
"""These strike at the start, at a request, when a prompt is validated or at a node; `_stage` tells which."""


class FaultError(ValueError):
    """A fault that is unknown or badly configured; the message is for the caller."""


class Faults:
    """The faults that are on. Thread-safe: nodes ask from the prompt thread.

    Args:
        file: keeps the faults; its earlier contents count. It blocks for as long as a small file is written.
        may_crash: whether the process may be ended.
    """

    def __init__(self, file: Path | None = None, *, may_crash: bool = False) -> None:
        self._file = file
        self._may_crash = may_crash
        self._lock = threading.Lock()
        self._configs: dict[str, list[Config]] = {}
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def restore(self) -> bool:
        """Restores the faults in the file of an earlier engine; False if there is none."""
        if self._file is None or not self._file.exists():
            return False
        self.merge(json.loads(self._file.read_text(encoding="utf-8")))
        return True

    def merge(self, faults: Mapping[str, Any]) -> None:
        parsed = {name: parse_config(name, config) for name, config in faults.items()}
        if not self._may_crash and (names := sorted(parsed.keys() & set(CRASHES))):
            raise FaultError(
                f"fault {names[0]} works only in an engine with its own process (python -m comfyui.engine)"
            )
        with self._lock:
            self._configs |= {name: configs for name, configs in parsed.items() if name not in INSTANT}
            self._keep()
        self._changed()

    def clear(self) -> None:
        with self._lock:
            self._configs.clear()
            self._keep()
        self._changed()

    def switch_off(self, name: str) -> None:
        with self._lock:
            self._configs.pop(name, None)
            self._keep()
        self._changed()

    def show(self) -> dict[str, list[Config]]:
        with self._lock:
            return {name: [dict(config) for config in configs] for name, configs in self._configs.items()}

    def is_on(self, name: str) -> bool:
        return name in self._configs

    def take(self, name: str, stage: str = "request", **facts: str) -> Config | None:
        """The configuration that strikes now, counted against its `times`; None if none matches the facts.

        `stage` is what asks, "start", "request", "validation" or "node", for the faults that strike at more than one.
        """
        if name not in self._configs:
            return None
        with self._lock:
            configs = self._configs.get(name, [])
            for config in configs:
                if _matches(config, facts) and (name not in _STAGED or _stage(name, config) == stage):
                    self._count(name, configs, config)
                    return config
        return None

    def _count(self, name: str, configs: list[Config], config: Config) -> None:
        if "times" not in config:
            return
        config["times"] -= 1
        if config["times"] <= 0:
            configs.remove(config)
        if not configs:
            del self._configs[name]
        self._keep()

    def _keep(self) -> None:
        """Written before the fault strikes, which may end this process."""
        if self._file is not None:
            draft = self._file.with_name(f".{self._file.name}.draft")
            draft.write_text(json.dumps(self._configs), encoding="utf-8")
            draft.replace(self._file)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()


def parse_argument(argument: str) -> dict[str, Any]:
    """`name` or `name=<json>`, as on the command line."""
    name, _, config = argument.partition("=")
    try:
        return {name: json.loads(config) if config else {}}
    except ValueError as error:
        raise FaultError(f"fault {name}: its configuration is not JSON: {error}") from error


def parse_config(name: str, config: Any) -> list[Config]:
    """The configurations under one name, copied; FaultError if they are not well-formed."""
    if name not in NAMES:
        raise FaultError(f"there is no fault {name!r}; the faults are {', '.join(sorted(NAMES))}")
    configs = config if isinstance(config, list) else [config]
    parsed: list[Config] = []
    for one in configs:
        if one is True or one is None:
            parsed.append({})
        elif isinstance(one, dict):
            parsed.append(dict(one))
        else:
            raise FaultError(f"fault {name}: its configuration must be a JSON object, a list of them, or true")
        if not isinstance(parsed[-1].get("times", 1), int) or parsed[-1].get("times", 1) < 1:
            raise FaultError(f"fault {name}: times must be a whole number of at least 1")
    return parsed


def _stage(name: str, config: Config) -> str:
    """The stage of a fault that can strike at several."""
    if config.get("at") in {"start", "validation"}:
        return str(config["at"])
    if config.keys() & {"route", "method"}:
        return "request"
    if config.keys() & _EXACT:
        return "node"
    return "request" if name == "hang" else "node"


def with_wrong_value(config: Config, text: str) -> str:
    """The JSON text with the value of `wrong_value` or `ws_wrong_value` in its place."""
    if "raw" in config:
        return str(config["raw"])
    wrong = json.loads(config["text"]) if "text" in config else config.get("value")
    box = [json.loads(text)]
    holder: Any = box
    key: Any = 0
    try:
        for step in config.get("path", ()):
            holder = holder[key]
            key = next(iter(holder)) if step == "*" else step
        holder[key] = wrong
    except (KeyError, IndexError, TypeError, StopIteration):
        return text
    return json.dumps(box[0])


def _matches(config: Config, facts: Mapping[str, str]) -> bool:
    for key, fact in facts.items():
        wanted = config.get(key)
        if wanted is None:
            continue
        if key in _PATTERNS and not fnmatchcase(fact, str(wanted)):
            return False
        if key in _EXACT and fact != str(wanted):
            return False
    return True
