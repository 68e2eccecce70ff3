"""Uploads by the routes of ComfyUI."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp

from tests.support.keys import bearer
from tests.support.running import RunningGateway


async def upload(
    gateway: RunningGateway,
    name: str,
    content: bytes,
    key: str | None = None,
    path: str = "/upload/image",
    **fields: str,
) -> tuple[int, Any]:
    """Status and answer of an upload; the answer is a text if it is not JSON."""
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", io.BytesIO(content), filename=name, content_type="image/png")
    for field, value in fields.items():
        form.add_field(field, value)
    headers = bearer(key) if key else {}
    async with gateway.http.post(path, data=form, headers=headers) as response:
        body = await response.read()
        return response.status, json.loads(body) if response.content_type == "application/json" else body.decode()
