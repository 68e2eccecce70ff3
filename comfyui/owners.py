"""The owners of jobs, named after their keys, and the rules of each key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, Protocol

Role = Literal["user", "read", "admin"]
"""The rights of a key: its own jobs and files; a look at everything; everything. `comfyui.web.front.rights` has them
for each path.
"""
HIGHEST_PRIORITY = 1_000_000
_GIVEN = re.compile(r"key-[0-9a-f]{8}|external")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """The rights and limits of one key's holder.

    Attributes:
        name: of the key. Each owner of a job is such a name, or ``name/person`` (see `key_of`).
        webhook_secret: signs the webhooks of this key's jobs; None if the gateway has none for it.
        max_queued: jobs of the key that may wait at once; a further one is refused. None: any number.
        per_minute: submissions of the key within 60 seconds; a further one is refused. None: any number.
        max_running: jobs of the key that may run at once; others wait, and none is refused. None: any number.
        max_priority: the highest `priority` that a submission may ask for.
        weight: the key's share of the servers if several keys wait, in proportion to the other weights.
        user_header: the lower-case name of the header that names the person behind a shared key.
        workflows: names of the only workflows that it may run; None: any workflow.
    """

    name: str
    role: Role = "admin"
    webhook_secret: str | None = field(default=None, repr=False)
    max_queued: int | None = None
    per_minute: int | None = None
    max_running: int | None = None
    max_priority: int = HIGHEST_PRIORITY
    weight: float = 1.0
    user_header: str | None = None
    workflows: frozenset[str] | None = None

    def sees(self, owner: str | None) -> bool:
        """Whether the holder may know of a job of this owner."""
        return self.role != "user" or (owner is not None and key_of(owner) == self.name)


def confined_to(owner: str | None, rules: OwnerRules | None) -> str | None:
    """The name of the key, if the job may read only that key's files; None if it may read all.

    A key that was removed has no rules, but its jobs stay confined.
    """
    if owner is None or rules is None:
        return None
    found = rules.rules_of(owner)
    return key_of(owner) if found is None or found.role == "user" else None


class OwnerRules(Protocol):
    """Gives the rules of each owner, from the present keys."""

    @property
    def version(self) -> int:
        """A number that is different after each change."""

    def rules_of(self, owner: str | None) -> KeyRules | None:
        """The rules of the owner's key. None without keys, and for a key that was removed."""


def owner_of(key_name: str, person: str = "") -> str:
    """The owner of a job as it is stored."""
    return f"{key_name}/{person}" if person else key_name


def key_of(owner: str) -> str:
    """The name of the owner's key, without the person behind it."""
    return owner.partition("/")[0]


def folder_of(key: str) -> str:
    """The folder below ComfyUI's input folder that has the uploads of a user's key."""
    return f"keys/{key}"


def place_of(folder_type: str, subfolder: str, filename: str) -> str:
    """One text for a file of ComfyUI, by which its owner is found."""
    return f"{folder_type}/{subfolder}/{filename}"


def is_given_name(name: str) -> bool:
    """Whether the gateway itself gives this name: to a key of API_KEYS, or to prompts that reached a server past it."""
    return _GIVEN.fullmatch(name) is not None


def person_of(owner: str) -> str:
    """The person behind the owner's key; "" if none is named."""
    return owner.partition("/")[2]
