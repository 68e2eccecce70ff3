"""`RunningJobs`: the progress of the prompts that run, kept while a console is open."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

from comfyui import jsonio
from comfyui.events import Event, ExecutionStart, Preview
from comfyui.jobs.job import Job
from comfyui.jobs.standing import StandingJobs
from comfyui.servers.pool import BackendPool
from comfyui.web.console.node_names import plain_title
from comfyui.workflows.progress import NodeStarted, ProgressTracker

# A browser shows these as a picture and never as a document; the type comes from a node.
_PICTURES = frozenset({"image/jpeg", "image/png", "image/webp"})
# Of a preview in bytes: a page gets four a second, so a larger one is left out.
_LARGEST_PREVIEW = 512 * 1024
PREVIEW_EVERY_S = 0.25


class RunningJob:
    """One prompt that runs.

    Attributes:
        owner: whose job it is.
        changed, pictured: the numbers of the last changes of its progress and of its preview, as `RunningJobs` counts.
        overall: how much of the whole prompt is done, 0 to 1.
        node, title: the node that runs, and what to call it: `plain_title`.
        value, max: the steps of this node that are done, and all of them; None where it reports none.
        preview: the last picture, not told yet.
        picture: the last preview that was told, as an event of a feed.
    """

    __slots__ = (
        "_job", "_pictured_at", "_tracker", "changed", "max", "node", "overall", "owner",
        "picture", "pictured", "preview", "prompt_id", "title", "value",
    )  # fmt: skip

    def __init__(self, job: Job) -> None:
        self.prompt_id = job.prompt_id
        self.owner = job.owner
        self._job = job
        self._tracker = ProgressTracker(lambda: job.workflow)
        self.changed = self.pictured = 0
        self.preview: Preview | None = None
        self.picture = b""
        self._pictured_at = 0.0
        self._begin()
        for event in job.latest():
            self.hear(event)

    def _begin(self) -> None:
        self.overall = 0.0
        self.node = self.title = ""
        self.value: float | None = None
        self.max: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._job.ended

    def hear(self, event: Event) -> bool:
        """One event of the prompt; whether its progress is another one now."""
        if isinstance(event, Preview):
            if event.content_type in _PICTURES and len(event.image) <= _LARGEST_PREVIEW:
                self.preview = event
            return False
        if isinstance(event, ExecutionStart):
            self._begin()
        news = isinstance(event, ExecutionStart)
        for step in self._tracker.observe(event):
            news = True
            if isinstance(step, NodeStarted):
                self.node, self.value, self.max = step.node, None, None
                self.title = plain_title(step.title, step.class_type)
                continue
            self.overall = step.overall
            if step.node == self.node and step.max > 1:
                self.value, self.max = step.value, step.max
        return news

    def mark(self, number: int) -> None:
        """Its progress has changed, and this is the number of the change."""
        self.changed = number

    def preview_due(self, now: float) -> float | None:
        """In how many seconds its preview may be told; None where there is no new one."""
        return None if self.preview is None else max(0.0, self._pictured_at + PREVIEW_EVERY_S - now)

    def take_preview(self, number: int, now: float) -> None:
        """Its preview is told now, under this number."""
        if self.preview is None:
            return
        preview, self.preview = self.preview, None
        self.pictured, self._pictured_at = number, now
        image = base64.b64encode(preview.image).decode("ascii")
        data = {"id": self.prompt_id, "type": preview.content_type, "image": image}
        self.picture = b"event: preview\ndata: " + jsonio.dumps(data) + b"\n\n"

    def told(self) -> dict[str, object]:
        """Its progress as a page gets it."""
        return {
            "overall": self.overall,
            "node": self.node,
            "title": self.title,
            "value": self.value,
            "max": self.max,
        }


class RunningJobs:
    """Those of them that a console shows. `follows`: whether one shows a job of this id and owner."""

    def __init__(self, pool: BackendPool, standing: StandingJobs, follows: Callable[[str, str | None], bool]) -> None:
        self._pool = pool
        self._standing = standing
        self._follows = follows
        self._jobs: dict[str, RunningJob] = {}

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._jobs

    def __iter__(self) -> Iterator[RunningJob]:
        return iter(self._jobs.values())

    def follow_all(self, number: int) -> None:
        """A console more looks: follow what runs already and is shown now."""
        for server in self._pool.servers:
            for prompt_id, _ in server.running_frames():
                if prompt_id not in self._jobs:
                    self.begin(prompt_id, number)

    def begin(self, prompt_id: str, number: int) -> None:
        """The prompt begins to run, or begins again; or it runs already."""
        job = self._standing.job(prompt_id)
        if job is not None and self._follows(prompt_id, job.owner):
            self._jobs[prompt_id] = running = RunningJob(job)
            running.mark(number)

    def hear(self, prompt_id: str, event: Event) -> RunningJob | None:
        """One event of a prompt that is followed. The job, where its progress has changed."""
        running = self._jobs.get(prompt_id)
        return running if running is not None and running.hear(event) else None

    def drop_ended(self) -> None:
        """Those that have ended run no more."""
        self._jobs = {one: running for one, running in self._jobs.items() if not running.is_over}

    def clear(self) -> None:
        """No console looks any more."""
        self._jobs.clear()

    def of(self, prompt_id: str) -> RunningJob | None:
        """How far a prompt that runs is, also while no console looks; None where nothing is known of it."""
        if (running := self._jobs.get(prompt_id)) is not None:
            return running
        job = self._standing.job(prompt_id)
        return None if job is None or job.began_at is None else RunningJob(job)
