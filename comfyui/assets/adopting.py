"""A new asset with the bytes of a job's output, for a caller who names them by their hash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from blake3 import blake3

from comfyui.assets.job_outputs import FoundOutput, JobOutputs
from comfyui.assets.uploaded import NewAsset, UploadedAssets
from comfyui.inputs.content import Spool
from comfyui.jobs.journal.asset_writes import Asset
from comfyui.jobs.origin import Origin
from comfyui.offload import offloaded


async def adopted(
    new: NewAsset, digest: str, found: FoundOutput, outputs: JobOutputs, uploaded: UploadedAssets, origin: Origin
) -> Asset | None:
    """The asset, which stays when the job goes. None if its server no longer has the file, or has another one.

    Raises:
        ComfyUIError: the server does not answer, or as `UploadedAssets.add`.
    """
    hasher = blake3()
    async with Spool(uploaded.max_bytes) as spool:
        async with outputs.whole(found) as body:
            if body is None:
                return None
            async for chunk in body:
                await spool.write(chunk)
                await offloaded(len(chunk), hasher.update, chunk)
        if hasher.hexdigest() != digest:
            return None
        content = await spool.finish(PurePosixPath(found.output.name).suffix.lower())
        named = replace(new, content_type=new.content_type or found.output.content_type)
        return (await uploaded.add(named, content, digest, origin, moved=False))[0]
