"""A job that is run again: a new job with the request of another one, which goes the way of any submission."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from fastapi import Request

from comfyui.exceptions import ComfyUIConflictError, NamedWorkflowForbiddenError
from comfyui.inputs.content import Content, SpooledFiles
from comfyui.inputs.decoding import base64_of, head_of_data_uri, is_data_uri
from comfyui.inputs.plan import field_of, image_field, is_url, named_by_hash
from comfyui.jobs.inputs import StoredFiles
from comfyui.jobs.stored import request_of
from comfyui.limits import named
from comfyui.models import InputFile, PromptRequest
from comfyui.offload import in_thread, offloaded
from comfyui.outputs.delivery import Order
from comfyui.web.api.named_runs import named_of
from comfyui.web.console.job_found import Found
from comfyui.web.console.run_kept import FilesOfStore
from comfyui.web.console.texts import TEXTS
from comfyui.web.console.viewer import Visitor
from comfyui.web.front.gateway_state import gateway_of

Change = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Makes another graph from the graph that was sent."""
_MISSING = named_by_hash("")


async def run_again(request: Request, visitor: Visitor, found: Found, change: Change | None = None) -> str:
    """The id of a new job of the visitor's. It has no webhook, and no client that hears of it.

    Args:
        change: makes its graph; None: it is the same.

    Raises:
        ComfyUIConflictError: the request, or an input of it, is not kept any more.
        NamedWorkflowForbiddenError: the visitor's key may run named workflows only, and not this.
        ComfyUIError: it is not taken.
    """
    gateway, record = gateway_of(request), found.record
    body = None if record is None else await gateway.handler.journal.body_of(found.prompt_id)
    if record is None or body is None:
        raise ComfyUIConflictError(TEXTS.job.no_body, prompt_id=found.prompt_id)
    _check_may_run(request, visitor, found, changed=change is not None)
    posted = await offloaded(len(body), request_of, body)
    if change is not None:
        prompt = await offloaded(len(body), change, posted.prompt)
        posted = posted.model_copy(update={"prompt": prompt})
    with _inputs_of(gateway.handler.queue.files_of(record)) as inputs:
        posted, files = await inputs.restored(posted)
        rules = visitor.origin.rules
        priority = posted.priority if rules is None else min(posted.priority, rules.max_priority)
        posted = posted.without_order().model_copy(update={"client_id": None, "priority": priority})
        posted = posted.of_size(len(body)).of_named(record.call if change is None else None)
        gateway.deliverer.check(Order.of(posted))
        prompt_id = str(uuid4())
        await gateway.handler.submit_async(posted, files, fresh_id=prompt_id, origin=visitor.origin, wait_s=0)
    return prompt_id


def _check_may_run(request: Request, visitor: Visitor, found: Found, *, changed: bool) -> None:
    """A key that may run named workflows only may send no graph, and what was sent before it had that limit is one."""
    rules, call = visitor.origin.rules, found.record.call if found.record is not None else None
    if rules is None or rules.workflows is None:
        return
    if call is None or changed:
        raise NamedWorkflowForbiddenError(f"the key {rules.name!r} may run named workflows only")
    if named_of(request, call.name).version != call.version:
        raise ComfyUIConflictError(TEXTS.job.other_version.format(name=call.name))


class _Inputs:
    """The inputs that a job has in the store."""

    def __init__(self, stored: StoredFiles | None) -> None:
        self._stored = stored

    async def restored(self, posted: PromptRequest) -> tuple[PromptRequest, SpooledFiles | None]:
        """The request as it was sent at first, and the files that came with it. Raises `ComfyUIConflictError`."""
        if self._stored is None:
            return posted, None
        kept, missing = self._stored.kept, [name for name, one in self._stored.paths.items() if not one.size]
        files, images = dict(self._stored.paths), list[InputFile]()
        for index, image in enumerate(posted.images):
            content = kept.get(image_field(index))
            if content is not None and content.size:
                files[f"{image.subfolder}/{image.name}" if image.subfolder else image.name] = content
            elif image.image.startswith(_MISSING):
                missing.append(image.name)
            else:
                images.append(image)
        prompt, lost = await self._with_texts(posted.prompt)
        if missing or lost:
            shown = named([*missing, *lost], len(missing) + len(lost))
            raise ComfyUIConflictError(TEXTS.job.no_inputs.format(names=shown))
        restored = posted.model_copy(update={"prompt": prompt, "images": tuple(images)})
        return restored, FilesOfStore(self._stored, files) if files else None

    async def _with_texts(self, prompt: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The graph with the data URIs that it came with, and those of them that are gone."""
        found, lost = dict(prompt), []
        for node_id, node in prompt.items():
            for name, value in node["inputs"].items():
                content = self._stored.kept.get(field_of(node_id, name)) if self._stored is not None else None
                if content is None or not isinstance(value, str) or is_url(value) or not _is_short(value, content):
                    continue
                if not content.size:
                    lost.append(field_of(node_id, name))
                    continue
                pieces = [piece async for piece in content.chunks()]
                text = head_of_data_uri(value) + await in_thread(base64_of, b"".join(pieces))
                found[node_id] = {**found[node_id], "inputs": {**found[node_id]["inputs"], name: text}}
        return found, lost


def _is_short(value: str, content: Content) -> bool:
    """Whether it still stands for what was there: a form may have put something else in its place."""
    return is_data_uri(value) and value.endswith(named_by_hash(content.digest))


@contextmanager
def _inputs_of(stored: StoredFiles | None) -> Iterator[_Inputs]:
    """Inside the block they stay in the store."""
    if stored is None:
        yield _Inputs(None)
        return
    stored.hold()
    try:
        yield _Inputs(stored)
    finally:
        stored.release()
