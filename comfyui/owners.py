"""Whose a job is: owners by the names of their keys, and the rules of each key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, Protocol

Role = Literal["user", "read", "admin"]
"""What a key may: its own jobs and files; look at all; everything. `comfyui.web.front.rights` says it for each path."""
HIGHEST_PRIORITY = 1_000_000
_GIVEN = re.compile(r"key-[0-9a-f]{8}|external")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """What the holder of one key may.

    Attributes:
        name: of the key. Each owner of a job is such a name, or ``name/person`` (see `key_of`).
        webhook_secret: signs the webhooks of this key's jobs; None where the gateway has none for it.
        max_queued: jobs of the key that wait at once; a further one is refused. None: any number.
        per_minute: submissions of the key within 60 seconds; a further one is refused. None: any number.
        max_running: jobs of the key that run at once; others wait, and none is refused. None: any number.
        max_priority: the highest `priority` that a submission may ask for.
        weight: the key's part of the servers where several wait, in proportion to the weights of the others.
        user_header: the lower-case name of the header that names the person behind a shared key.
        workflows: names of the workflows that it may run, and then no others; None: any workflow.
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
    """The name of the key whose files a job may read and nothing else; None where it may read all.

    A key that was taken away has no rules any more: its jobs stay confined.
    """
    if owner is None or rules is None:
        return None
    found = rules.rules_of(owner)
    return key_of(owner) if found is None or found.role == "user" else None


class OwnerRules(Protocol):
    """Knows the rules of each owner, as the keys are now."""

    @property
    def version(self) -> int:
        """Another number after each change."""

    def rules_of(self, owner: str | None) -> KeyRules | None:
        """The rules of the owner's key. None without keys, and for a key that is not there any more."""


def owner_of(key_name: str, person: str = "") -> str:
    """What is written down as the owner of a job."""
    return f"{key_name}/{person}" if person else key_name


def key_of(owner: str) -> str:
    """The name of the owner's key, without the person behind it."""
    return owner.partition("/")[0]


def folder_of(key: str) -> str:
    """The folder below ComfyUI's input folder that has the uploads of a user's key."""
    return f"keys/{key}"


def place_of(folder_type: str, subfolder: str, filename: str) -> str:
    """One text for a file of ComfyUI, by which it is known whose it is."""
    return f"{folder_type}/{subfolder}/{filename}"


def is_given_name(name: str) -> bool:
    """Whether the gateway gives this name itself: to a key of API_KEYS, or to what came to a server past it."""
    return _GIVEN.fullmatch(name) is not None


def person_of(owner: str) -> str:
    """The person behind the owner's key; "" where none is named."""
    return owner.partition("/")[2]
