"""`Preparation`: checks a prompt's workflow on a server, and places its files there, before the prompt is submitted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from comfyui.exceptions import ComfyUIValidationError
from comfyui.executors.assignment import Assignment
from comfyui.executors.checking import Strictness, problems_on
from comfyui.executors.made_files import Brought, MadeFiles, names_made
from comfyui.executors.own_files import check_own_files, unmarked_files
from comfyui.inputs.catalogue import Catalogue
from comfyui.inputs.plan import brought_names, has_inline_values
from comfyui.inputs.staging import InputStager
from comfyui.jobs.journal.writes import KeptUpload
from comfyui.limits import Limits
from comfyui.models import PromptRequest
from comfyui.offload import offloaded
from comfyui.owners import OwnerRules, confined_to, folder_of
from comfyui.replies import error_types
from comfyui.servers.backend import Backend
from comfyui.servers.server import Server
from comfyui.workflows.api_format import upload_inputs
from comfyui.workflows.preflight import refusal

# ComfyUI's message for an input whose file it does not have.
_PERHAPS_GONE = frozenset({"custom_validation_failed", "value_not_in_list"})


class Preparation:
    """Its arguments belong to its creator.

    Args:
        made: finds files made by prompts; None if each server knows its own.
        strictness: see `RunnerOptions.preflight`.
    """

    def __init__(
        self,
        stager: InputStager,
        catalogue: Catalogue,
        made: MadeFiles | None,
        owners: OwnerRules | None,
        strictness: Strictness | None,
        limits: Limits,
    ) -> None:
        self._stager = stager
        self._catalogue = catalogue
        self._made = made
        self._owners = owners
        self._strictness = strictness
        self._limits = limits

    def key_of(self, job: Assignment) -> str | None:
        """The name of the only key whose files the prompt may read; None if it may read all."""
        return confined_to(job.owner, self._owners)

    def names(self, job: Assignment, request: PromptRequest) -> set[str]:
        """Names of files that the server need not have: they come with the workflow, or were uploaded before."""
        return {*job.file_names, *self._named(job, request)}

    async def brings_inputs(self, job: Assignment, request: PromptRequest) -> bool:
        """Whether files come with the request, which no server has yet."""
        return bool(request.images or job.files) or await offloaded(request.size, has_inline_values, request.prompt)

    async def prepared(
        self,
        backend: Server,
        job: Assignment,
        request: PromptRequest,
        prompt: Mapping[str, Any],
        *,
        brings_inputs: bool,
    ) -> Mapping[str, Any]:
        """The workflow to submit there: `prompt`, which is the request's own or almost, with its inputs placed.

        An upload is placed with its present bytes: ComfyUI reads files when it runs a prompt, not when it is queued.

        Raises:
            ComfyUIValidationError: it names other callers' files, or this server would refuse it.
            ComfyUIError: an input cannot be placed, or the server does not answer.
        """
        key = self.key_of(job)
        if self._made is None or not names_made(prompt):
            return await self._placed(backend, job, request, prompt, Brought(), key, brings_inputs=brings_inputs)
        others = {*brought_names(request, job.file_names), *self._named(job, request)}
        async with self._made.brought(backend, prompt, key, others) as made:
            return await self._placed(backend, job, request, prompt, made, key, brings_inputs=brings_inputs)

    async def _placed(
        self,
        backend: Server,
        job: Assignment,
        request: PromptRequest,
        prompt: Mapping[str, Any],
        made: Brought,
        key: str | None,
        *,
        brings_inputs: bool,
    ) -> Mapping[str, Any]:
        named = self._named(job, request)
        names = {*job.file_names, *named, *made.names}
        if key is not None:
            known = await backend.object_info()
            await offloaded(request.size, check_own_files, request, known, key, names)
        if self._strictness is not None and isinstance(backend, Backend):
            await self._check(self._strictness, backend, request, names)
        prompt = made.renamed(prompt)
        if not (brings_inputs or named or made.uploads):
            return prompt
        widgets = await offloaded(request.size, upload_inputs, prompt, await backend.object_info())
        if prompt is not request.prompt:
            request = request.model_copy(update={"prompt": dict(prompt)})
        folder = folder_of(key) if key else ""
        with self._catalogue.held(named.values()):
            uploads = {**self._catalogue.to_place(named), **made.uploads}
            inputs = [*widgets, *unmarked_files(prompt), *(made.references if made.uploads else ())]
            return await self._stager.stage(backend, request, inputs, job.files, folder, uploads)

    def places_anew(self, server: Server, refused: ComfyUIValidationError) -> bool:
        """Whether the server may have refused the workflow because it has lost a file that it was given: it then gets
        all of them again.
        """
        types = error_types((refused.upstream or {}).get("node_errors"))
        return not types.isdisjoint(_PERHAPS_GONE) and self._stager.forget(server)

    def _named(self, job: Assignment, request: PromptRequest) -> Mapping[str, KeptUpload]:
        """The uploads that the workflow names, besides the files that come with it."""
        return self._catalogue.named_in(request.prompt, job.owner, brought_names(request, job.file_names))

    async def _check(
        self, strictness: Strictness, backend: Backend, request: PromptRequest, names: Collection[str]
    ) -> None:
        """Raises `ComfyUIValidationError` if this server would refuse the workflow."""
        problems = await problems_on(backend, request, names, strictness=strictness, limits=self._limits)
        if found := refusal(problems):
            raise found
