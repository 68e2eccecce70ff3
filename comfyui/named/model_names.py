"""How named workflows are called as models of OpenAI's image API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

ModelKind = Literal["generations", "edits"]
ModelNames = Mapping[str, tuple[str, ...]]
"""Names of workflows by the name of a model; the first workflow that can do a call is used."""


def parse_models(entries: Sequence[str]) -> ModelNames:
    """Entries such as ``gpt-image-1=portrait`` as workflows by model. Raises ValueError, which names the entry."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        model, _, workflow = (part.strip() for part in entry.partition("="))
        if not model or not workflow:
            raise ValueError(f"{entry!r} must be MODEL=WORKFLOW, such as gpt-image-1=portrait")
        found[model] = (*found.get(model, ()), workflow)
    return found


def check_models(entries: tuple[str, ...]) -> tuple[str, ...]:
    """The entries, which `parse_models` can read. Raises ValueError."""
    parse_models(entries)
    return entries
