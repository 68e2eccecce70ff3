"""`Assets`: all that Comfy API v2 needs of assets, made of the parts of the gateway."""

from __future__ import annotations

import time
from dataclasses import dataclass

from comfyui.assets.job_outputs import JobOutputs
from comfyui.assets.resolving import AssetReferences
from comfyui.assets.uploaded import Clock, UploadedAssets
from comfyui.executors.made_files import MadeFiles
from comfyui.inputs.store import InputStore
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.standing import StandingJobs
from comfyui.jobs.uploads import Uploads
from comfyui.servers.pool import BackendPool


@dataclass(frozen=True, slots=True)
class Assets:
    """`uploaded`: what came by requests; `outputs`: what jobs have made; `references`: both in workflows."""

    uploaded: UploadedAssets
    outputs: JobOutputs
    references: AssetReferences


def assets_of(
    journal: Journal,
    store: InputStore,
    uploads: Uploads,
    standing: StandingJobs,
    pool: BackendPool,
    made: MadeFiles | None,
    *,
    keep_s: float,
    clock: Clock = time.time,
) -> Assets:
    """The parts belong to whoever made them. `keep_s`: see `UploadedAssets`."""
    uploaded = UploadedAssets(journal, store, uploads, keep_s=keep_s, clock=clock)
    outputs = JobOutputs(journal, standing, pool, made)
    return Assets(uploaded, outputs, AssetReferences(uploaded, outputs, store, uploads, merged=made is not None))
