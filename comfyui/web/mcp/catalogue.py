"""The tools of named workflows: their names and descriptions."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request
from mcp_types import Tool, ToolAnnotations

from comfyui.named.parameters import NamedWorkflow, Unusable
from comfyui.web.api.named_runs import seen_files
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.request_state import state_of

_NO_PART_OF_A_NAME = re.compile(r"[^a-z0-9_]")
_LONGEST_NAME = 64
_LONGEST_DESCRIPTION = 1000
_DIGITS = 6
# Sets of workflows that keys have, whose catalogues are kept.
_MOST_KEPT = 64


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The tools of one set of workflows.

    Attributes:
        tools: of the workflows that have one.
        workflows: the names of these workflows by the names of their tools, and of those whose files cannot be used: a
            client may have listed a tool before its file changed.
        seen: all workflows, also those without a tool.
    """

    tools: tuple[Tool, ...]
    workflows: Mapping[str, str]
    seen: tuple[NamedWorkflow, ...]


class Catalogues:
    """Makes them, and keeps them until the workflows change.

    Args:
        most: of the tools in a catalogue.
        reserved: the names of our own tools.
    """

    def __init__(self, most: int, reserved: Collection[str]) -> None:
        self._most = most
        self._reserved = reserved
        self._generation: int | None = None
        self._names: Mapping[str, str] = {}
        self._kept: dict[frozenset[str] | None, Catalogue] = {}

    def of(self, request: Request) -> Catalogue:
        """The tools of the workflows that the caller's key may run."""
        named = gateway_of(request).named
        if named.generation != self._generation:
            self._generation = named.generation
            # Named among all workflows, not the key's: the same name is the same workflow for every caller.
            self._names = tool_names([one.name for one in named.all()], self._reserved)
            self._kept.clear()
        caller = state_of(request.scope).caller
        allowed = None if caller is None else caller.rules.workflows
        if (found := self._kept.get(allowed)) is None:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            found = self._kept[allowed] = self._made(seen_files(request))
        return found

    def _made(self, files: Sequence[NamedWorkflow | Unusable]) -> Catalogue:
        seen = tuple(one for one in files if isinstance(one, NamedWorkflow))
        unusable = [one for one in files if isinstance(one, Unusable)]
        shown = seen[: self._most]
        tools = tuple(_tool(one, self._names[one.name]) for one in shown)
        listed: tuple[NamedWorkflow | Unusable, ...] = (*shown, *unusable)
        return Catalogue(tools, {self._names[one.name]: one.name for one in listed}, seen)


def tool_names(workflows: Collection[str], reserved: Collection[str]) -> dict[str, str]:
    """A tool's name for each workflow, of ``[a-z0-9_]``, by the workflow's.

    A workflow whose own name is a tool name keeps it. Others with the same name, or one of `reserved`, get a part of
    their name's hash, so that the name does not depend on the other workflows.
    """
    plain = {one: _NO_PART_OF_A_NAME.sub("_", one.lower()) for one in workflows}
    wanted = Counter(plain.values())
    own = {one for one, name in plain.items() if one == name and name not in reserved}
    return {
        one: name if one in own or (wanted[name] == 1 and name not in reserved) else _told_apart(name, one)
        for one, name in plain.items()
    }


def _told_apart(name: str, workflow: str) -> str:
    ending = f"_{hashlib.sha256(workflow.encode()).hexdigest()[:_DIGITS]}"
    return name[: _LONGEST_NAME - len(ending)] + ending


def _tool(workflow: NamedWorkflow, name: str) -> Tool:
    described = workflow.description or f"Runs the workflow {workflow.title or workflow.name}."
    return Tool(
        name=name,
        title=workflow.title or workflow.name,
        description=described[:_LONGEST_DESCRIPTION],
        input_schema=dict(workflow.schema),
        annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=True),
    )
