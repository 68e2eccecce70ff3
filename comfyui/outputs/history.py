"""Makes files of a history entry, and base64 of files. Failures raise; plain functions, no state."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from comfyui import jsonio
from comfyui.answer_json import AnswerHead, AnswerTail, ConversionNote, FileEntry, FileFacts, HeadWithoutOutputs
from comfyui.exceptions import ComfyUIError, ComfyUITaskCancelledError, ComfyUITaskError
from comfyui.json_pieces import is_large, pieces
from comfyui.merged_files import merged_outputs
from comfyui.models import OutputFile, PromptResult
from comfyui.offload import in_thread
from comfyui.outputs.base64_pieces import Base64Pieces
from comfyui.replies import HistoryEntry
from comfyui.transport.body import OpenBody
from comfyui.workflows.api_format import node_order

_TRACEBACK_LINES = 6
# A path of the server, of which a client sees the last part only.
_SERVER_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+([\w.@+-]+)")
# No time in milliseconds lies beyond it, and NaN is not below it.
_LAST_TIMESTAMP = 1e15
_PATH = re.compile(r'File "([^"]+)"')


@dataclass(frozen=True, slots=True)
class OutputContent:
    """A file as the client gets it, which may differ from ComfyUI's: `comfyui.outputs.images` converts.

    Attributes:
        notes: further members of its entry in ``images``.
    """

    filename: str
    content_type: str
    body: OpenBody
    notes: ConversionNote = field(default_factory=ConversionNote)

    def facts(self) -> FileFacts:
        """The facts in its entry of ``images``."""
        return {"filename": self.filename, "content_type": self.content_type, **self.notes}


OpenFile = Callable[[OutputFile], AbstractAsyncContextManager[OutputContent]]


def files_of(outputs: Mapping[str, Any]) -> tuple[OutputFile, ...]:
    """Every file of every node: any dict with a ``filename``, under whatever key a node lists it (trap 16)."""
    return tuple(
        OutputFile(
            node_id,
            key,
            item["filename"],
            str(item.get("subfolder") or ""),
            str(item.get("type") or "output"),
        )
        for node_id in node_order(outputs)
        if isinstance(outputs[node_id], dict)
        for key, items in outputs[node_id].items()
        if isinstance(items, list)
        for item in items
        if isinstance(item, dict) and isinstance(item.get("filename"), str) and item["filename"]
    )


def raise_if_failed(entry: HistoryEntry, prompt_id: str) -> None:
    """Look at the messages before ``status_str``: it is "error" for an interrupted prompt, too (trap 7).

    Raises:
        ComfyUITaskCancelledError: it was interrupted.
        ComfyUITaskError: a node raised.
    """
    kinds = dict(entry.messages)
    if "execution_interrupted" in kinds:
        where = _where(kinds["execution_interrupted"])
        raise ComfyUITaskCancelledError(f"interrupted{f' at {where}' if where else ''}", prompt_id=prompt_id)
    if "execution_error" in kinds:
        raise _task_error(kinds["execution_error"], prompt_id)
    if entry.status_str == "error":
        raise ComfyUITaskError("ComfyUI reported an error without saying where", prompt_id=prompt_id)


def _task_error(data: Mapping[str, Any], prompt_id: str) -> ComfyUITaskError:
    exception_type = str(data.get("exception_type") or "Exception")
    message = str(data.get("exception_message") or "").strip()
    where = _where(data)
    message = _SERVER_PATH.sub(r"\1", message)
    said = f"{exception_type}: {message}" if message else exception_type
    node_id, node_type = (None if data.get(name) is None else str(data[name]) for name in ("node_id", "node_type"))
    return ComfyUITaskError(
        f"{where}: {said}" if where else said,
        prompt_id=prompt_id,
        node_errors=None if node_id is None else {node_id: [said]},
        node_id=node_id,
        node_type=node_type,
        exception_type=exception_type,
        traceback_tail=_tail(data.get("traceback")),
    )


def _where(data: Mapping[str, Any]) -> str:
    node_id, node_type = data.get("node_id"), data.get("node_type")
    return f"{node_type or 'node'} (node {node_id})" if node_id is not None else ""


def _tail(traceback: Any) -> list[str]:
    text = "".join(str(part) for part in traceback) if isinstance(traceback, list) else ""
    lines = text.splitlines()[-_TRACEBACK_LINES:]
    return [_named(line) for line in lines]


def _named(text: str) -> str:
    """A piece of a traceback, with names instead of paths."""
    return _PATH.sub(lambda match: f'File "{PurePath(match[1]).name}"', text)


def without_paths(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data of a message, with names of files instead of paths of the server."""
    shown = dict(data)
    if isinstance(message := data.get("exception_message"), str):
        shown["exception_message"] = _SERVER_PATH.sub(r"\1", message)
    if isinstance(traceback := data.get("traceback"), list):
        shown["traceback"] = [_named(str(part)) for part in traceback]
    return shown


def executing_s(entry: HistoryEntry) -> float:
    """Seconds between start and end of the execution by ComfyUI's own clock; 0.0 when it does not say."""
    times = [
        time
        for _, data in entry.messages
        if isinstance(time := data.get("timestamp"), int | float) and abs(time) <= _LAST_TIMESTAMP
    ]
    return max(0.0, (times[-1] - times[0]) / 1000) if len(times) > 1 else 0.0


def cached_nodes(messages: Iterable[tuple[str, Mapping[str, Any]]]) -> frozenset[str]:
    """The nodes that ComfyUI did not run but served from its cache, by the messages of its history."""
    for kind, data in messages:
        if kind == "execution_cached":
            nodes = data.get("nodes")
            return frozenset(filter(_is_text, nodes if isinstance(nodes, list) else ()))
    return frozenset()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


async def _head(result: PromptResult, *, with_outputs: bool, merged: bool) -> AsyncGenerator[bytes, None]:
    """All before ``images``."""
    if not with_outputs:
        short: HeadWithoutOutputs = {"prompt_id": result.prompt_id, "status": "success", "outputs_omitted": True}
        yield jsonio.dumps(short)[:-1]
        return
    outputs, large = result.shown_outputs, is_large(result.outputs)
    if merged:
        made = functools.partial(merged_outputs, result.prompt_id, outputs)
        outputs = await in_thread(made) if large else made()
    head: AnswerHead = {"prompt_id": result.prompt_id, "status": "success", "outputs": outputs}
    if not large:
        yield jsonio.dumps(head)[:-1]
        return
    lead = jsonio.dumps({**head, "outputs": {}})[: -len(b"{}}")]
    for piece in pieces(outputs):
        yield lead + piece
        lead = b""
        await asyncio.sleep(0)


async def result_json(
    result: PromptResult,
    entries: Sequence[FileEntry],
    *,
    open_file: OpenFile | None = None,
    with_outputs: bool = True,
    merged: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[bytes, None]:
    """The body of a `/prompt_sync` answer in pieces. With `open_file`, each file's base64 streams through it.

    A file that cannot be read has ``error`` instead of ``base64``, and the others still come. A large one that breaks
    off after its first piece breaks the body off, too (`ComfyUIConnectionError`): the sent bytes cannot be taken back,
    and every client notices a body that ends early.

    Args:
        entries: what ``images`` says of each file of `result`, in the same order.
        with_outputs: False leaves them out, and says so.
        merged: whether files in them are named by the prompt: see `comfyui.merged_files`.
    """
    started = clock()
    async for piece in _head(result, with_outputs=with_outputs, merged=merged):
        yield piece
    yield b',"images":['
    for index, (file, entry) in enumerate(zip(result.files, entries, strict=True)):
        if index:
            yield b","
        if open_file is None:
            yield jsonio.dumps(entry)
            continue
        begun = False
        try:
            async with open_file(file) as content:
                text = Base64Pieces()
                opening = jsonio.dumps({**entry, **content.facts()})[:-1] + b',"base64":"'
                async for chunk in content.body:
                    if piece := text.feed(chunk):
                        yield opening + piece
                        opening, begun = b"", True
                yield opening + text.end() + b'"}'
        except ComfyUIError as error:
            if begun:
                raise
            yield jsonio.dumps({**entry, "error": error.detail})
    timings = replace(result.timings, collecting_s=result.timings.collecting_s + clock() - started)
    tail: AnswerTail = {
        "execution_time": round(timings.total_s, 4),
        "node_errors": result.node_errors,
        "timings": timings.to_json(),
    }
    if result.call is not None:
        tail["workflow"] = result.call.to_json()
    if result.simulated:
        tail["simulation"] = True
    yield b"]," + jsonio.dumps(tail)[1:]
