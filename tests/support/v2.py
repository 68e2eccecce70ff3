"""Comfy API v2 as its callers use it: with the official SDK, and with plain requests."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from comfy_low.models import Asset as AssetModel
from comfy_low.models import Job as JobModel
from comfy_sdk import AsyncComfy

from tests.support.keys import bearer
from tests.support.processes import GatewayProcess
from tests.support.running import RunningGateway, Workflow, until
from tests.support.target import node
from tests.support.v2_contract import check_answer

Served = RunningGateway | GatewayProcess
JOBS = "/api/v2/jobs"
ASSETS = "/api/v2/assets"
ENDS = {"succeeded", "failed", "canceled", "expired"}


@asynccontextmanager
async def comfy(url: str, key: str | None = None) -> AsyncIterator[AsyncComfy]:
    """The SDK's client for this address."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("COMFY_BASE_URL", url)
        client = AsyncComfy(api_key=key)
    async with client:
        yield client


async def ask(
    gateway: Served, path: str, method: str = "GET", *, key: str | None = None, **request: Any
) -> tuple[int, Any]:
    """Status and JSON of one request, checked against the contract."""
    headers = {**request.pop("headers", {}), **(bearer(key) if key else {})}
    async with gateway.http.request(method, path, headers=headers, **request) as response:
        body = await response.json() if response.content_type == "application/json" else await response.read()
        if method != "HEAD" and path.startswith("/api/v2/"):
            check_answer(method, path, response.status, body)
        return response.status, body


async def submit(gateway: Served, workflow: Workflow, *, key: str | None = None, **members: Any) -> Any:
    """Submits a job; returns the gateway's answer."""
    status, body = await ask(gateway, JOBS, "POST", key=key, json={"workflow": workflow, **members})
    assert status == 201, body
    JobModel.model_validate(body)
    return body


def asset_reference(asset_id: str | None, **more: Any) -> dict[str, Any]:
    """An input of a workflow that names an asset."""
    return {"__type": "core/ASSET", "info": {"id": asset_id, **more}}


def reading(asset: Any) -> Workflow:
    """A workflow that loads a picture, and saves it again."""
    return {
        "1": node("LoadImage", image=asset),
        "2": node("SaveImage", images=["1", 0], filename_prefix="read"),
    }


def code_of(body: Any) -> str:
    """The code of an error."""
    code: str = body["error"]["code"]
    return code


async def until_ended(gateway: Served, job: Any, *, key: str | None = None) -> Any:
    """Waits for the end of the job and returns it."""

    async def look() -> Any:
        status, body = await ask(gateway, f"{JOBS}/{job['id']}", key=key)
        assert status == 200, body
        JobModel.model_validate(body)
        return body

    return await until(look, lambda seen: seen["status"] in ENDS, timeout_s=30)


def form(
    content: bytes, file_path: str | None, *, file_first: bool = False, tags: Sequence[str] = (), **fields: str | None
) -> aiohttp.FormData:
    """The form of an upload, without fields that are None."""
    data = aiohttp.FormData(quote_fields=False)
    texts: dict[str, str | None] = {"content_type": "text/plain", "file_path": file_path, **fields}
    if file_first:
        data.add_field("file", io.BytesIO(content), filename=file_path or "x", content_type="text/plain")
    for name, value in texts.items():
        if value is not None:
            data.add_field(name, value)
    for tag in tags:
        data.add_field("tags", tag)
    if not file_first:
        data.add_field("file", io.BytesIO(content), filename=file_path or "x", content_type="text/plain")
    return data


async def upload(
    gateway: Served, content: bytes, file_path: str | None, *, key: str | None = None, **fields: Any
) -> tuple[int, Any]:
    """Status and JSON of an upload; an asset is checked against the contract's model."""
    status, body = await ask(gateway, ASSETS, "POST", key=key, data=form(content, file_path, **fields))
    if status < 300:
        AssetModel.model_validate(body)
    return status, body
