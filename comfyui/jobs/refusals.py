"""`Refusals`: what no server would take is refused before it waits for one."""

from __future__ import annotations

import functools
from collections.abc import Collection

from comfyui.exceptions import ComfyUIError, ComfyUIValidationError
from comfyui.executors.checking import AS_COMFYUI, Strictness, problems_on
from comfyui.executors.made_files import MadeFiles
from comfyui.executors.own_files import as_seen_by
from comfyui.inputs.catalogue import Catalogue
from comfyui.jobs.abilities import Abilities
from comfyui.jobs.lines import Lane
from comfyui.jobs.origin import Origin
from comfyui.limits import Limits
from comfyui.models import PromptRequest
from comfyui.offload import offloaded
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.workflows.needs import Needs
from comfyui.workflows.preflight import refusal
from comfyui.workflows.refusals import comfyui_answer


class Refusals:
    """Holds workflows against the node definitions of all servers that may run them.

    Args:
        strictness: see `RunnerOptions.preflight`.
    """

    def __init__(
        self,
        pool: BackendPool,
        abilities: Abilities,
        catalogue: Catalogue,
        made: MadeFiles | None,
        limits: Limits,
        strictness: Strictness | None,
    ) -> None:
        self._pool = pool
        self._abilities = abilities
        self._catalogue = catalogue
        self._made = made
        self._limits = limits
        self._strictness = strictness or AS_COMFYUI

    async def check(
        self, request: PromptRequest, origin: Origin, needs: Needs, lane: Lane, files: Collection[str] = ()
    ) -> None:
        """Returns if a server may take the workflow, or if that is not known.

        Args:
            files: names of further inputs that come with it.

        Raises:
            ComfyUIValidationError: every server would refuse it; `answer` is ComfyUI's answer.
        """
        if any(not isinstance(server, Backend) for server in self._pool.servers):
            return  # it may have what we know nothing of
        able = [backend for backend in self._pool.backends if backend.name not in lane.no]
        refused: ComfyUIValidationError | None = None
        for backend in able or self._pool.ready[:1]:
            found = await self._refusal_of(backend, request, origin, files)
            if found is None:
                return
            refused = refused or found
        if refused is not None:
            raise refused.lacked_by(self._abilities.lacking(needs))

    async def _refusal_of(
        self, backend: Backend, request: PromptRequest, origin: Origin, files: Collection[str]
    ) -> ComfyUIValidationError | None:
        if not backend.ready:
            return None
        named = {*files, *self._catalogue.named_in(request.prompt, origin.owner)}
        if origin.is_confined and origin.rules is not None and self._made is not None:
            named |= await self._made.texts_in(request.prompt, origin.rules.name)
        try:
            async with backend.soon():
                problems = await problems_on(backend, request, named, strictness=self._strictness, limits=self._limits)
                known = await backend.object_info()
        except (ComfyUIError, TimeoutError):
            return None
        if origin.is_confined and origin.rules is not None:
            own = functools.partial(as_seen_by, origin.rules.name, problems, request, known, named)
            problems = await offloaded(request.size, own)
        error = refusal(problems)
        if error is not None:
            error.answer = await offloaded(request.size, comfyui_answer, problems, request.prompt, known)
        return error
