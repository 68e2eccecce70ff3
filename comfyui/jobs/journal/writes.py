"""Writes to the journal. Each has a place only in certain states of the job; elsewhere it changes nothing.

A write that has no place changes nothing, and `Journal.write` returns False for it. Together they hold the state
machine: no way back within a run, and one writer, who has the fence of the newest attempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from comfyui.jobs.journal.asset_writes import DropAssets, ExpireAssets, KeepAsset, KnowOutputs, UseAssets
from comfyui.jobs.journal.records import DeliveryState, Fence, Kind, NewDelivery, NewJob, State
from comfyui.named_call import NamedCall


@dataclass(frozen=True, slots=True)
class Add:
    """A new job, queued. No place: the id is known already.

    Attributes:
        server: of its first attempt, if that begins at once; None if it waits in the gateway.
        end: of its first run, if it is written together; a `Finish` right after it does the same.
    """

    job: NewJob
    server: str | None = None
    end: Finish | None = None


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A job is removed without a trace, because it was none. Place: it is queued, in its first run, and never began."""

    fence: Fence


@dataclass(frozen=True, slots=True)
class Place:
    """An attempt begins on `server`, with a fence that is newer than the job's. Place: queued or running.

    A job that was running stays so. An attempt that had begun is one loss more.
    """

    fence: Fence
    server: str


@dataclass(frozen=True, slots=True)
class PutBack:
    """The attempt is over and the run is not. The job waits with us again, with the next fence. Place: as for `Place`.

    A job that was running stays so. An attempt that had begun is one loss more.
    """

    fence: Fence


@dataclass(frozen=True, slots=True)
class Reorder:
    """A job that waits with us gets another place in the order. Place: queued or running, with exactly this attempt,
    which is on no server.

    Attributes:
        priority: the new one; None: no change.
        first: whether it goes before all other jobs of its owner and priority, as in `NewJob.front`.
    """

    fence: Fence
    priority: int | None = None
    first: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """ComfyUI has begun to execute the prompt, on its server. Place: queued or running."""

    fence: Fence
    at: float
    deliveries: tuple[NewDelivery, ...] = ()


@dataclass(frozen=True, slots=True)
class Suspect:
    """The server died while it had the attempt, or was being sent it: the run is placed alone from now on.

    Place: queued or running, on its server.

    Attributes:
        begun: the attempt counts as begun, though ComfyUI may not have said so.
    """

    fence: Fence
    begun: bool


@dataclass(frozen=True, slots=True)
class Died:
    """ComfyUI's process ended under a workflow. Deaths before `before` are forgotten. Place: always."""

    workflow: str
    at: float
    before: float


@dataclass(frozen=True, slots=True)
class Forgive:
    """The workflow ran to its end: the deaths under it are forgotten. Place: there are some."""

    workflow: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The job is being taken out. Place: queued or running; the caller of a cancel needs no fence."""

    prompt_id: str
    run: int


class MadeFile(NamedTuple):
    """A file of a run, on the server `server`; `place`: see `comfyui.owners.place_of`.

    `anew`: whether the run has written it, so that an earlier file of this name is gone. If not, it came from ComfyUI's
    cache, and also belongs to others who have run the same.
    """

    server: str
    place: str
    anew: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The run ends in one of the four ends. Place: queued, running or canceling.

    Attributes:
        error: as the error body has it.
        result: the result as JSON.
        started_at: when ComfyUI began to execute it, if no `Start` says so.
        files: made by the run, if they shall have an owner.
        executing_s: how long ComfyUI executed it, if it says so; otherwise the time from its start to its end.
        retryable: whether another run may follow a run that failed with this error.
    """

    fence: Fence
    state: State
    at: float
    error: Mapping[str, Any] | None = None
    result: bytes | None = None
    started_at: float | None = None
    retryable: bool = False
    deliveries: tuple[NewDelivery, ...] = ()
    executing_s: float | None = None
    files: tuple[MadeFile, ...] = ()

    def used_s(self, started_at: float | None) -> float:
        """Seconds for which the run kept a server, if it began at `started_at`."""
        if self.executing_s is not None:
            return self.executing_s
        return 0.0 if started_at is None else max(0.0, self.at - started_at)

    def __post_init__(self) -> None:
        if not self.state.is_end:
            raise ValueError(f"{self.state.value} is no end")


@dataclass(frozen=True, slots=True)
class Tell:
    """The caller is about to be told an id of ours, which counts as the caller's from now on. Place: any known job.

    Attributes:
        body: needed to run the job again; None if it is not kept, or not known.
    """

    prompt_id: str
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """A new run after the run `run`; how that one ended is kept. Place: canceled, lost, or failed and retryable.

    Attributes:
        body, inputs, needs_secrets, call: those of the new run; None: as in the earlier one.
    """

    prompt_id: str
    run: int
    kind: Kind
    at: float
    body: bytes | None = None
    inputs: Mapping[str, str] | None = None
    needs_secrets: bool | None = None
    call: NamedCall | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """A sync job becomes async, with all that it takes to run it from the journal alone. Place: queued or running."""

    prompt_id: str
    run: int
    body: bytes | None
    inputs: Mapping[str, str]
    call: NamedCall | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """The inputs of a run have arrived: `inputs` replaces the job's. Place: queued or running."""

    prompt_id: str
    run: int
    inputs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A webhook was tried. Place: it is waiting.

    Attributes:
        answer: the receiver's status, or why there was none; no secrets, no query.
        due_at: when it is tried again, where `state` is waiting.
    """

    id: str
    at: float
    answer: str
    state: DeliveryState
    due_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Sent:
    """This number of bytes went to the callers of an owner, up to `at`. Place: always."""

    owner: str | None
    at: float
    bytes: int


@dataclass(frozen=True, slots=True)
class SendAgain:
    """The webhooks of the present run are sent again at `at`, as if never tried. Place: there are some."""

    prompt_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Hide:
    """ComfyUI's history hides these jobs, until a new run of them has ended. Place: one is shown.

    Jobs that have not ended are left as they are.
    """

    prompt_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClearHistory:
    """As `Hide`, for all jobs of a key that have ended by now; None: for all jobs. Place: always."""

    key: str | None


@dataclass(frozen=True, slots=True)
class Pause:
    """No job gets its turn, until a `Pause` with False. Place: if that changes the state."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Drain:
    """The server of this name is to get no more prompts, until a `Drain` with False. Place: as for `Pause`."""

    server: str
    drained: bool


class KeptUpload(NamedTuple):
    """A file that a client has uploaded. Its bytes lie in the store of inputs, by their hash.

    Attributes:
        key: whose it is: the name of a key of role `user`; "" for all who see everything.
        place: the type of ComfyUI's folder, then subfolder and name: ``input/a/b.png``.
        digest: SHA-256 of its bytes, in hex.
        at: when it was uploaded.
        used_at: when it was uploaded or named by a prompt last, within the hour.
    """

    key: str
    place: str
    digest: str
    size: int
    at: float
    used_at: float


@dataclass(frozen=True, slots=True)
class KeepUpload:
    """The name now stands for these bytes. Place: always."""

    upload: KeptUpload


@dataclass(frozen=True, slots=True)
class UseUpload:
    """A prompt has named the file. Place: there is one of this name, and it was not used later."""

    key: str
    place: str
    at: float


@dataclass(frozen=True, slots=True)
class DropUploads:
    """Forgets these names, each with its key. Place: there is one of them."""

    names: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class NoteAttempt:
    """How far an attempt is at a platform that knows no ids of ours. Place: it is the present one of a run.

    Attributes:
        sent_at: when it was about to be sent.
        ref: the platform's id; None while it is not known whether the platform has it.
        reply: from the platform, which may give it only once.
    """

    fence: Fence
    sent_at: float
    ref: str | None = None
    reply: bytes | None = None


@dataclass(frozen=True, slots=True)
class DropAttempt:
    """The platform does not have the attempt, or its run is over. Place: it was noted."""

    fence: Fence


def id_of(write: Write) -> str | None:
    """The job of the write, if the write names one by its id."""
    match write:
        case Add():
            return write.job.prompt_id
        case Place() | PutBack() | Reorder() | Start() | Finish() | NoteAttempt() | DropAttempt():
            return write.fence.prompt_id
        case Cancel() | Tell() | Again() | Keep() | Fetched() | SendAgain() | KnowOutputs():
            return write.prompt_id
        case _:
            return None


Write = (
    Add
    | Withdraw
    | Place
    | PutBack
    | Reorder
    | Start
    | Suspect
    | Died
    | Forgive
    | Cancel
    | Finish
    | Tell
    | Again
    | Keep
    | Fetched
    | NoteAttempt
    | DropAttempt
    | Tried
    | SendAgain
    | Pause
    | Drain
    | Sent
    | Hide
    | ClearHistory
    | KeepUpload
    | UseUpload
    | DropUploads
    | KeepAsset
    | UseAssets
    | DropAssets
    | ExpireAssets
    | KnowOutputs
)
