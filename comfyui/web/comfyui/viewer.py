"""`Viewer`: who asks ComfyUI's face, and which jobs it may see and change."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from comfyui.jobs.journal.records import JobFilter, State
from comfyui.jobs.origin import Origin
from comfyui.owners import KeyRules, key_of
from comfyui.web.front.request_state import state_of
from comfyui.web.front.rights import Right


@dataclass(frozen=True, slots=True)
class Viewer:
    """The caller, as a viewer of jobs.

    Attributes:
        key: the name of the only key whose jobs it sees; None: it sees all jobs, including those without an owner.
        origin: for the jobs that it submits and cancels.
    """

    key: str | None
    origin: Origin

    @property
    def rules(self) -> KeyRules:
        """The rules of a key that sees its own only. Raises RuntimeError for everybody else."""
        if self.key is None or self.origin.rules is None:
            raise RuntimeError("a caller that sees all jobs has no key of its own here")
        return self.origin.rules

    def sees(self, owner: str | None) -> bool:
        """Whether it sees a job of this owner; None: a job without an owner."""
        return self.key is None or (owner is not None and key_of(owner) == self.key)

    def narrowed(self, states: frozenset[State]) -> JobFilter:
        """The jobs in these states that it sees."""
        return JobFilter(key=self.key, states=states)


def viewer_of(scope: Scope) -> Viewer:
    """The viewer of a request that `Guard` has let through."""
    state = state_of(scope)
    caller = state.caller
    if caller is None:
        return Viewer(None, Origin("prompt"))
    own = state.right is Right.OWN or caller.rules.role == "user"
    return Viewer(caller.rules.name if own else None, Origin("prompt", caller.owner, caller.rules))
