"""`Assets`: all that Comfy API v2 needs of assets, made of the parts of the gateway."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from comfyui.assets.fresh_jobs import FreshJobs
from comfyui.assets.job_outputs import JobOutputs
from comfyui.assets.resolving import AssetReferences
from comfyui.assets.uploaded import Clock, UploadedAssets
from comfyui.executors.made_files import MadeFiles
from comfyui.inputs.store import InputStore
from comfyui.jobs.job import Job
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.standing import StandingJobs
from comfyui.jobs.uploads import Uploads
from comfyui.servers.pool import BackendPool


@dataclass(frozen=True, slots=True)
class Assets:
    """`uploaded`: what came by requests; `outputs`: what jobs have made; `fresh`: the jobs that were submitted a moment
    ago; `references`: uploads and outputs in workflows."""

    uploaded: UploadedAssets
    outputs: JobOutputs
    fresh: FreshJobs
    references: AssetReferences


def assets_of(
    journal: Journal,
    store: InputStore,
    uploads: Uploads,
    standing: StandingJobs,
    pool: BackendPool,
    made: MadeFiles | None,
    let_go: Callable[[Job], None],
    *,
    keep_s: float,
    clock: Clock = time.time,
) -> Assets:
    """The parts belong to their creators. `keep_s`: see `UploadedAssets`; `let_go`: see `FreshJobs`."""
    uploaded = UploadedAssets(journal, store, uploads, keep_s=keep_s, clock=clock)
    outputs = JobOutputs(journal, standing, pool, made)
    references = AssetReferences(uploaded, outputs, store, uploads, merged=made is not None)
    return Assets(uploaded, outputs, FreshJobs(outputs, let_go), references)
