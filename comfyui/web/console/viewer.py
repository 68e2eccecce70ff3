"""`Visitor`: who looks at the console, and what they may see and change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastapi import Request

from comfyui.jobs.journal.records import JobFilter
from comfyui.jobs.origin import Origin
from comfyui.owners import key_of
from comfyui.web.api.jobs import seen_by
from comfyui.web.front.request_state import state_of

_FACE = "console"


@dataclass(frozen=True, slots=True)
class Visitor:
    """The person who looks at the console.

    Attributes:
        name: the owner of the jobs that this visitor submits: the name of the key; None where no keys are asked for.
        role: of the key; without keys every visitor is an admin.
        origin: of what the visitor submits and cancels.
        seen: fits the jobs that the visitor may see, and no others.
    """

    name: str | None
    role: Literal["admin", "user", "read"]
    origin: Origin
    seen: JobFilter

    @property
    def sees_all(self) -> bool:
        """Whether the visitor sees the jobs of all owners, the servers and the keys."""
        return self.role != "user"

    @property
    def may_change(self) -> bool:
        """Whether the visitor may change anything at all."""
        return self.role != "read"

    @property
    def operates(self) -> bool:
        """Whether the visitor may change servers and the queue as a whole."""
        return self.role == "admin"

    @property
    def sight(self) -> tuple[str | None, str | None, str, int | None]:
        """Equal for visitors who see and may do the same."""
        rules = self.origin.rules
        return self.seen.owner, self.seen.key, self.role, None if rules is None else rules.max_priority

    def sees(self, owner: str | None) -> bool:
        """Whether the visitor sees a job of this owner; None: of no owner."""
        if self.seen.owner is not None:
            return owner == self.seen.owner
        return self.seen.key is None or (owner is not None and key_of(owner) == self.seen.key)


def visitor_of(request: Request) -> Visitor:
    """The visitor behind a request that `Guard` has let through."""
    caller = state_of(request.scope).caller
    seen = seen_by(request, JobFilter())
    if caller is None:
        return Visitor(None, "admin", Origin(_FACE), seen)
    return Visitor(caller.owner, caller.rules.role, Origin(_FACE, caller.owner, caller.rules), seen)
