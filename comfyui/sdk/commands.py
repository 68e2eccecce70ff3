"""The commands of the command line, one function for each."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from comfyui.sdk.client import GatewayClient
from comfyui.sdk.display import STDERR, Display, file_table, job_table, plain
from comfyui.sdk.errors import GatewayError, GatewayRefusedError, GatewayTimeoutError
from comfyui.sdk.events import Event, Executing, Finished, Preview, Progress, Queued, Reconnecting
from comfyui.sdk.jobs import ListedJob
from comfyui.sdk.models import InputFile, PromptResult
from comfyui.sdk.outcome import Exit, Outcome, exit_of_job, failure
from comfyui.sdk.waiting import result_of
from comfyui.sdk.workflow_files import UsageError, input_file, read_workflow, with_changes

_CANCEL_TIMEOUT_S = 5.0


async def run(gateway: GatewayClient, options: argparse.Namespace) -> Outcome:
    workflow, images = await asyncio.to_thread(_prepared, options)
    return await run_shown(
        gateway,
        options,
        lambda prompt_id: gateway.stream(workflow, images=images, timeout_s=options.timeout, prompt_id=prompt_id),
        workflow,
    )


async def submit(gateway: GatewayClient, options: argparse.Namespace) -> Outcome:
    """Standard output is the id alone, so that a script can take it."""
    workflow, images = await asyncio.to_thread(_prepared, options)
    prompt_id = options.prompt_id or str(uuid.uuid4())
    try:
        job = await gateway.submit(
            workflow,
            images=images,
            labels=_labels(options.label),
            priority=options.priority,
            webhook=options.webhook,
            prompt_id=prompt_id,
            wait_s=options.wait,
        )
    except asyncio.CancelledError:
        return _left(prompt_id, "the gateway may have accepted the job; cancel it with its id")
    told: list[RenderableType] = [job.prompt_id]
    if job.error is not None:
        return replace(failure(exit_of_job(job.error), job.error), report=told)
    place = "" if job.position is None else f", position {job.position}"
    STDERR.print(f"{job.status}{place}", style="dim")
    if not job.stored:
        STDERR.print("the gateway has no STATE_DIR, so a restart of it forgets the job", style="yellow")
    return Outcome(Exit.OK, job.body, told)


async def list_jobs(gateway: GatewayClient, options: argparse.Namespace) -> Outcome:
    """One more is requested than is shown, to know whether there are more."""
    found: list[ListedJob] = []
    async with aclosing(
        gateway.jobs(options.status, labels=_labels(options.label), workflow=options.workflow, limit=options.limit + 1)
    ) as jobs:
        async for job in jobs:
            found.append(job)  # noqa: PERF401 - the generator is to be closed
    shown = found[: options.limit]
    if len(found) > len(shown):
        STDERR.print(f"There are more than {len(shown)} jobs; --limit shows more.", style="dim")
    report: RenderableType = job_table(shown) if shown else "There are no such jobs."
    return Outcome(Exit.OK, {"jobs": [job.body for job in shown]}, [report])


async def wait(gateway: GatewayClient, options: argparse.Namespace) -> Outcome:
    """The same as `run`, for a job that was submitted before."""
    await asyncio.to_thread(_check_writable, options.output)
    try:
        with Display(STDERR) as display:
            job_result = await gateway.wait(options.prompt_id, timeout_s=options.timeout, show=display.show)
    except asyncio.CancelledError:
        return _left(options.prompt_id, "the job goes on")
    except GatewayError as error:
        return failure(exit_of_job(error), error)
    return await _saved(gateway, job_result, options.output)


async def result(gateway: GatewayClient, options: argparse.Namespace) -> Outcome:
    """The same as `wait`, without waiting."""
    await asyncio.to_thread(_check_writable, options.output)
    try:
        job_result = await gateway.result(options.prompt_id)
    except GatewayError as error:
        return failure(exit_of_job(error), error)
    return await _saved(gateway, job_result, options.output)


def _left(prompt_id: str, state: str) -> Outcome:
    """After Ctrl-C, if nothing is taken back."""
    error = GatewayError(f"Ctrl-C; {state}", title="Interrupted", code="interrupted", prompt_id=prompt_id)
    return failure(Exit.INTERRUPTED, error)


async def status(gateway: GatewayClient, options: argparse.Namespace) -> Outcome:
    if options.prompt_id is None:
        return await health(gateway, options)
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
        more = [
            plain(f"{name} {value}")
            for name, value in state.items()
            if name not in {"prompt_id", "status"} and value is not None
        ]
        return Outcome(Exit.OK, state, [Text("  ".join([told, *more]))])
    raise AssertionError("a wait ends with a result or an error")


async def _done(gateway: GatewayClient, result: PromptResult, options: argparse.Namespace) -> Outcome:
    if options.output is not None:
        return await _saved(gateway, result, options.output)
    report = [Text(f"{plain(result.status)} after {result.execution_time_s:.2f} s, {len(result.files)} files")]
    report += [Text(plain(f"  {file.url}")) for file in result.files]
    return Outcome(Exit.OK, result.body, report)


async def cancel(gateway: GatewayClient, options: argparse.Namespace) -> Outcome:
    document = await gateway.cancel(options.prompt_id)
    return Outcome(Exit.OK, document, [Text(plain(f"{document.get('status', 'cancelled')}: {options.prompt_id}"))])


async def health(gateway: GatewayClient, _options: argparse.Namespace) -> Outcome:
    health = await gateway.health()
    servers = health.body.get("servers") or []
    lines = [f"{name}: {_in_words(value)}" for name, value in health.body.items() if name != "servers"]
    lines += ["servers:", *(f"  {_in_words(server)}" for server in servers)] if servers else []
    report = [Text(plain(line)) for line in lines]
    return Outcome(Exit.OK if health.healthy else Exit.UNREACHABLE, health.body, report)


def _in_words(value: Any) -> str:
    """A value of the JSON for people: `server gpu-1, state connected`, `yes`. Members that are null are left out."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_words(member)}" for name, member in value.items() if member is not None)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


async def run_shown(
    gateway: GatewayClient,
    options: argparse.Namespace,
    events_of: Callable[[str], AsyncGenerator[Event, None]],
    workflow: Mapping[str, Any] | None = None,
) -> Outcome:
    """Shows what happens to a run until its end, and saves its files; Ctrl-C cancels it.

    Args:
        events_of: begins the run under this id.
        workflow: the graph, if there is one.
    """
    await asyncio.to_thread(_check_writable, options.output)
    prompt_id = options.prompt_id or str(uuid.uuid4())
    STDERR.print(f"prompt {prompt_id}", style="dim")
    began = time.monotonic()
    try:
        with Display(STDERR) as display:
            result = await result_of(events_of(prompt_id), display.show)
    except asyncio.CancelledError:
        return await _interrupted(gateway, prompt_id)
    return await _saved(gateway, result, options.output, workflow=workflow, began=began)


async def _interrupted(gateway: GatewayClient, prompt_id: str) -> Outcome:
    """After Ctrl-C: takes the prompt back, for a short while; a second Ctrl-C ends that too."""
    detail = "Ctrl-C; the prompt was cancelled"
    try:
        async with asyncio.timeout(_CANCEL_TIMEOUT_S):
            await gateway.cancel(prompt_id)
    except GatewayRefusedError:
        detail = "Ctrl-C; the prompt is no longer running"
    except (GatewayError, TimeoutError) as failed:
        reason = str(failed) or "no answer"
        detail = f"Ctrl-C; the prompt could not be cancelled and may go on: {reason}"
    return failure(Exit.INTERRUPTED, GatewayError(detail, title="Interrupted", code="interrupted", prompt_id=prompt_id))


def _prepared(options: argparse.Namespace) -> tuple[dict[str, Any], list[InputFile]]:
    """All that can be found wrong before anything is sent. Raises UsageError."""
    workflow = with_changes(read_workflow(options.workflow), options.set)
    return workflow, [input_file(text) for text in options.input]


def _labels(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    labels = dict(pairs)
    for key in labels:
        if [name for name, _ in pairs].count(key) > 1:
            raise UsageError(f"--label {key} must not be given twice")
    return labels


async def _saved(
    gateway: GatewayClient,
    result: PromptResult,
    folder: Path,
    *,
    workflow: Mapping[str, Any] | None = None,
    began: float | None = None,
) -> Outcome:
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
        STDERR.print(Text(plain(f"left out by ComfyUI: node {node}: {'; '.join(messages)}"), style="yellow"))
    report: list[RenderableType] = [file_table(saved, workflow or {})] if saved else ["The workflow saved no file."]
    timings = result.timings
    parts = f"staging {timings.staging_s:.2f}, queued {timings.queued_s:.2f}, executing {timings.executing_s:.2f}"
    total = "" if began is None else f"{time.monotonic() - began:.2f} s in all; in the gateway: "
    report.append(f"{total}{parts}, collecting {timings.collecting_s:.2f} s")
    failed = sum("error" in entry for entry in saved)
    if failed:
        STDERR.print(f"{failed} of {len(saved)} files could not be saved", style="red")
    return Outcome(Exit.FAILED if failed else Exit.OK, {**result.body, "images": saved}, report)


def _check_writable(folder: Path) -> None:
    """Before a long run, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {folder}: the folder is not writable")
