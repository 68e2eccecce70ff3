"""Runs prompts: node after node, with ComfyUI's cache, messages and history.

Everything here runs on the prompt thread. The order of messages is ComfyUI's: history is written after
`execution_success` and before `executing` with node null.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from comfyui.engine.crashing import CRASHES, crash
from comfyui.engine.dynamic import expanded, is_dynamic, nested
from comfyui.engine.faults import Faults
from comfyui.engine.files import Folders
from comfyui.engine.graph import Prompt, Schedule, Signatures, is_link
from comfyui.engine.nodes.registry import NODES, Interrupted, Shown, Values
from comfyui.engine.queue import PromptQueue, QueuedPrompt
from comfyui.engine.raising import OUT_OF_MEMORY_TIPS, PromptThreadDied, is_out_of_memory, raise_injected, type_name
from comfyui.engine.websocket import Hub

_log = logging.getLogger(__name__)

# How often a sleeping node looks whether it was woken.
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class _Cached:
    values: Values
    ui: dict[str, list[Any]] | None
    meta: dict[str, Any]


@dataclass(slots=True)
class _Execution:
    """One prompt while it runs."""

    item: QueuedPrompt
    client_id: str | None
    signatures: Signatures
    messages: list[list[Any]] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    current_inputs: dict[str, list[Any]] = field(default_factory=dict)
    completed: bool = False
    wholly_cached: bool = False


class Executor:
    def __init__(
        self,
        queue: PromptQueue,
        hub: Hub,
        faults: Faults,
        folders: Folders,
        step_seconds: float,
        *,
        may_crash: bool = False,
    ) -> None:
        self.may_crash = may_crash
        self._queue = queue
        self._hub = hub
        self._faults = faults
        self._folders = folders
        self._step_seconds = step_seconds
        self._cache: dict[str, _Cached] = {}
        self._woken: set[str] = set()

    def wake(self, *prompt_ids: str) -> None:
        """See `Engine.wake`; from any thread."""
        self._woken.update(prompt_ids)

    def is_woken(self, prompt_id: str) -> bool:
        return prompt_id in self._woken

    def forget_cache(self) -> None:
        self._cache = {}

    def run(self, item: QueuedPrompt) -> None:
        """Executes and writes the history. The error of a node ends there; any other ends the thread."""
        signatures = Signatures(item.prompt, lambda node_id: self._fingerprint(item.prompt, node_id))
        execution = _Execution(item, item.extra_data.get("client_id"), signatures)
        self._message(execution, "execution_start", {})
        # Only the latest prompt's results are kept: those that this one does not use are dropped.
        keep = {signatures.of(node_id) for node_id in item.prompt}
        self._cache = {key: cached for key, cached in self._cache.items() if key in keep}
        cached_nodes = [node_id for node_id in item.prompt if self._cached(execution, node_id)]
        execution.wholly_cached = len(cached_nodes) == len(item.prompt)
        self._message(execution, "execution_cached", {"nodes": cached_nodes})
        self._run_nodes(execution)
        self._hub.executing = None
        status = {
            "status_str": "success" if execution.completed else "error",
            "completed": execution.completed,
            "messages": execution.messages,
        }
        remembered = self._queue.finish(item, {**self._results(execution), "status": status})
        if execution.client_id is not None and remembered:
            self._hub.send("executing", {"node": None, "prompt_id": item.prompt_id}, execution.client_id)

    def _run_nodes(self, execution: _Execution) -> None:
        prompt = execution.item.prompt
        schedule = Schedule(prompt, execution.item.outputs, lambda node_id: bool(self._cached(execution, node_id)))
        while schedule:
            try:
                node_id = schedule.next()
            except ValueError as error:
                self._failed(execution, schedule.any_blocked(), error)
                return
            try:
                self._run_node(execution, node_id)
            except Interrupted:
                _log.info("Processing interrupted")
                details = {"node_id": node_id, "node_type": prompt[node_id]["class_type"]}
                self._message(execution, "execution_interrupted", {**details, "executed": execution.executed})
                return
            except Exception as error:
                self._failed(execution, node_id, error)
                return
            schedule.done(node_id)
        execution.completed = True
        self._message(execution, "execution_success", {})

    def _run_node(self, execution: _Execution, node_id: str) -> None:
        cached = self._cached(execution, node_id)
        if cached is not None:
            if execution.client_id is not None:
                self._send_executed(execution, node_id, None if self._empties(execution) else cached.ui)
            self._show_progress(execution, node_id, "finished", 1, 1)
            return
        node = execution.item.prompt[node_id]
        self._show_progress(execution, node_id, "running", 0.0, 1.0)
        execution.current_inputs = {}
        if execution.client_id is not None:
            self._hub.executing = (execution.client_id, node_id)
            self._send(execution, "executing", {"node": node_id, "display_node": node_id})
        inputs = self._inputs(execution, node)
        execution.current_inputs = {name: [_loggable(value)] for name, value in inputs.items()}
        run = _Run(self, execution, node_id)
        run.check_interrupted()
        self._strike(run, node["class_type"])
        raise_injected(self._faults, node["class_type"], node_id)
        result = NODES[node["class_type"]].function(run, **inputs)
        shown = result if isinstance(result, Shown) else None
        if shown is not None and execution.client_id is not None:
            self._send_executed(execution, node_id, shown.ui)
        meta = {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
        values = result.values if isinstance(result, Shown) else result
        self._cache[execution.signatures.of(node_id)] = _Cached(values, shown.ui if shown else None, meta)
        maximum = execution.progress[node_id]["max"]
        self._show_progress(execution, node_id, "finished", maximum, maximum)
        execution.executed.append(node_id)

    def _strike(self, run: _Run, class_type: str) -> None:
        """The faults that take the node's process with them, or its thread."""
        facts = {"class_type": class_type, "node_id": run.node_id}
        for how in CRASHES:
            if (config := self._faults.take(how, "node", **facts)) is not None:
                crash(how, config)
        if (config := self._faults.take("hang", "node", **facts)) is not None:
            run.hang(config.get("seconds"))

    def _inputs(self, execution: _Execution, node: Mapping[str, Any]) -> dict[str, Any]:
        shapes = NODES[node["class_type"]].inputs(self._folders)
        declared = expanded(shapes, node["inputs"]) if is_dynamic(shapes) else shapes
        known = declared.get("required", {}).keys() | declared.get("optional", {}).keys()
        inputs: dict[str, Any] = {}
        for name, value in node["inputs"].items():
            if is_link(value):
                source = self._cached(execution, value[0])
                if source is None:
                    raise RuntimeError(f"node {value[0]} has no result")
                inputs[name] = source.values[int(value[1])]
            elif name in known:
                inputs[name] = value
        return nested(inputs, shapes) if is_dynamic(shapes) else inputs

    def _cached(self, execution: _Execution, node_id: str) -> _Cached | None:
        return self._cache.get(execution.signatures.of(node_id))

    def _empties(self, execution: _Execution) -> bool:
        return execution.wholly_cached and self._faults.is_on("cached_empty")

    def _fingerprint(self, prompt: Prompt, node_id: str) -> str:
        node = prompt[node_id]
        fingerprint = NODES[node["class_type"]].fingerprint
        if fingerprint is None:
            return ""
        constants = {name: value for name, value in node["inputs"].items() if not is_link(value)}
        try:
            return fingerprint(self._folders, **constants)
        except Exception as error:  # ComfyUI then never takes the node for unchanged
            _log.warning("WARNING: %s", error)
            return f"never-{time.monotonic_ns()}"

    def _results(self, execution: _Execution) -> dict[str, Any]:
        """The history's `outputs` and `meta`: of every node of the prompt that shows something, cached ones too."""
        if execution.wholly_cached and self._faults.take("cached_empty") is not None:
            return {"outputs": {}, "meta": {}}
        shown = {node_id: self._cached(execution, node_id) for node_id in execution.item.prompt}
        shown = {node_id: cached for node_id, cached in shown.items() if cached is not None and cached.ui is not None}
        return {
            "outputs": {node_id: cached.ui for node_id, cached in shown.items() if cached},
            "meta": {node_id: cached.meta for node_id, cached in shown.items() if cached},
        }

    def _failed(self, execution: _Execution, node_id: str, error: Exception) -> None:
        _log.error("!!! Exception during processing !!! %s", error)
        tips = OUT_OF_MEMORY_TIPS if is_out_of_memory(error) else ""
        self._message(
            execution,
            "execution_error",
            {
                "node_id": node_id,
                "node_type": execution.item.prompt[node_id]["class_type"],
                "executed": execution.executed,
                "exception_message": f"{error}\n{tips}",
                "exception_type": type_name(error),
                "traceback": traceback.format_tb(error.__traceback__),
                "current_inputs": execution.current_inputs,
                "current_outputs": list(execution.item.prompt),
            },
        )

    def _message(self, execution: _Execution, event: str, data: dict[str, Any]) -> None:
        """A message for the history and the submitter; an interruption goes to everyone if there is no submitter."""
        data = {"prompt_id": execution.item.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        execution.messages.append([event, data])
        if execution.client_id is not None or event == "execution_interrupted":
            self._send(execution, event, data)

    def _send(self, execution: _Execution, event: str, data: dict[str, Any]) -> None:
        # A prompt that `forget` dropped is silent: after a restart, its events would not be sent.
        if self._queue.is_running(execution.item):
            self._hub.send(event, {**data, "prompt_id": execution.item.prompt_id}, execution.client_id)

    def _send_executed(self, execution: _Execution, node_id: str, output: dict[str, list[Any]] | None) -> None:
        self._send(execution, "executed", {"node": node_id, "display_node": node_id, "output": output})

    def _show_progress(self, execution: _Execution, node_id: str, state: str, value: float, maximum: float) -> None:
        execution.progress[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": execution.item.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        self._send(execution, "progress_state", {"nodes": execution.progress})

    def step(
        self, execution: _Execution, node_id: str, value: int, maximum: int, preview: tuple[Image.Image, str] | None
    ) -> None:
        """Progress within a node, in ComfyUI's order of messages."""
        self._show_progress(execution, node_id, "running", value, maximum)
        told = {"value": value, "max": maximum, "node": node_id}
        if preview is None:
            self._send(execution, "progress", told)
            return
        metadata = {
            "node_id": node_id,
            "prompt_id": execution.item.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        # A picture with metadata is told with the state of the nodes, and one without behind the progress.
        is_first = self._hub.wants_preview_metadata(execution.client_id)
        if is_first:
            self._hub.send_preview(*preview, metadata, execution.client_id)
        self._send(execution, "progress", told)
        if not is_first:
            self._hub.send_preview(*preview, metadata, execution.client_id)

    @property
    def folders(self) -> Folders:
        return self._folders

    @property
    def step_seconds(self) -> float:
        return self._step_seconds

    @property
    def interrupted(self) -> threading.Event:
        return self._queue.interrupted

    @property
    def closing(self) -> threading.Event:
        return self._queue.closing


class _Run:
    """`nodes.NodeRun` for one node of one prompt."""

    def __init__(self, executor: Executor, execution: _Execution, node_id: str) -> None:
        self._executor = executor
        self._execution = execution
        self.node_id = node_id
        self.prompt: Mapping[str, Any] = execution.item.prompt
        self.extra_pnginfo: Mapping[str, Any] | None = execution.item.extra_data.get("extra_pnginfo")
        self.folders = executor.folders
        self.step_seconds = executor.step_seconds

    def check_interrupted(self) -> None:
        if self._executor.interrupted.is_set():
            raise Interrupted

    def progress(
        self, value: int, maximum: int, preview: Image.Image | None = None, image_format: str = "JPEG"
    ) -> None:
        self.check_interrupted()
        shown = None if preview is None else (preview, image_format)
        self._executor.step(self._execution, self.node_id, value, maximum, shown)

    def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.check_interrupted()
        while (left := until - time.monotonic()) > 0 and not self._executor.is_woken(self._execution.item.prompt_id):
            if self._executor.interrupted.wait(min(left, _LOOK_S)):
                raise Interrupted

    def crash(self, how: str) -> None:
        if not self._executor.may_crash:
            raise RuntimeError("this engine must not end its process, because it shares it with others")
        crash(how, {})

    def hang(self, seconds: float | None = None) -> None:
        self._executor.closing.wait(seconds)


def _loggable(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


class PromptThread(threading.Thread):
    """Takes one prompt after the other out of the queue until it is closed.

    Like ComfyUI's thread, it dies of an exception that no node raised. A fault that validation misses is enough: a node
    without `inputs` that feeds no output, an undeclared input that links to no node. HTTP still answers, and the prompt
    stays the running one. A prompt that is nested too deeply to be copied ends it, too.
    """

    def __init__(
        self, queue: PromptQueue, executor: Executor, on_start: Callable[[str], None], on_free: Callable[[], None]
    ) -> None:
        super().__init__(name="prompt-thread", daemon=True)
        self._queue = queue
        self._executor = executor
        self._on_start = on_start
        self._on_free = on_free

    def run(self) -> None:
        while not self._queue.is_closed:
            try:
                item = self._queue.get()
                if item is not None:
                    self._on_start(item.prompt_id)
                    started = time.perf_counter()
                    self._executor.run(item)
                    _log.info("Prompt executed in %.2f seconds", time.perf_counter() - started)
            except (Exception, PromptThreadDied):
                _log.exception("the prompt thread died")
                return
            free = self._queue.take_free_request()
            if free:
                self._on_free()
            if free.get("free_memory"):
                self._executor.forget_cache()
