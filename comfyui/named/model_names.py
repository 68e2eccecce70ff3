"""How named workflows are called as models of OpenAI's image API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

ModelKind = Literal["generations", "edits"]


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The models that stand for workflows, besides the workflows' own names.

    Attributes:
        aliases: workflows by the name of a model; the first one that can do the call is used.
        defaults: the workflow for a call that names no model.
    """

    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[ModelKind, str] = field(default_factory=dict)


def parse_models(entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
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
