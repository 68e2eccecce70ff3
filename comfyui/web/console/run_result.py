"""A run of a named workflow as its form shows it beside itself: where it waits, and what it made."""

from __future__ import annotations

from dataclasses import dataclass

from comfyui.assets.outputs import JobOutput
from comfyui.jobs.admission import Look
from comfyui.jobs.journal.records import JobRecord, State
from comfyui.web.console.files import kind_of
from comfyui.web.console.queue_rows import eta_text
from comfyui.web.console.texts import TEXTS
from comfyui.web.front.gateway_state import GatewayState

# More is on the job's own page.
_MOST_SHOWN = 50
_LONGEST_TEXT = 5000


@dataclass(frozen=True, slots=True)
class ShownOutput:
    """Something that a run made.

    Attributes:
        kind: see `comfyui.web.console.files.kind_of`.
        index: its place among all outputs of the job.
        text: of a text, as far as it is shown.
    """

    name: str
    kind: str
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ShownRun:
    """A run as it is now.

    Attributes:
        state: as `State` has it.
        waits: why it does not run yet, in words; "" where it does.
        error: why it has no result, "" where it is not so.
        more: how many outputs are not in `outputs`.
    """

    prompt_id: str
    state: str
    is_end: bool
    waits: str
    error: str
    outputs: tuple[ShownOutput, ...] = ()
    more: int = 0


async def shown_run(gateway: GatewayState, look: Look) -> ShownRun:
    """The run behind what the handler says of it. Raises `JournalError`."""
    record = look.record
    error = record.error["detail"] if record is not None and record.error and look.state.is_end else ""
    made: list[ShownOutput] = []
    if record is not None and look.state.is_end:
        found = await gateway.assets.outputs.of(record, look)
        made = [_shown(one, index) for index, one in enumerate(found.outputs) if _is_wanted(record, one)]
    outputs = tuple(made[:_MOST_SHOWN])
    return ShownRun(
        look.prompt_id,
        look.state.value,
        look.state.is_end,
        _waits(gateway, look),
        error,
        outputs,
        len(made) - len(outputs),
    )


def _is_wanted(record: JobRecord, output: JobOutput) -> bool:
    """Whether the output is shown: if the workflow names outputs, only these are."""
    return record.call is None or not record.call.outputs or output.node_id in record.call.outputs


def _shown(output: JobOutput, index: int) -> ShownOutput:
    if output.file is None:
        return ShownOutput(output.name, "text", index, output.text[:_LONGEST_TEXT])
    return ShownOutput(output.name, kind_of(output), index, "")


def _waits(gateway: GatewayState, look: Look) -> str:
    if look.state is not State.QUEUED:
        return ""
    queue = gateway.handler.queue
    why: str = TEXTS.run.waits
    if queue.paused and queue.has_no_turn(look.prompt_id):
        why = TEXTS.run.paused
    elif servers := queue.waits_for(look.prompt_id):
        why = TEXTS.run.waits_for.format(servers=", ".join(servers))
    elif look.position is not None:
        why = TEXTS.run.before.format(count=look.position) if look.position else TEXTS.run.is_next
        begins = eta_text(gateway.handler.etas.now().of(look.prompt_id, look.position))
        why = f"{why} · {begins}" if begins else why
    return why
