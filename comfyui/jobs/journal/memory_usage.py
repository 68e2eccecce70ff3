"""Usage, and the owners of files, for `MemoryJournal`."""

from __future__ import annotations

from collections.abc import Iterator

from comfyui import jsonio
from comfyui.jobs.journal.made import Made, MadeFilter
from comfyui.jobs.journal.persons import Persons
from comfyui.jobs.journal.usage_records import UsageQuery, UsageRow, day_of
from comfyui.jobs.journal.writes import Finish, Sent
from comfyui.owners import key_of

_NAMED = ("day", "key", "person", "workflow")
_COUNTED = ("succeeded", "failed", "canceled", "lost", "gpu_s", "bytes")
# Beyond it the oldest are forgotten.
_MOST_FILES = 100_000
_Place = tuple[str, str, str, str]


class MemoryUsage:
    """Sums by day, key, person and workflow."""

    def __init__(self) -> None:
        self._files: dict[str, dict[tuple[str, str, str], float]] = {}
        """When the files of each place were made, by server, key and prompt, oldest first."""
        self._sums: dict[_Place, dict[str, float]] = {}
        self._persons = Persons(self._persons_of)

    def ended(self, write: Finish, owner: str | None, workflow: str | None, started_at: float | None) -> None:
        """Count the end of a run."""
        while len(self._files) > _MOST_FILES:
            del self._files[next(iter(self._files))]
        for file in write.files:
            place = jsonio.without_surrogates(file.place)
            made = self._files.pop(place, {})
            kept = {by: at for by, at in made.items() if not file.anew or by[0] != file.server}
            by = (file.server, key_of(owner or ""), write.fence.prompt_id)
            kept.pop(by, None)
            self._files[place] = {**kept, by: write.at}
        self._add(day_of(write.at), owner, workflow or "", {write.state.value: 1, "gpu_s": write.used_s(started_at)})

    def sent(self, write: Sent) -> bool:
        self._add(day_of(write.at), write.owner, "", {"bytes": write.bytes})
        return True

    def _add(self, day: str, owner: str | None, workflow: str, more: dict[str, float]) -> None:
        place = self._persons.place_of(day, owner, workflow)
        sums = self._sums.setdefault(place, dict.fromkeys(_COUNTED, 0))
        for name, value in more.items():
            sums[name] += value

    def _persons_of(self, day: str, key: str) -> Iterator[str]:
        return (person for at, of, person, _ in self._sums if (at, of) == (day, key))

    def rows(self, query: UsageQuery) -> list[UsageRow]:
        """See `Journal.usage`."""
        groups: dict[tuple[str, ...], dict[str, float]] = {}
        for place, sums in self._sums.items():
            named = dict(zip(_NAMED, place, strict=True))
            wanted = query.key in {None, named["key"]} and query.person in {None, named["person"]}
            if not wanted or not query.since <= named["day"] <= query.until:
                continue
            total = groups.setdefault(tuple(named[name] for name in query.by), dict.fromkeys(_COUNTED, 0))
            for name, value in sums.items():
                total[name] += value
        found = []
        for group in sorted(groups)[: query.limit]:
            named = dict(zip(query.by, group, strict=True))
            counts = {name: value if name == "gpu_s" else int(value) for name, value in groups[group].items()}
            found.append(UsageRow(**{name: named.get(name) for name in _NAMED}, **counts))  # type: ignore[arg-type]
        return found

    def made(self, narrowed: MadeFilter, limit: int) -> list[Made]:
        """See `Journal.made`."""
        places = list(self._files) if narrowed.place is None else [narrowed.place]
        found = [
            one
            for place in places
            for (server, key, prompt_id), at in self._files.get(place, {}).items()
            if narrowed.fits(key, one := Made(place, server, prompt_id, at))
        ]
        return sorted(found, key=lambda one: one.at, reverse=True)[:limit]

    def remove(self, before: str, files_before: str) -> int:
        """Removes the days before these; returns how many rows of usage there were."""
        for place, made in list(self._files.items()):
            self._files[place] = {by: at for by, at in made.items() if day_of(at) >= files_before}
        self._files = {place: made for place, made in self._files.items() if made}
        old = [sums for sums in self._sums if sums[0] < before]
        for sums in old:
            del self._sums[sums]
        return len(old)
