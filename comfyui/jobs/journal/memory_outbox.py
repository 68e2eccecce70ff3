"""The webhooks of the journal that is only memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace

from comfyui import jsonio
from comfyui.jobs.journal.records import Delivery, DeliveryState, Fence, NewDelivery
from comfyui.jobs.journal.writes import Tried

_WAITING = DeliveryState.WAITING


class MemoryOutbox:
    """As the table `deliveries` of the file."""

    def __init__(self) -> None:
        self._all: dict[str, Delivery] = {}
        # Of each job, oldest first.
        self._ids: defaultdict[str, list[str]] = defaultdict(list)
        # Where each stands among all that ever were, and those that wait.
        self._places: dict[str, int] = {}
        self._waiting: dict[str, None] = {}
        self._added = 0

    def add(self, fence: Fence, deliveries: Iterable[NewDelivery]) -> None:
        for new in deliveries:
            if new.id in self._all:
                continue
            self._added += 1
            self._places[new.id] = self._added
            self._ids[fence.prompt_id].append(new.id)
            self._waiting[new.id] = None
            self._all[new.id] = Delivery(
                id=new.id,
                event=new.event,
                url=new.url,
                payload=new.payload,
                due_at=new.due_at,
                audience=new.audience,
                prompt_id=fence.prompt_id,
                run=fence.run,
                state=_WAITING,
                tries=0,
                tried_at=None,
                answer=None,
            )

    def tried(self, write: Tried) -> bool:
        if write.id not in self._waiting:
            return False
        known = self._all[write.id]
        answer = jsonio.without_surrogates(write.answer)
        self._all[write.id] = replace(
            known, state=write.state, due_at=write.due_at, tried_at=write.at, answer=answer, tries=known.tries + 1
        )
        if write.state is not _WAITING:
            del self._waiting[write.id]
        return True

    def send_again(self, prompt_id: str, run: int, at: float) -> bool:
        ended = [one for one in self.of(prompt_id) if one.run == run and one.state is not _WAITING]
        for one in ended:
            self._all[one.id] = replace(one, state=_WAITING, tries=0, due_at=at)
            self._waiting[one.id] = None
        return bool(ended)

    def claim(self, now: float, limit: int, until: float, busy: Collection[str]) -> list[Delivery]:
        due = [one for one in self._first_of_each(busy) if one.due_at <= now]
        due = sorted(due, key=lambda one: (one.due_at, self._places[one.id]))[:limit]
        for one in due:
            self._all[one.id] = replace(one, due_at=until)
        return due

    def next_due(self, busy: Collection[str]) -> float | None:
        return min((one.due_at for one in self._first_of_each(busy)), default=None)

    def of(self, prompt_id: str) -> list[Delivery]:
        return [self._all[name] for name in self._ids.get(prompt_id, ())]

    def waits_for(self, prompt_id: str) -> bool:
        """Whether a webhook of the job is still to be sent."""
        return any(name in self._waiting for name in self._ids.get(prompt_id, ()))

    def remove(self, prompt_id: str) -> None:
        for name in self._ids.pop(prompt_id, ()):
            del self._all[name], self._places[name]

    def _first_of_each(self, busy: Collection[str]) -> list[Delivery]:
        """The first that waits of each job and audience, without those for receivers in `busy`."""
        first: dict[tuple[str, str], Delivery] = {}
        for name in sorted(self._waiting, key=self._places.__getitem__):
            one = self._all[name]
            first.setdefault((one.prompt_id, one.audience), one)
        return [one for one in first.values() if one.receiver not in busy]
