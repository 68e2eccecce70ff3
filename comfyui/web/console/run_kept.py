"""Files of a job that the gateway still has, so that a form that begins with the job's values need not send them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from comfyui.exceptions import ParametersError
from comfyui.inputs.content import Content, SpooledFiles
from comfyui.inputs.plan import image_field
from comfyui.jobs.inputs import StoredFiles
from comfyui.jobs.journal.records import JobRecord
from comfyui.jobs.stored import request_of
from comfyui.named.parameters import NamedWorkflow
from comfyui.named_call import file_name, parameter_of
from comfyui.offload import offloaded
from comfyui.web.console.texts import TEXTS
from comfyui.web.front.gateway_state import GatewayState


@dataclass(frozen=True, slots=True)
class KeptFiles:
    """By parameter the files of a job that are there still. Who uses them holds `stored` meanwhile."""

    stored: StoredFiles
    contents: Mapping[str, Content]

    def names(self, wanted: Collection[str]) -> dict[str, str]:
        """By parameter the name under which a workflow refers to its file. Raises `ParametersError` for one that is
        not there any more."""
        if gone := [name for name in wanted if name not in self.contents]:
            raise ParametersError({name: {"message": TEXTS.run.gone} for name in gone})
        found = {name: self.contents[name] for name in wanted}
        return {name: file_name(name, one.digest, one.extension) for name, one in found.items()}


async def kept_files(gateway: GatewayState, record: JobRecord, workflow: NamedWorkflow) -> KeptFiles | None:
    """The files with which a named workflow was run; None where it had none. Raises `JournalError`."""
    stored = gateway.handler.queue.files_of(record)
    if stored is None:
        return None
    found = {parameter_of(name): content for name, content in stored.paths.items()}
    if stored.kept and (body := await gateway.handler.journal.body_of(record.prompt_id)) is not None:
        posted = await offloaded(len(body), request_of, body)
        for index, image in enumerate(posted.images):
            if (content := stored.kept.get(image_field(index))) is not None:
                found[parameter_of(image.name)] = content
    files = {one.name for one in workflow.parameters if one.kind == "file"}
    return KeptFiles(stored, {name: one for name, one in found.items() if name in files and one.size})


class FilesOfStore(SpooledFiles):
    """Files of the store of inputs, as if they came with the request, and beside them what came with it.

    Args:
        contents: by the name that the request has for the file; `stored` keeps them there.
        sent: what came with the request; None where nothing did.
    """

    def __init__(self, stored: StoredFiles, contents: Mapping[str, Content], sent: SpooledFiles | None = None) -> None:
        paths = {name: one.source for name, one in contents.items() if isinstance(one.source, Path)}
        digests = {name: contents[name].digest for name in paths}
        if sent is not None:
            paths, digests = {**paths, **sent.paths}, {**digests, **sent.digests}
        super().__init__(Path(), paths, digests)
        self._stored, self._sent = stored, sent

    def hold(self) -> None:
        self._stored.hold()
        if self._sent is not None:
            self._sent.hold()

    def release(self) -> None:
        self._stored.release()
        if self._sent is not None:
            self._sent.release()
