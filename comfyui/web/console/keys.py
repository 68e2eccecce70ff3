"""`/console/keys`: every key with its role and limits, and how much of them it uses now."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from comfyui.jobs.standing import KeyCounts
from comfyui.owners import HIGHEST_PRIORITY, KeyRules
from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.pages import page
from comfyui.web.front.gateway_state import GatewayState, gateway_of

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)

_NONE = KeyCounts(0, 0)


@dataclass(frozen=True, slots=True)
class ShownKey:
    """A key as the page shows it; nothing of the key itself, or of its hash, is known here.

    Attributes:
        rules: its role and limits.
        is_named: it stands in KEYS_FILE, and not in API_KEYS.
        now: how many of its jobs wait, and are on servers.
        submitted: how many submissions of the last minute count; None where `per_minute` sets no limit.
    """

    rules: KeyRules
    is_named: bool
    now: KeyCounts
    submitted: int | None

    @property
    def max_priority(self) -> int | None:
        """The highest priority that it may ask for; None: any."""
        return None if self.rules.max_priority >= HIGHEST_PRIORITY else self.rules.max_priority

    @property
    def workflows(self) -> list[str] | None:
        """The named workflows that it may run and no others; None: any workflow."""
        return None if self.rules.workflows is None else sorted(self.rules.workflows)


@router.get("/console/keys")
async def show_keys(request: Request) -> Response:
    """For keys of role `admin` and `read`; the table of rights refuses others."""
    gateway = gateway_of(request)
    keys, gone, without_key = keys_of(gateway)
    problem = None if gateway.keys_file is None else gateway.keys_file.problem
    return page(request, "keys.html", keys=keys, gone=gone, without_key=without_key, problem=problem)


def keys_of(gateway: GatewayState) -> tuple[list[ShownKey], list[tuple[str, KeyCounts]], KeyCounts]:
    """All keys in the order of their names; keys that are no more and still have jobs; jobs without a key."""
    counts = gateway.handler.standing.by_key()
    shown = [
        ShownKey(
            caller.rules,
            caller.named,
            counts.pop(caller.rules.name, _NONE),
            None if caller.rules.per_minute is None else gateway.rates.used(caller.rules),
        )
        for caller in gateway.keys.callers()
    ]
    without_key = counts.pop("", _NONE)
    return sorted(shown, key=lambda one: one.rules.name), sorted(counts.items()), without_key
