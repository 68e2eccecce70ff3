"""The webhooks of the journal that is only memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace

from comfyui import jsonio
from comfyui.jobs.journal.records import Delivery, DeliveryState, Due, Fence, NewDelivery
from comfyui.jobs.journal.writes import Tried

_WAITING = DeliveryState.WAITING


class MemoryOutbox:
    """The same as the file's table `deliveries`."""

    def __init__(self) -> None:
        self._all: dict[str, Delivery] = {}
        # The deliveries of each job, oldest first.
        self._ids: defaultdict[str, list[str]] = defaultdict(list)
        # The order of all that ever existed, and those that wait.
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
        of_the_run = [one for one in self.of(prompt_id) if one.run == run]
        for one in of_the_run:
            self._all[one.id] = replace(one, state=_WAITING, tries=0, due_at=at)
            self._waiting[one.id] = None
        return bool(of_the_run)

    def due(self, now: float, limit: int, each: int, under_way: Collection[Delivery]) -> Due:
        taken = Counter(one.receiver for one in under_way)
        ids = {one.id for one in under_way}
        due: list[Delivery] = []
        later: list[float] = []
        waiting = [one for one in self._first_of_each() if one.id not in ids]
        for one in sorted(waiting, key=lambda one: (one.due_at, self._places[one.id])):
            if taken[one.receiver] >= each:
                continue
            if one.due_at > now:
                later.append(one.due_at)
                continue
            taken[one.receiver] += 1
            due.append(one)
        return Due(tuple(due[:limit]), None if len(due) >= limit else min(later, default=None))

    def of(self, *prompt_ids: str) -> list[Delivery]:
        names = [name for prompt_id in prompt_ids for name in self._ids.get(prompt_id, ())]
        return [self._all[name] for name in sorted(names, key=self._places.__getitem__)]

    def waits_for(self, prompt_id: str) -> bool:
        """Whether a webhook of the job is still to be sent."""
        return any(name in self._waiting for name in self._ids.get(prompt_id, ()))

    def forget(self, prompt_id: str, run: int) -> None:
        """Remove the webhooks of a job's runs up to this one, but for those that wait."""
        names = self._ids.get(prompt_id, [])
        for name in [name for name in names if self._all[name].run <= run and name not in self._waiting]:
            names.remove(name)
            del self._all[name], self._places[name]

    def remove(self, prompt_id: str) -> None:
        for name in self._ids.pop(prompt_id, ()):
            del self._all[name], self._places[name]
            self._waiting.pop(name, None)

    def _first_of_each(self) -> list[Delivery]:
        """The first that waits of each job and audience."""
        first: dict[tuple[str, str], Delivery] = {}
        for name in sorted(self._waiting, key=self._places.__getitem__):
            one = self._all[name]
            first.setdefault((one.prompt_id, one.audience), one)
        return list(first.values())
