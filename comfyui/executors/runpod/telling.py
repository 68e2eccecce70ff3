"""Reports a job at RunPod in ComfyUI's events and order, and makes its history.

RunPod has only a status and the worker's reports. The order is ComfyUI's: `execution_success` comes before the history
is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from comfyui.models import Told
from comfyui.workflows.api_format import needed_by

Tell = Callable[[str, Mapping[str, Any]], None]
"""Gets the type and the data of each message."""


class Telling:
    """The reports about one job."""

    def __init__(self, prompt_id: str, prompt: Mapping[str, Any], tell: Tell) -> None:
        self._prompt_id = prompt_id
        self._prompt = prompt
        self._tell = tell
        self._messages: list[tuple[str, Mapping[str, Any]]] = []
        self._node: str | None = None
        self._seen: dict[str, dict[str, Any]] = {}

    def started(self, execution_ms: float | None = None) -> None:
        """A worker has had it for this time. A second call has no effect."""
        if not self._messages:
            self._message("execution_start", {}, _now_ms() - int(execution_ms or 0))
            self._message("execution_cached", {"nodes": []})

    def progressed(self, report: Any) -> None:
        """A report of our worker, as `comfyui.workers.progress` writes it; anything else only means that it runs."""
        self.started()
        node_id = report.get("node_id") if isinstance(report, dict) else None
        if not isinstance(node_id, str) or node_id not in self._prompt:
            return
        value, maximum = _number(report.get("value")), _number(report.get("max"))
        if node_id != self._node:
            if self._node in self._seen:
                self._seen[self._node]["state"] = "finished"
            self._node = node_id
            # The nodes on which a running node depends have run, even if unseen.
            for done in needed_by(self._prompt, node_id) - self._seen.keys() - {node_id}:
                self._seen[done] = self._state(done, "finished", 1.0, 1.0)
            self._send("executing", {"node": node_id, "display_node": node_id})
        state = self._state(node_id, "running", value, maximum or 1.0)
        if self._seen.get(node_id) == state:
            return
        self._seen[node_id] = state
        self._send("progress_state", {"nodes": {name: dict(one) for name, one in self._seen.items()}})
        if maximum:
            self._send("progress", {"value": value, "max": maximum, "node": node_id})

    def succeeded(self, outputs: Mapping[str, Any], execution_ms: float | None) -> None:
        """It has these outputs, and took this time by RunPod's own figure."""
        self.started(execution_ms)
        if execution_ms is not None:
            # The job's state is known only when we look.
            began = _now_ms() - int(execution_ms)
            self._messages = [(kind, {**data, "timestamp": began}) for kind, data in self._messages]
        for node_id, output in outputs.items():
            self._send("executed", {"node": node_id, "display_node": node_id, "output": output})
        self._message("execution_success", {})

    def failed(self, message: str, exception_type: str, node_id: str | None, traceback: list[str]) -> None:
        """It ended with this error, of this node if one raised."""
        self.started()
        details = {"exception_message": message, "exception_type": exception_type, "traceback": traceback}
        self._message(
            "execution_error", {**self._where(node_id), **details, "current_inputs": {}, "current_outputs": []}
        )

    def interrupted(self, *, tell: bool = True) -> None:
        """It was cancelled. Without `tell`, only the history gets it."""
        self.started()
        self._message("execution_interrupted", self._where(self._node), tell=tell)

    def told(self, outputs: Mapping[str, Any]) -> Told:
        """The messages for the history."""
        meta = {
            node_id: {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
            for node_id in outputs
        }
        return Told(list(self._messages), meta)

    @property
    def executing_s(self) -> float:
        """Seconds between start and end."""
        first, last = self._messages[0][1]["timestamp"], self._messages[-1][1]["timestamp"]
        return max(0.0, float(last - first) / 1000)

    def _where(self, node_id: str | None) -> dict[str, Any]:
        node = self._prompt.get(node_id) if node_id else None
        executed = {name for name, state in self._seen.items() if state["state"] == "finished"}
        if node_id is not None and node is not None:
            executed |= needed_by(self._prompt, node_id) - {node_id}
        return {
            "node_id": node_id,
            "node_type": node.get("class_type") if isinstance(node, Mapping) else None,
            "executed": [name for name in self._prompt if name in executed],
        }

    def _message(self, kind: str, data: Mapping[str, Any], timestamp: int | None = None, *, tell: bool = True) -> None:
        """A message that the history keeps."""
        whole = {"prompt_id": self._prompt_id, **data, "timestamp": timestamp or _now_ms()}
        self._messages.append((kind, whole))
        if tell:
            self._tell(kind, whole)

    def _send(self, kind: str, data: Mapping[str, Any]) -> None:
        self._tell(kind, {**data, "prompt_id": self._prompt_id})

    def _state(self, node_id: str, state: str, value: float, maximum: float) -> dict[str, Any]:
        return {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": self._prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }


def _now_ms() -> int:
    return int(time.time() * 1000)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
