"""Comfy API v2 with the official SDK keeps the same promises in front of the engine and of a real ComfyUI."""

from __future__ import annotations

import asyncio
import io

import comfy_sdk
import pytest
from comfy_sdk.events import OutputReady, Progress, StatusChange
from PIL import Image

from tests.contract.test_gateway import fresh, slow
from tests.support.running import RunningGateway
from tests.support.v2 import comfy


async def test_an_output_file_can_be_the_input_of_the_next_workflow(gateway: RunningGateway) -> None:
    async with comfy(gateway.url) as client, asyncio.timeout(50):
        job = await client.run(client.workflows.from_json(fresh(0x2040FF)))
        assert job.status == "succeeded"
        (output,) = job.outputs
        content = await output.to_bytes()
        assert (output.node_id, output.type, output.size_bytes) == ("3", "image", len(content))
        with Image.open(io.BytesIO(content)) as image:
            assert image.convert("RGB").getpixel((0, 0)) == (0xFF - 0x20, 0xFF - 0x40, 0)
        loading = client.workflows.from_json(
            {
                "1": {
                    "class_type": "LoadImage",
                    "inputs": {"image": client.assets.from_bytes(content, filename="a.png")},
                },
                "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "v2"}},
            }
        )
        assert (await client.run(loading)).status == "succeeded"


async def test_outputs_are_reported_before_the_end(gateway: RunningGateway) -> None:
    async with comfy(gateway.url) as client, asyncio.timeout(50):
        job = await client.submit(client.workflows.from_json(fresh()))
        told = [event async for event in job.events()]
    assert told[-1] == StatusChange("succeeded")
    assert [event.output.node_id for event in told if isinstance(event, OutputReady)] == ["3"]
    values = [event.value for event in told if isinstance(event, Progress)]
    assert values == sorted(values)


async def test_running_and_waiting_jobs_can_be_cancelled(gateway: RunningGateway) -> None:
    async with comfy(gateway.url) as client, asyncio.timeout(55):
        running = await client.submit(client.workflows.from_json(slow()))
        waiting = await client.submit(client.workflows.from_json(slow()))
        while running.status == "queued":
            await running.refresh()
        await waiting.cancel()
        assert waiting.status == "canceled"
        await running.cancel()
        await running.wait()
        assert running.status == "canceled"
        assert (await waiting.refresh()).status == "canceled"
        after = await client.run(client.workflows.from_json(fresh()))
        assert after.status == "succeeded"


async def test_a_refusal_names_its_node(gateway: RunningGateway) -> None:
    unknown, bad = fresh() | {"9": {"class_type": "Nope", "inputs": {}}}, fresh()
    bad["1"]["inputs"]["width"] = -5
    async with comfy(gateway.url) as client:
        for workflow, node in ((unknown, "9"), (bad, "1")):
            with pytest.raises(comfy_sdk.InvalidWorkflow) as refused:
                await client.submit(client.workflows.from_json(workflow))
            assert refused.value.details is not None
            assert list(refused.value.details["node_errors"]) == [node]
