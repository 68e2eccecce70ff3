"""`ComfyUIClient`: retries, and the translation of aiohttp's errors into ours."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aioresponses import aioresponses

from comfyui.client import ComfyUIClient
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUINotFoundError,
    ComfyUIServerError,
    ComfyUIValidationError,
)
from comfyui.replies import flat_node_errors
from tests.support.mocked import MOCKED_URL


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_read_is_retried_after_a_status_502_503_or_504(
    client: ComfyUIClient, upstream: aioresponses, status: int
) -> None:
    upstream.get(f"{MOCKED_URL}/history/x", status=status)
    upstream.get(f"{MOCKED_URL}/history/x", payload={"x": {"outputs": {}}})
    assert (await client.get_history("x")) is not None


async def test_a_read_is_retried_after_a_broken_connection_and_then_fails(
    client: ComfyUIClient, upstream: aioresponses
) -> None:
    for _ in range(3):
        upstream.get(f"{MOCKED_URL}/history/x", exception=aiohttp.ServerDisconnectedError())
    with pytest.raises(ComfyUIConnectionError, match="closed without an answer") as raised:
        await client.get_history("x")
    assert raised.value.sent


@pytest.mark.parametrize("status", [400, 401, 404, 500])
async def test_other_statuses_are_not_retried(client: ComfyUIClient, upstream: aioresponses, status: int) -> None:
    upstream.get(f"{MOCKED_URL}/history/x", status=status)
    with pytest.raises(ComfyUIServerError, match=str(status)) as raised:
        await client.get_history("x")
    assert raised.value.upstream_status == status


@pytest.mark.parametrize("body", ["<html>", '{"half":', "[1]"])
async def test_an_answer_that_is_no_json_object_is_a_server_error(
    client: ComfyUIClient, upstream: aioresponses, body: str
) -> None:
    upstream.get(f"{MOCKED_URL}/history/x", body=body)
    with pytest.raises(ComfyUIServerError, match="JSON"):
        await client.get_history("x")


@pytest.mark.parametrize(
    "failure", [aiohttp.ServerDisconnectedError(), TimeoutError(), aiohttp.ClientOSError(104, "reset")]
)
async def test_a_submission_is_never_retried_and_says_that_it_may_have_arrived(
    client: ComfyUIClient, upstream: aioresponses, failure: Exception
) -> None:
    upstream.post(f"{MOCKED_URL}/prompt", exception=failure)
    upstream.post(f"{MOCKED_URL}/prompt", payload={"prompt_id": "x", "number": 1, "node_errors": {}})
    with pytest.raises(ComfyUIConnectionError) as raised:
        await client.queue_prompt({"prompt": {}})
    assert raised.value.sent


async def test_a_refusal_carries_the_node_errors(client: ComfyUIClient, upstream: aioresponses) -> None:
    body = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"},
        "node_errors": {
            "3": {"errors": [{"message": "Value not in list", "details": "sampler_name: 'nope' not in […]"}]}
        },
    }
    upstream.post(f"{MOCKED_URL}/prompt", status=400, payload=body)
    with pytest.raises(ComfyUIValidationError) as raised:
        await client.queue_prompt({"prompt": {}})
    assert raised.value.node_errors == {"3": ("Value not in list: sampler_name: 'nope' not in […]",)}
    assert raised.value.upstream == body


async def test_a_missing_file_raises_not_found(client: ComfyUIClient, upstream: aioresponses) -> None:
    upstream.get(f"{MOCKED_URL}/view?filename=a.png&subfolder=&type=output", status=404)
    with pytest.raises(ComfyUINotFoundError, match=r"a\.png"):
        async with client.view("a.png"):
            pass


async def test_a_cancelled_call_stays_cancelled(client: ComfyUIClient, upstream: aioresponses) -> None:
    upstream.get(f"{MOCKED_URL}/history/x", exception=asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await client.get_history("x")


def test_node_errors_of_an_unknown_shape_are_ignored() -> None:
    assert flat_node_errors(None) == {}
    assert flat_node_errors({"3": "?", "4": {"errors": []}}) == {"4": ()}


async def test_the_text_of_an_unexpected_status_is_shown_without_folders(
    client: ComfyUIClient, upstream: aioresponses
) -> None:
    body = "no space left on /opt/comfyui/output\nTraceback (most recent call last):"
    upstream.post(f"{MOCKED_URL}/free", status=500, body=body)
    with pytest.raises(ComfyUIServerError) as failed:
        await client.free()
    assert failed.value.detail == "POST /free: ComfyUI answered HTTP 500: no space left on output"
