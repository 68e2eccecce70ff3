"""Results as the journal keeps them, and the answers that are made from them, whatever their size."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import orjson
import pytest

from comfyui.jobs.stored import files_made, large_result_to_bytes, result_from_bytes, result_to_bytes
from comfyui.models import (
    DeliveredFile,
    Delivery,
    ImageConversion,
    OutputFile,
    OutputPlace,
    PromptResult,
    Timings,
)
from comfyui.outputs.delivery import Deliverer, DeliveryOptions, Order
from comfyui.outputs.files import OutputFiles
from comfyui.outputs.history import files_of
from comfyui.transport.body import OpenBody
from comfyui.web.api.rendering import JobRenderer
from comfyui.web.front.keys import KeyRing
from comfyui.web.front.tickets import Tickets
from tests.support.journals import CALL

_SMALL = {"9": {"images": [{"filename": "a.png", "subfolder": "s", "type": "temp"}], "text": ["a\nb"]}}
_LARGE = {**_SMALL, "10": {"text": ["x" * 100] * 480_000}}
_HELD_UP_S = 0.1
_TRIES = 5


def _result(outputs: dict[str, Any], **more: Any) -> PromptResult:
    return PromptResult("p", "gpu-1", outputs, files_of(outputs), Timings(1, 2, 3), {"4": ("no",)}, **more)


def _no_file(_result: PromptResult, _file: OutputFile) -> AbstractAsyncContextManager[OpenBody]:
    raise AssertionError("no file is opened")


def _deliverer() -> Deliverer:
    return Deliverer(OutputFiles(_no_file), DeliveryOptions())


@pytest.mark.parametrize(
    "delivery",
    [
        None,
        Delivery(None, None, (DeliveredFile({"filename": "a.png", "content_type": "image/png"}, "b", "k", 7),)),
        Delivery(
            OutputPlace(store="s3", bucket="b", presign_seconds=60),
            ImageConversion(format="webp", quality=80),
            (DeliveredFile(error="away"),),
        ),
    ],
)
def test_a_result_is_read_as_it_was_written(delivery: Delivery | None) -> None:
    result = _result(_SMALL, delivery=delivery, simulated=True)
    assert result_from_bytes("p", result_to_bytes(result)) == result
    without = result_from_bytes("p", result_to_bytes(result), with_outputs=False)
    assert (without.files, without.outputs, without.delivery) == (result.files, {}, delivery)


def test_the_result_of_a_named_call_lists_only_its_named_outputs_but_keeps_all() -> None:
    outputs = {**_SMALL, "4": {"images": [{"filename": "b.png", "subfolder": "", "type": "output"}]}}
    result = _result(outputs).of_call(CALL)
    assert [file.node_id for file in result.files] == ["9"]
    assert set(result.shown_outputs) == {"9"}
    assert result_from_bytes("p", result_to_bytes(result)) == result
    assert result_from_bytes("p", result_to_bytes(result)).outputs == outputs
    assert {made.place for made in files_made(result, kept=True)} == {"temp/s/a.png", "output//b.png"}
    whole = replace(CALL, outputs={})
    assert [file.node_id for file in _result(outputs).of_call(whole).files] == ["4", "9"]


async def test_the_answer_of_a_named_call_names_the_workflow_and_the_output() -> None:
    deliverer = _deliverer()
    result = _result({**_SMALL, "4": {"text": ["x"]}}).of_call(CALL)
    entries = await deliverer.entries(result, Order(), deadline=asyncio.get_running_loop().time() + 30)
    said = orjson.loads(b"".join([piece async for piece in deliverer.json(result, entries, Order())]))
    used = {"prompt": "a fox", "strength": 0.5, "seed": 2**53 - 1}
    assert said["workflow"] == {"name": "portrait", "version": "a" * 64, "parameters": used, "ignored": ["extra"]}
    assert [(file["node_id"], file["output"]) for file in said["images"]] == [("9", "picture")]
    assert set(said["outputs"]) == {"9"}


async def test_a_large_result_is_written_with_the_same_bytes_as_a_small_one() -> None:
    assert await large_result_to_bytes(_result(_SMALL)) is None
    result = _result({**_SMALL, "10": {"text": ["x" * 100] * 5_000}})
    assert await large_result_to_bytes(result) == result_to_bytes(result)


@pytest.mark.alone
async def test_a_result_of_fifty_megabytes_delays_no_other_request() -> None:
    result = _result(_LARGE)
    kept = await large_result_to_bytes(result)
    assert kept is not None
    assert len(kept) > 49_000_000
    renderer = JobRenderer(_deliverer(), Tickets(KeyRing([], session_s=1)))

    async def answered() -> None:
        deliverer = _deliverer()
        entries = await deliverer.entries(result, Order(), deadline=0)
        size = 0
        async for piece in deliverer.json(result, entries, Order()):
            size += len(piece)
        assert size > 49_000_000

    async def told() -> None:
        assert orjson.loads(await renderer.succeeded("p", None, kept))["outputs_omitted"] is True

    await _assert_not_held_up(lambda: large_result_to_bytes(result))
    await _assert_not_held_up(told)
    await _assert_not_held_up(answered)


async def _assert_not_held_up(work: Callable[[], Awaitable[object]]) -> None:
    gaps: list[float] = []
    while not gaps or (min(gaps) > _HELD_UP_S and len(gaps) < _TRIES):
        gaps.append(await _longest_gap_s(work))
    assert min(gaps) <= _HELD_UP_S


async def _longest_gap_s(work: Callable[[], Awaitable[object]]) -> float:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await work()
    await asyncio.sleep(0)
    ticking.cancel()
    return longest
