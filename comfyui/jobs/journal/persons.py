"""`Persons`: limits the persons of a key whose usage is counted separately. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from comfyui.owners import key_of, person_of

# The limit for one key in one day. The key's application writes any name into its `user_header`.
MOST_PERSONS = 1000
# Keys whose persons are remembered.
_REMEMBERED = 100


class Persons:
    """`counted`: the persons of a key that have been told apart on a day."""

    def __init__(self, counted: Callable[[str, str], Iterable[str]]) -> None:
        self._counted = counted
        self._known: dict[tuple[str, str], set[str]] = {}

    def place_of(self, day: str, owner: str | None, workflow: str) -> tuple[str, str, str, str]:
        """Day, key, person and workflow for counting the owner's usage; "" for a person beyond the limit."""
        if not owner:
            return day, "", "", workflow
        key, person = key_of(owner), person_of(owner)
        return day, key, person if person and self._is_told_apart(day, key, person) else "", workflow

    def forget(self) -> None:
        """Recent counts may be lost."""
        self._known.clear()

    def _is_told_apart(self, day: str, key: str, person: str) -> bool:
        known = self._known.get((day, key))
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[day, key] = set(self._counted(day, key)) - {""}
        if person not in known and len(known) < MOST_PERSONS:
            known.add(person)
        return person in known
