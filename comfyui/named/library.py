"""`NamedWorkflows`: the workflows of a folder, which is watched, with the types that the servers' nodes give them."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from comfyui.exceptions import ComfyUIError, NamedWorkflowNotFoundError, NamedWorkflowUnusableError
from comfyui.limits import DEFAULT_LIMITS, Limits, short
from comfyui.named.files import Source, read_source, sources_in
from comfyui.named.loading import load
from comfyui.named.nodes import Nodes
from comfyui.named.parameters import NamedWorkflow, Unusable
from comfyui.offload import in_thread
from comfyui.servers.fleet import Fleet
from comfyui.servers.pool import BackendPool
from comfyui.tasks import SideTasks
from comfyui.workflows.node_definitions import ObjectInfo
from comfyui.workflows.union import union_of

_log = structlog.get_logger("gateway")
_MOST_NAMED = 3


class Definitions(Protocol):
    """The source of the servers' node definitions."""

    def known(self) -> Sequence[ObjectInfo]:
        """The last answer of each server. The objects stay the same until an answer changes."""

    def moment(self) -> object:
        """Another value when a server has come up, and may have other nodes and models than before."""

    async def ask(self) -> None:
        """Asks the servers for their present definitions; a failed request is no error."""


@dataclass(frozen=True, slots=True)
class NamedOptions:
    """How often the library looks; in seconds.

    Attributes:
        look_s: between two looks at the folder.
        fresh_s: after this time, node definitions are requested again when someone lists the workflows.
        renew_s: the same after a value was refused that they may allow by now.
        first_s: the same while no server has answered yet.
        max_bytes: of a workflow's file.
    """

    look_s: float = 1.0
    fresh_s: float = 60.0
    renew_s: float = 5.0
    first_s: float = 2.0
    max_bytes: int = 100_000_000
    limits: Limits = DEFAULT_LIMITS


DEFAULT_NAMED = NamedOptions()


class NamedWorkflows:
    """The named workflows of a folder. Use `following`, or call `look` for a folder that is not watched.

    Args:
        folder: None or a missing folder: there are no workflows.
    """

    def __init__(self, folder: Path | None, definitions: Definitions, options: NamedOptions = DEFAULT_NAMED) -> None:
        self._folder = folder
        self._definitions = definitions
        self._options = options
        self._sources: Mapping[str, Source] = {}
        self._pending: Mapping[str, Source] = {}
        self._loaded: dict[str, NamedWorkflow | Unusable] = {}
        self._listed: tuple[NamedWorkflow | Unusable, ...] = ()
        self._nodes = Nodes(None)
        self._known: Sequence[ObjectInfo] = ()
        self._asked: tuple[object, float] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._wanted = False
        self._unread: str | None = None
        self._looking = asyncio.Lock()
        self._tasks = SideTasks()
        self.generation = 0
        """A number that changes when the workflows, their files or the servers' definitions change."""

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """While open, the workflows are those of the folder. They are loaded before it opens."""
        async with self._tasks:
            await self.look(at_once=True)
            if self._folder is not None:
                self._tasks.start(self._follow(), "named workflows")
            yield

    def all(self) -> Sequence[NamedWorkflow | Unusable]:
        """All workflows, also those that cannot be called, sorted by name."""
        self._wanted = True
        return self._listed

    def get(self, name: str) -> NamedWorkflow:
        """The workflow of this name.

        Raises:
            NamedWorkflowNotFoundError: there is none; with the closest names.
            NamedWorkflowUnusableError: its file cannot be used.
            ComfyUIConnectionError: whether it can be used is not known before a server says which nodes it has.
        """
        found = self._loaded.get(name)
        if found is None:
            raise NamedWorkflowNotFoundError(f"there is no workflow {short(name)!r}{self._closest(name)}")
        if isinstance(found, Unusable):
            raise found.as_error()
        return found

    @property
    def is_typed(self) -> bool:
        """Whether some server has given its node definitions, so that the types of parameters are known."""
        return self._nodes.known

    async def renew(self) -> bool:
        """Asks the servers for their definitions, unless they were asked a moment ago; returns whether anything
        changed.

        Call it before a value is refused: a model may have come since they were asked.
        """
        before = self.generation
        is_asking = self._asking is not None and not self._asking.done()
        if is_asking or self._asked is None or time.monotonic() - self._asked[1] >= self._options.renew_s:
            await asyncio.shield(self._ask())
            await self.look()
        elif not self.is_typed:
            await self.look()
        return self.generation != before

    async def look(self, *, at_once: bool = False) -> None:
        """Applies the changes in the folder and on the servers.

        Args:
            at_once: take files as they are; else one that has changed is taken when it is the same at the next look,
                so that it is not read while it is being written.
        """
        async with self._looking:
            sources = await self._sources_now()
            settled = sources if at_once else self._settled(sources)
            known = tuple(self._definitions.known())
            is_same = len(known) == len(self._known) and all(map(_is, known, self._known))
            if settled == self._sources and (is_same or not self._sources):
                return
            nodes, classes = self._nodes, frozenset[str]()
            if not is_same:
                nodes, classes = await in_thread(_newer, known, self._nodes)
            loaded = {name: one for name, one in self._loaded.items() if name in settled}
            changed = [
                source
                for name, source in settled.items()
                if self._sources.get(name) != source or self._concerns(loaded[name], nodes, classes)
            ]
            for after in await in_thread(self._load_all, changed, nodes):
                _tell(loaded.get(after.name), after, each=not at_once)
                loaded[after.name] = after
            self._take_over(settled, loaded, known, nodes)
            if at_once and self._folder is not None:
                unusable = sum(isinstance(one, Unusable) for one in self._listed)
                _log.info("workflows.loaded", workflows=len(self._listed) - unusable, unusable=unusable)

    def _concerns(self, one: NamedWorkflow | Unusable, nodes: Nodes, classes: frozenset[str]) -> bool:
        """Whether a workflow may change with these nodes; `classes`: those whose declaration changed."""
        return nodes.known != self._nodes.known or not one.classes.isdisjoint(classes)

    async def _sources_now(self) -> Mapping[str, Source]:
        """The files of the folder; those of the last look if it cannot be read, which is logged once."""
        try:
            sources = {} if self._folder is None else await asyncio.to_thread(_looked, self._folder, self._pending)
        except OSError as error:
            if self._unread != error.strerror:
                self._unread = error.strerror
                _log.error("workflows.not_read", path=str(self._folder), reason=error.strerror)
            return self._pending
        self._unread = None
        return sources

    def _take_over(
        self,
        sources: Mapping[str, Source],
        loaded: dict[str, NamedWorkflow | Unusable],
        known: Sequence[ObjectInfo],
        nodes: Nodes,
    ) -> None:
        for name in self._loaded.keys() - loaded.keys():
            _log.info("workflow.removed", workflow=name)
        is_same = loaded.keys() == self._loaded.keys() and all(loaded[name] is self._loaded[name] for name in loaded)
        self._sources, self._loaded, self._known, self._nodes = sources, loaded, known, nodes
        if not is_same:
            self._listed = tuple(loaded[name] for name in sorted(loaded))
            self.generation += 1

    def _settled(self, sources: Mapping[str, Source]) -> Mapping[str, Source]:
        """The files without changes that are new since the last look, which stay as they were."""
        last, self._pending = self._pending, sources
        settled = {}
        for name, source in sources.items():
            if last.get(name) == source:
                settled[name] = source
            elif name in self._sources:
                settled[name] = self._sources[name]
        return settled

    def _load_all(self, sources: Sequence[Source], nodes: Nodes) -> list[NamedWorkflow | Unusable]:
        return [self._load(source, nodes) for source in sources]

    def _load(self, source: Source, nodes: Nodes) -> NamedWorkflow | Unusable:
        if source.problem:
            return Unusable(source.name, "", source.problem)
        try:
            content, sidecar = read_source(source, self._options.max_bytes)
        except NamedWorkflowUnusableError as error:
            return Unusable(source.name, "", error.detail)
        try:
            return load(source.name, content, sidecar, nodes, self._options.limits, sidecar_name=source.sidecar)
        except Exception:
            # A mistake of ours in the reading of one file ends neither the start nor the look at the others.
            _log.exception("workflow.crashed", workflow=source.name)
            return Unusable(source.name, "", "the gateway failed while it read the file; its log has the reason")

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._options.look_s)
            if self._sources and self._is_time_to_ask():
                self._ask()
            await self.look()

    def _is_time_to_ask(self) -> bool:
        """Whether a server may have news: it came up, or time has passed since a list was requested."""
        if self._asked is None or self._asked[0] != self._definitions.moment():
            return True
        passed_s = time.monotonic() - self._asked[1]
        if not self._definitions.known():
            return passed_s >= self._options.first_s
        return self._wanted and passed_s >= self._options.fresh_s

    def _ask(self) -> asyncio.Task[None]:
        if self._asking is None or self._asking.done():
            self._wanted = False
            self._asked = self._definitions.moment(), time.monotonic()
            self._asking = self._tasks.start(self._definitions.ask(), "definitions for named workflows")
        return self._asking

    def _closest(self, name: str) -> str:
        usable = [one.name for one in self._listed if isinstance(one, NamedWorkflow)]
        near = difflib.get_close_matches(name[:64], usable, n=_MOST_NAMED, cutoff=0.5)
        if near:
            return f"; did you mean {' or '.join(near)}?"
        return "; GET /workflows lists them" if usable else "; the gateway has no named workflows"


class FleetDefinitions:
    """The node definitions of a gateway's servers."""

    def __init__(self, pool: BackendPool, fleet: Fleet) -> None:
        self._pool, self._fleet = pool, fleet

    def known(self) -> Sequence[ObjectInfo]:
        return [one for backend in self._pool.backends if (one := backend.last_definitions) is not None]

    def moment(self) -> object:
        return tuple((backend.generation, backend.ready) for backend in self._pool.backends)

    async def ask(self) -> None:
        try:
            await self._fleet.definitions()
        except ComfyUIError as error:
            _log.debug("workflows.no_definitions", detail=error.detail)


def _looked(folder: Path, before: Mapping[str, Source]) -> Mapping[str, Source]:
    """The contents of the folder; unchanged ones are the same objects as in `before`, which are compared in one
    step.
    """
    found = sources_in(folder)
    return {name: old if (old := before.get(name)) == source else source for name, source in found.items()}


def _is(one: object, other: object) -> bool:
    return one is other


def _newer(known: Sequence[ObjectInfo], before: Nodes) -> tuple[Nodes, frozenset[str]]:
    """The servers' present definitions, and the classes that are declared differently than before; `before` itself if
    none is.
    """
    nodes = Nodes(known[0] if len(known) == 1 else union_of(known)) if known else Nodes(None)
    classes = nodes.changed(before)
    return (nodes, classes) if classes or nodes.known != before.known else (before, classes)


def _tell(before: NamedWorkflow | Unusable | None, after: NamedWorkflow | Unusable, *, each: bool) -> None:
    """Logs a file that cannot be used; `each`: also one that is new or has changed."""
    if isinstance(after, Unusable):
        if not (isinstance(before, Unusable) and before.problem == after.problem):
            log = _log.info if after.waits else _log.warning
            log("workflow.unusable", workflow=short(after.name), reason=after.problem)
    elif each and (before is None or before.version != after.version or isinstance(before, Unusable)):
        _log.info(
            "workflow.loaded", workflow=after.name, version=after.version[:12], warnings=list(after.warnings[:20])
        )
