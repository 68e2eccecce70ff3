"""ComfyUI's prompt queue and history, in memory.

Called from the event loop and from the prompt thread. A lookup by prompt id costs the same whatever waits.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_HISTORY = 10_000
SENSITIVE_EXTRA_DATA = ("auth_token_comfy_org", "api_key_comfy_org")


@dataclass(frozen=True, slots=True)
class QueuedPrompt:
    number: float
    prompt_id: str
    prompt: dict[str, Any]
    extra_data: dict[str, Any]
    outputs: list[str]

    def as_item(self, *, with_secrets: bool) -> list[Any]:
        """The item in `/queue` and the history; the id is element 1."""
        extra_data = self.extra_data
        if not with_secrets:
            extra_data = {key: value for key, value in extra_data.items() if key not in SENSITIVE_EXTRA_DATA}
        return [self.number, self.prompt_id, self.prompt, extra_data, self.outputs]


class PromptQueue:
    """`on_change` is called at each change of the number of prompts, with no other change meanwhile: as in ComfyUI, the
    last number that is told is the true one.

    `interrupted` is the order to stop, which the running prompt obeys; it is withdrawn when the next one starts.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.interrupted = threading.Event()
        self._on_change = on_change
        self._changed = threading.Condition(threading.RLock())
        self._order: list[tuple[float, str, int]] = []
        self._pending: dict[int, QueuedPrompt] = {}
        self._keys_by_id: dict[str, set[int]] = {}
        self._keys = itertools.count()
        self._running: QueuedPrompt | None = None
        self._history: dict[str, dict[str, Any]] = {}
        self._free_request: dict[str, bool] = {}
        self._stalled = False
        self.closing = threading.Event()

    def put(self, prompt: QueuedPrompt) -> None:
        with self._changed:
            key = next(self._keys)
            self._pending[key] = prompt
            self._keys_by_id.setdefault(prompt.prompt_id, set()).add(key)
            heapq.heappush(self._order, (prompt.number, prompt.prompt_id, key))
            self._changed.notify()
            self._on_change()

    def get(self) -> QueuedPrompt | None:
        """Blocks until a prompt may run (which `finish` must follow) or `free` was called; None: look at that.

        Raises RecursionError as ComfyUI does: the prompt is nested too deeply, and is lost.
        """
        with self._changed:
            while not self.closing.is_set() and not self._free_request and (self._stalled or not self._pending):
                self._changed.wait()
            if self.closing.is_set() or self._stalled or not self._pending:
                return None
            key = heapq.heappop(self._order)[2]
            while key not in self._pending:  # deleted while it waited
                key = heapq.heappop(self._order)[2]
            prompt = self._take(key)
            # ComfyUI puts a copy into its list of running prompts. A prompt that is nested too deeply to be copied is
            # then in no list.
            copy.deepcopy(prompt.as_item(with_secrets=True))
            self._running = prompt
            self.interrupted.clear()
            self._on_change()
        return prompt

    def finish(self, prompt: QueuedPrompt, result: dict[str, Any]) -> bool:
        """Writes the history; False where `forget` came while the prompt ran."""
        with self._changed:
            remembered = self._running is prompt
            if remembered:
                self._running = None
                if len(self._history) > MAX_HISTORY:
                    del self._history[next(iter(self._history))]
                self._history[prompt.prompt_id] = {"prompt": prompt.as_item(with_secrets=False), **result}
            self._on_change()
        return remembered

    def _take(self, key: int) -> QueuedPrompt:
        prompt = self._pending.pop(key)
        keys = self._keys_by_id[prompt.prompt_id]
        keys.discard(key)
        if not keys:
            del self._keys_by_id[prompt.prompt_id]
        return prompt

    @property
    def remaining(self) -> int:
        with self._changed:
            return len(self._pending) + (self._running is not None)

    @property
    def is_closed(self) -> bool:
        return self.closing.is_set()

    def is_running(self, prompt: QueuedPrompt) -> bool:
        return self._running is prompt

    def listed(self) -> tuple[list[QueuedPrompt], list[QueuedPrompt]]:
        """The running and the pending prompts at one moment.

        Pending prompts are in the order of ComfyUI's heap: the next one comes first, and the order of the others means
        nothing.
        """
        with self._changed:
            running = [] if self._running is None else [self._running]
            return running, [self._pending[key] for _, _, key in self._order if key in self._pending]

    def all(self) -> tuple[dict[str, dict[str, Any]], list[QueuedPrompt], list[QueuedPrompt]]:
        """The history, the running and the pending prompts at one moment."""
        with self._changed:
            return dict(self._history), *self.listed()

    def find(self, prompt_id: str) -> tuple[dict[str, Any] | None, QueuedPrompt | None, QueuedPrompt | None]:
        """One prompt at one moment: its history, and the prompt itself if it runs or is pending."""
        with self._changed:
            running = self._running if self._running is not None and self._running.prompt_id == prompt_id else None
            keys = self._keys_by_id.get(prompt_id)
            return self._history.get(prompt_id), running, self._pending[min(keys)] if keys else None

    def clear(self) -> None:
        with self._changed:
            self._order.clear()
            self._pending.clear()
            self._keys_by_id.clear()
            self._on_change()

    def delete(self, prompt_id: str) -> bool:
        """Takes one pending prompt of that id out."""
        with self._changed:
            keys = self._keys_by_id.get(prompt_id)
            if not keys:
                return False
            self._take(min(keys))
            self._on_change()
            return True

    def interrupt_if_running(self, prompt_id: str) -> bool:
        with self._changed:
            if self._running is None or self._running.prompt_id != prompt_id:
                return False
            self.interrupted.set()
            return True

    def cancel(self, prompt_id: str) -> bool:
        """Dequeues or interrupts in one step: the prompt cannot start in between."""
        with self._changed:
            return self.delete(prompt_id) or self.interrupt_if_running(prompt_id)

    def forget(self) -> None:
        """Loses everything, as a restart does; the prompt that runs is interrupted and leaves no history."""
        with self._changed:
            self._history.clear()
            if self._running is not None:
                self.interrupted.set()
                self._running = None
            self.clear()

    def entry(self, prompt_id: str) -> dict[str, Any] | None:
        return self._history.get(prompt_id)

    def history(self, max_items: int | None = None, offset: int = -1) -> dict[str, dict[str, Any]]:
        """Without an offset, the newest `max_items`, oldest first."""
        with self._changed:
            if offset < 0:
                offset = len(self._history) - max_items if max_items is not None else 0
            end = None if max_items is None else max(offset, 0) + max(max_items, 1)
            return dict(itertools.islice(self._history.items(), max(offset, 0), end))

    def clear_history(self) -> None:
        with self._changed:
            self._history.clear()

    def delete_history(self, prompt_id: str) -> None:
        with self._changed:
            self._history.pop(prompt_id, None)

    def request_free(self, *, unload_models: bool, free_memory: bool) -> None:
        with self._changed:
            for name, wanted in (("unload_models", unload_models), ("free_memory", free_memory)):
                if wanted:
                    self._free_request[name] = True
            self._changed.notify()

    def take_free_request(self) -> dict[str, bool]:
        with self._changed:
            request, self._free_request = self._free_request, {}
            return request

    def stall(self, stalled: bool) -> None:
        """While stalled nothing is handed out, as if the prompt thread had died."""
        with self._changed:
            self._stalled = stalled
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self.closing.set()
            if self._running is not None:
                self.interrupted.set()
            self._changed.notify()
