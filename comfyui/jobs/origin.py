"""`Origin`: where a request came from, and what its key may know of and ask for."""

from __future__ import annotations

from dataclasses import dataclass

from comfyui.exceptions import RequestError
from comfyui.models import PromptRequest
from comfyui.owners import KeyRules, client_id_of


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from.

    Attributes:
        owner: the name of the API key, as `comfyui.owners.owner_of` writes it; None without keys.
        rules: of the key; None without keys, and for what the gateway does by itself.
    """

    face: str = "prompt_sync"
    owner: str | None = None
    rules: KeyRules | None = None

    def admitted(self, request: PromptRequest) -> PromptRequest:
        """The request as this key may send it. Raises `RequestError` for what its rules do not allow."""
        self._check(request)
        return self._own(request)

    def _check(self, request: PromptRequest) -> None:
        rules = self.rules
        if rules is None:
            return
        if request.priority > rules.max_priority:
            detail = f"the key {rules.name!r} may ask for {rules.max_priority} at most (max_priority)"
            raise RequestError(f"priority: {detail}")

    def _own(self, request: PromptRequest) -> PromptRequest:
        """The request with a client id that is the key's own: no user's events go to a socket of another's."""
        extra = request.extra_data or {}
        if self.rules is None or not self.is_confined or (request.client_id is None and "client_id" not in extra):
            return request
        named = None if request.client_id is None else client_id_of(self.rules.name, request.client_id)
        kept = {name: value for name, value in extra.items() if name != "client_id"}
        extra_data = None if request.extra_data is None else kept
        return request.model_copy(update={"client_id": named, "extra_data": extra_data}).of_size(request.size)

    @property
    def is_confined(self) -> bool:
        """Whether the caller sees nothing but what the gateway has written down as its own."""
        return self.rules is not None and self.rules.role == "user"

    def sees(self, owner: str | None) -> bool:
        """Whether it may know of a job of this owner; None: of one that the gateway did not take."""
        return self.rules is None or self.rules.sees(owner)


OURS = Origin("")
