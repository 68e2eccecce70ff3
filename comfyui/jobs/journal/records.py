"""The journal's records. All are frozen; times are Unix time in seconds."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from comfyui import jsonio
from comfyui.labels import check_labels
from comfyui.named_call import NamedCall
from comfyui.owners import key_of

Kind = Literal["sync", "async"]
"""Whether a caller waits for the job on its connection, or returns for it."""
Audience = Literal["caller", "operator"]
"""The receiver of a webhook: the one of the request, or `WEBHOOK_URL`, which is told of every job."""


class State(enum.Enum):
    """How far a job is. The last four are ends; a run that has one of them keeps it."""

    QUEUED = "queued"
    """ComfyUI does not run the prompt yet, whether it has it or not."""
    RUNNING = "running"
    """ComfyUI has begun to run it, on this server or on one that lost it."""
    CANCELING = "canceling"
    """It is being taken out of ComfyUI."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    LOST = "lost"
    """ComfyUI forgot the prompt, and it is not tried again."""

    @property
    def is_end(self) -> bool:
        """Whether a run in this state is over."""
        return self in ENDS


ENDS = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED, State.LOST})


class Fence(NamedTuple):
    """The right to write about one attempt of one run. A write with a fence that is older than the job's does nothing.

    `attempt` is 0 before a run is first placed.
    """

    prompt_id: str
    run: int
    attempt: int

    @property
    def mark(self) -> str:
        """Given to a server, so that its attempt can be identified later."""
        return f"{self.run}.{self.attempt}"

    def next(self) -> Fence:
        """The fence of the attempt after this one."""
        return Fence(self.prompt_id, self.run, self.attempt + 1)


@dataclass(frozen=True, slots=True)
class WebhookOrder:
    """The receiver that the caller wants to be told, and the events; none stands for the end of each run."""

    url: str
    events: tuple[str, ...] = ()

    @property
    def shown_url(self) -> str:
        """The URL as others may see it: without query and fragment, which may have a token."""
        return self.url.partition("#")[0].partition("?")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The job's properties from its submission on.

    Attributes:
        kind: of the present run; a new run may have another. Everything else stays.
        callers_id: the caller knows the id: it chose it, or it was told.
        fingerprint: of the request, where two requests with the same id are compared.
        owner: the name of the API key; None without keys.
        face: the way by which it came.
        inputs: which files of the input store the request has, and where; see `comfyui.jobs.inputs`. An empty text
            stands for one that is still to be fetched.
        needs_secrets: the request had secrets, which are not kept; it cannot be run from the journal alone.
        max_queued_s, max_execution_s: limits of this job that replace the settings.
        turn: its place among the jobs of its owner, if the caller asked for one; otherwise its number.
        idempotency_key: under which the owner sent it; see `Journal.sent_under`.
        note: a text of the caller's, which is shown again.
        call: of the named workflow that it runs; None if the caller sent a graph.
    """

    prompt_id: str
    kind: Kind
    callers_id: bool
    created_at: float
    fingerprint: str | None = None
    owner: str | None = None
    face: str = ""
    workflow_name: str | None = None
    client_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    needs_secrets: bool = False
    priority: int = 0
    webhook: WebhookOrder | None = None
    max_queued_s: float | None = None
    max_execution_s: float | None = None
    turn: float | None = None
    idempotency_key: str | None = None
    note: str | None = None
    call: NamedCall | None = None

    @property
    def is_fetching(self) -> bool:
        """Whether an input is still to be fetched: the job gets no turn before that."""
        return "" in self.inputs.values()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob(Submission):
    """A job to be written. Raises ValueError for bad labels.

    Attributes:
        body: the request as canonical JSON, without secrets; None if only its caller has it.
        front: whether it goes before all waiting jobs of its owner: its turn is then its negative number.

    UTF-8 cannot carry lone surrogates; in the texts of a job U+FFFD stands in their place.
    """

    body: bytes | None
    front: bool = False

    def turn_at(self, number: int) -> float | None:
        """Its turn, if it is given this number."""
        return -number if self.front and self.turn is None else self.turn

    def __post_init__(self) -> None:
        if self.labels:
            check_labels(self.labels)
        for name in ("owner", "face", "workflow_name", "client_id", "note"):
            text = getattr(self, name)
            if text and not text.isascii():
                object.__setattr__(self, name, jsonio.without_surrogates(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord(Submission):
    """A job as it stands in the journal.

    Attributes:
        seq: order of submission. It stays when a new run begins.
        body_sha256: of the body, in hex, if there is one; `Journal.body_of` has the body.
        run: counts from 1.
        server: of the present attempt; None while the run waits in the gateway.
        begun: the present attempt has begun to execute.
        alone: a server died while it had the run: see `comfyui.jobs.job.Job.alone`.
        losses: how many attempts of this run a server lost after they had begun.
        number, end_number: when this run was queued, and when it ended, on one counter for all jobs.
        queued_at: when this run was queued.
        retryable: whether the same request may be sent again after this failure.
        error: the error as the error body has it. `Journal.result_of` has the result.
        hidden: whether it has ended and ComfyUI's history no longer shows it.
    """

    seq: int
    body_sha256: str | None
    run: int
    state: State
    server: str | None
    attempt: int
    begun: bool
    alone: bool = False
    losses: int
    number: int
    end_number: int | None
    queued_at: float
    started_at: float | None
    ended_at: float | None
    retryable: bool
    error: Mapping[str, Any] | None
    hidden: bool

    @property
    def fence(self) -> Fence:
        """The fence of the present attempt."""
        return Fence(self.prompt_id, self.run, self.attempt)

    @property
    def waits(self) -> bool:
        """Whether it is in the gateway's queue. A job that a server lost while it ran counts as running there."""
        return self.kind == "async" and self.server is None and self.state in {State.QUEUED, State.RUNNING}

    @property
    def shown_number(self) -> float:
        """The number that ComfyUI's clients are told."""
        if self.turn is None:
            return self.number
        return int(self.turn) if self.turn == -self.number else self.turn

    @property
    def may_run_again(self) -> bool:
        """Whether the same request begins a new run: the last one ended in a way that the next may not."""
        return self.state in {State.CANCELED, State.LOST} or (self.state is State.FAILED and self.retryable)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """An earlier run of a job, and how it ended. The fields are those of `JobRecord`."""

    run: int
    state: State
    server: str | None
    attempt: int
    number: int
    end_number: int
    queued_at: float
    started_at: float | None
    ended_at: float
    error: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDelivery:
    """A webhook to be sent.

    Attributes:
        id: `webhook-id`, the same at each try. A second delivery with the same id is not written.
    """

    id: str
    event: str
    url: str
    due_at: float
    audience: Audience = "caller"

    @property
    def receiver(self) -> str:
        """Host and port of the URL, which are slow or away as one. The whole URL if it has none."""
        try:
            parts = urlsplit(self.url)
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        except ValueError:
            return self.url
        return f"{parts.hostname}:{port}" if parts.hostname else self.url


class DeliveryState(enum.Enum):
    """Whether a webhook is still to be sent."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery(NewDelivery):
    """A webhook in the outbox. `tries`: since it was last ordered; `answer`: to the last try, in words."""

    prompt_id: str
    run: int
    state: DeliveryState
    tries: int
    tried_at: float | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class Due:
    """The deliveries for the outbox.

    Attributes:
        deliveries: those to send now, the longest overdue first.
        next_at: when one more is due, if nothing else changes; None if none is, or if the limit was reached.
    """

    deliveries: tuple[Delivery, ...]
    next_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """A filter of jobs; a field that is not given does not filter. All must match, including all labels."""

    owner: str | None = None
    key: str | None = None
    """The name of a key: its own jobs, and those of all persons behind it."""
    states: frozenset[State] = frozenset()
    workflow_name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    shown_only: bool = False
    """Leaves out jobs that are hidden from ComfyUI's history."""
    text: str | None = None
    """Words that the job has, each of them somewhere: in its id, the name of its workflow, labels, note, error, in the
    parameters of its call or in its body, in large or small letters. See `comfyui.jobs.journal.searching`."""

    def __post_init__(self) -> None:
        for name in ("owner", "key", "workflow_name", "text"):
            if (text := getattr(self, name)) is not None:
                object.__setattr__(self, name, jsonio.without_surrogates(text))
        labels = {jsonio.without_surrogates(key): jsonio.without_surrogates(self.labels[key]) for key in self.labels}
        object.__setattr__(self, "labels", labels)

    def fits(self, job: JobRecord) -> bool:
        """Whether the job matches, by everything except the text."""
        return (
            (self.owner is None or job.owner == self.owner)
            and (self.key is None or (job.owner is not None and key_of(job.owner) == self.key))
            and (self.workflow_name is None or job.workflow_name == self.workflow_name)
            and (not self.states or job.state in self.states)
            and not (self.shown_only and job.hidden)
            and all(job.labels.get(key) == value for key, value in self.labels.items())
        )


class EndedJob(NamedTuple):
    """The fields of an ended job by which it is found and sorted. They are those of `JobRecord`."""

    prompt_id: str
    state: State
    queued_at: float
    started_at: float | None
    ended_at: float


class KeptJob(NamedTuple):
    """A job with its request from `Journal.body_of`, and its result if requested."""

    record: JobRecord
    body: bytes | None
    result: bytes | None


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first.

    Attributes:
        next_cursor: None on the last page.
        searched_to: for a search for a text that has read as many jobs as one page may cost before the page was full:
            when the last of these jobs was submitted. The next page continues there.
    """

    records: tuple[JobRecord, ...]
    next_cursor: str | None
    searched_to: float | None = None
