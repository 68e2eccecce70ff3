"""The outputs of a job, as its page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from comfyui.assets.outputs import outputs_of
from comfyui.limits import short
from comfyui.models import OutputFile, PromptResult
from comfyui.offload import offloaded
from comfyui.web.console.files import file_path, kind_of, thumbnail_path
from comfyui.web.console.job_found import Found
from comfyui.web.front.gateway_state import gateway_of
from comfyui.workflows.api_format import node_title

_MOST = 500
_LONGEST_TEXT = 20_000
# Bytes of what one node has told or so, as work.
_NODE_BYTES = 1000


@dataclass(frozen=True, slots=True)
class Made:
    """One output of a job.

    Attributes:
        kind: how it is shown: as ``image``, ``video``, ``audio`` or ``text``, or as a ``file`` by its name.
        path: below the root; "" for a text.
        thumbnail: the path of its small picture; "" where there is none.
        node: the title of the node that made it, or the name of a workflow's output.
        size: in bytes; 0 where that is not known.
        problem: why it is not in the object store, where it was to be.
    """

    name: str
    kind: str
    content_type: str
    path: str
    node: str
    thumbnail: str = ""
    text: str = ""
    size: int = 0
    problem: str = ""


async def made_by(request: Request, found: Found) -> list[Made]:
    """The outputs of a job that has ended, at most 500, in the order of ``console/files/{id}/``."""
    gateway, record = gateway_of(request), found.record
    if record is None:
        return await _of_comfyui(found)
    if not record.state.is_end:
        return []  # until then it is not written down that cached files are this job's, too
    made = await gateway.assets.outputs.of(record)
    problems = _problems(found.result)
    names: Mapping[str, str] = record.call.outputs if record.call is not None else {}
    shown = []
    for index, output in enumerate(made.outputs[:_MOST]):
        stored = made.stored.get(output.id)
        one = Made(
            name=output.name,
            kind=kind_of(output),
            content_type=output.content_type,
            path="" if output.file is None else file_path(found.prompt_id, index),
            node=names.get(output.node_id) or node_title(found.prompt, output.node_id),
            thumbnail=thumbnail_path(gateway, found.prompt_id, index, output),
            text=short(output.text, _LONGEST_TEXT),
            size=stored.size if stored is not None else 0,
            problem=problems.get(output.file, "") if output.file is not None else "",
        )
        shown.append(one)
    return shown


def _problems(result: PromptResult | None) -> Mapping[OutputFile, str]:
    if result is None or result.delivery is None:
        return {}
    pairs = zip(result.files, result.delivery.files, strict=True)
    return {file: delivered.error for file, delivered in pairs if delivered.error}


async def _of_comfyui(found: Found) -> list[Made]:
    """The outputs of a prompt that is in no journal: ComfyUI itself has its files, under their own names."""
    outputs = found.result.outputs if found.result is not None else {}
    made = await offloaded(len(outputs) * _NODE_BYTES, outputs_of, found.prompt_id, outputs)
    return [
        Made(
            name=one.name,
            kind="text" if one.file is None else "file",
            content_type=one.content_type,
            path="" if one.file is None else one.file.url[1:],
            node=node_title(found.prompt, one.node_id),
            text=short(one.text, _LONGEST_TEXT),
        )
        for one in made[:_MOST]
    ]
