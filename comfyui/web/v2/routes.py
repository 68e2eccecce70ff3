"""The routes of Comfy API v2 that are ours; every other path below ``/api/v2`` is ComfyUI's.

They stand in no document of ours: the contract has its own.
"""

from __future__ import annotations

from fastapi import APIRouter

from comfyui.web.v2 import assets, events, jobs

router = APIRouter()

for path, method, endpoint in (
    ("/jobs", "POST", jobs.submit),
    ("/jobs", "GET", jobs.jobs),
    ("/jobs/{prompt_id}", "GET", jobs.job),
    ("/jobs/{prompt_id}/workflow", "GET", jobs.workflow),
    ("/jobs/{prompt_id}/events", "GET", events.events),
    ("/jobs/{prompt_id}/logs", "GET", jobs.logs),
    ("/jobs/{prompt_id}/cancel", "POST", jobs.cancel),
    ("/assets", "POST", assets.upload),
    ("/assets/from-hash", "POST", assets.from_hash),
    ("/assets/by-hash/{hash}", "HEAD", assets.by_hash),
    ("/assets/{asset_id}", "GET", assets.asset),
    ("/assets/{asset_id}", "DELETE", assets.delete),
    ("/assets/{asset_id}/content", "GET", assets.content),
    ("/health", "GET", jobs.health),
):
    router.add_route(f"/api/v2{path}", endpoint, methods=[method], include_in_schema=False)
