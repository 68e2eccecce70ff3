"""`Origin`: the source of a request, and the rights of its key."""

from __future__ import annotations

from dataclasses import dataclass

from comfyui.exceptions import RequestError
from comfyui.models import PromptRequest
from comfyui.owners import KeyRules


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a request.

    Attributes:
        owner: the name of the API key, as `comfyui.owners.owner_of` writes it; None without keys.
        rules: of the key; None without keys, and for the gateway's own work.
        idempotency_key: the caller's key for the request; None if it is not kept, or there is none.
        note: a text that the caller gave the job, and is shown again.
    """

    face: str = "prompt_sync"
    owner: str | None = None
    rules: KeyRules | None = None
    idempotency_key: str | None = None
    note: str | None = None

    def admitted(self, request: PromptRequest) -> PromptRequest:
        """The request as this key may send it. Raises `RequestError` for what its rules do not allow."""
        self.check_priority(request.priority)
        return request

    def check_priority(self, priority: int) -> None:
        """Raises `RequestError` for a priority that this key may not ask for."""
        rules = self.rules
        if rules is not None and priority > rules.max_priority:
            detail = f"the key {rules.name!r} may set at most {rules.max_priority} (max_priority)"
            raise RequestError(f"priority: {detail}")

    @property
    def is_confined(self) -> bool:
        """Whether the caller sees only what the gateway has recorded as its own."""
        return self.rules is not None and self.rules.role == "user"

    def sees(self, owner: str | None) -> bool:
        """Whether it may know of a job of this owner; None: of a job that the gateway did not accept."""
        return self.rules is None or self.rules.sees(owner)


OURS = Origin("")
