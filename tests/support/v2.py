"""Comfy API v2 as its callers use it: the official SDK, and requests of our own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from comfy_low.models import ErrorEnvelope
from comfy_low.models import Job as JobModel
from comfy_sdk import AsyncComfy

from tests.support.keys import bearer
from tests.support.running import RunningGateway, Workflow

JOBS = "/api/v2/jobs"


@asynccontextmanager
async def comfy(url: str, key: str | None = None) -> AsyncIterator[AsyncComfy]:
    """The SDK's client for this address."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("COMFY_BASE_URL", url)
        client = AsyncComfy(api_key=key)
    async with client:
        yield client


async def ask(
    gateway: RunningGateway, path: str, method: str = "GET", *, key: str | None = None, **request: Any
) -> tuple[int, Any]:
    """Status and JSON of one request; an error is held against the contract's envelope."""
    headers = {**request.pop("headers", {}), **(bearer(key) if key else {})}
    async with gateway.http.request(method, path, headers=headers, **request) as response:
        body = await response.json() if response.content_type == "application/json" else await response.read()
        if response.status >= 400 and method != "HEAD":
            ErrorEnvelope.model_validate(body, strict=True)
        return response.status, body


async def submit(gateway: RunningGateway, workflow: Workflow, *, key: str | None = None, **members: Any) -> Any:
    """A new job, as the gateway shows it."""
    status, body = await ask(gateway, JOBS, "POST", key=key, json={"workflow": workflow, **members})
    assert status == 201, body
    JobModel.model_validate(body)
    return body


def code_of(body: Any) -> str:
    """Of an error."""
    code: str = body["error"]["code"]
    return code
