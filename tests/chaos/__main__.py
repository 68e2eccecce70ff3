"""`make chaos`: many prompts from many clients through two engines, while faults strike at random.

Promises, checked at the end: every prompt was answered; none was executed twice but by a stated policy (it was
forgotten, lost with its server, or its cached file was gone, each counted by the gateway); nobody got another's files.
Exit status 1 when one is broken. The same ``--seed`` gives the same faults in the same order.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import aiohttp
import structlog
from PIL import Image

from comfyui.engine import Engine, EngineOptions
from tests.support.running import RunningGateway, invert_workflow, running_gateway

PACE_S = 0.25
"""Mean time between two faults."""

FAULTS: tuple[dict[str, Any], ...] = (
    {"prompt_reply_lost_before_queue": {"times": 1}},
    {"prompt_reply_lost_after_queue": {"times": 1}},
    {"half_json": {"route": "/prompt", "method": "POST", "times": 1}},
    {"status": {"route": "/history/*", "status": 500, "times": 2}},
    {"status": {"route": "/queue", "status": 500, "times": 2}},
    {"half_json": {"route": "/history/*", "times": 2}},
    {"hang": {"route": "/history/*", "seconds": 5, "times": 1}},
    {"delay": {"route": "/prompt", "method": "POST", "seconds": 0.3, "times": 2}},
    {"cut": {"route": "/history/*", "times": 3}},
    {"ws_drop": {"abrupt": True}},
    {"ws_drop": {}},
    {"ws_refuse": {"times": 2}},
    {"ws_deaf_reconnect": {"times": 1}},
    {"output_deleted": {"times": 1}},
    {"view_cut": {"times": 1}},
    {"forget": {}},
)


@dataclass
class Outcome:
    """What the callers saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong_files: list[str] = field(default_factory=list)
    partial: int = 0
    seconds: list[float] = field(default_factory=list)
    prompt_ids: set[str] = field(default_factory=set)


async def caller(gateway: RunningGateway, numbers: AsyncIterator[int], outcome: Outcome, seed: int) -> None:
    """Post one workflow after the other; the colour of each tells whose picture comes back."""
    async for number in numbers:
        color = (number * 2654435761 + seed) % 0xFFFFFF
        workflow = invert_workflow(color, prefix=f"chaos_{number}")
        workflow["4"] = {"class_type": "SimulatedSleep", "inputs": {"value": ["2", 0], "seconds": 0.05, "steps": 1}}
        workflow["3"]["inputs"]["images"] = ["4", 0]
        prompt_id = str(UUID(int=random.Random(f"{seed}/{number}").getrandbits(128), version=4))  # noqa: S311
        started = time.monotonic()
        try:
            status, body = await gateway.prompt_sync(
                workflow, timeout=50, prompt_id=prompt_id, return_image_base64=True
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            outcome.statuses[f"no answer: {type(error).__name__}"] += 1
            continue
        outcome.seconds.append(time.monotonic() - started)
        outcome.statuses[str(status) if status == 200 else f"{status} {body.get('type')}: {body.get('detail')}"] += 1
        outcome.prompt_ids.add(prompt_id)
        if status == 200:
            check_files(number, color, body, outcome)


def check_files(number: int, color: int, body: dict[str, Any], outcome: Outcome) -> None:
    expected = tuple(255 - (color >> shift & 0xFF) for shift in (16, 8, 0))
    if len(body["images"]) != 1:
        outcome.wrong_files.append(f"{number}: {len(body['images'])} files")
        return
    file = body["images"][0]
    if "error" in file:
        outcome.partial += 1
        return
    with Image.open(io.BytesIO(base64.b64decode(file["base64"]))) as image:
        if image.getpixel((0, 0)) != expected or not file["filename"].startswith(f"chaos_{number}_"):
            outcome.wrong_files.append(f"{number}: {file['filename']} {image.getpixel((0, 0))}")


async def strike(engines: list[Engine], seed: int, struck: Counter[str]) -> None:
    """Faults at random, until cancelled."""
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    while True:
        await asyncio.sleep(chance.expovariate(1 / PACE_S))
        engine = chance.choice(engines)
        fault = chance.choice(FAULTS)
        struck[next(iter(fault))] += 1
        await engine.set_faults(fault)


async def run(prompts: int, clients: int, seconds: float, seed: int) -> tuple[Outcome, Counter[str], dict[str, Any]]:
    outcome, struck = Outcome(), Counter[str]()
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine(EngineOptions())) for _ in range(2)]
        addresses = [engine.url for engine in engines]
        gateway = await stack.enter_async_context(
            running_gateway(*addresses, http_timeout=2, lost_prompt_retries=5, default_timeout=50)
        )
        numbers = Numbers(prompts, seconds)
        striking = asyncio.create_task(strike(engines, seed, struck))
        await asyncio.gather(*(caller(gateway, numbers.take(), outcome, seed) for _ in range(clients)))
        striking.cancel()
        for engine in engines:
            engine.faults.clear()
        executed = Counter[str]()
        for engine in engines:
            executed.update(engine.stats.show()["executed"])
        registry = gateway.handler.metrics.registry
        again = {
            reason: int(registry.get_sample_value("comfyui_gateway_resubmissions_total", {"reason": reason}) or 0)
            for reason in ("prompt_lost", "output_gone", "reply_lost")
        }
    twice = sum(count - 1 for count in executed.values() if count > 1)
    return outcome, struck, {"executed": len(executed), "executed_again": twice, **again}


class Numbers:
    """Numbers 0…count-1, spread over `seconds`, each taken by one caller."""

    def __init__(self, count: int, seconds: float) -> None:
        self._next = 0
        self._count = count
        self._started = time.monotonic()
        self._each_s = seconds / count

    async def take(self) -> AsyncIterator[int]:
        while self._next < self._count:
            number, self._next = self._next, self._next + 1
            await asyncio.sleep(max(0.0, self._started + number * self._each_s - time.monotonic()))
            yield number


def report(outcome: Outcome, struck: Counter[str], counts: dict[str, Any], prompts: int) -> bool:
    """Print the summary; True when every promise held."""
    answered = sum(count for status, count in outcome.statuses.items() if status[0].isdigit())
    print(f"faults     {sum(struck.values())}: {dict(struck.most_common())}")
    print(f"answers    {dict(outcome.statuses.most_common())}")
    print(f"partial    {outcome.partial} (their file was deleted or cut by a fault)")
    print(f"executed   {counts}")
    seconds = sorted(outcome.seconds)
    print(f"seconds    p50 {seconds[len(seconds) // 2]:.2f}, p99 {seconds[int(len(seconds) * 0.99)]:.2f}")
    allowed = counts["prompt_lost"] + counts["output_gone"]
    promises = {
        f"every prompt answered ({answered} of {prompts})": answered == prompts,
        f"every answer a result ({outcome.statuses['200']} of {prompts})": outcome.statuses["200"] == prompts,
        f"none executed twice but by policy ({counts['executed_again']} again, {allowed} allowed)": counts[
            "executed_again"
        ]
        <= allowed,
        f"nobody got another's files ({len(outcome.wrong_files)} did)": not outcome.wrong_files,
    }
    for promise, held in promises.items():
        print(f"{'held  ' if held else 'BROKEN'}     {promise}")
    for wrong in outcome.wrong_files[:5]:
        print(f"           {wrong}")
    return all(promises.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", action="store_true", help="show the gateway's log lines")
    arguments = parser.parse_args()
    if not arguments.log:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    print(f"chaos      {vars(arguments)}")
    outcome, struck, counts = asyncio.run(run(arguments.prompts, arguments.clients, arguments.seconds, arguments.seed))
    return 0 if report(outcome, struck, counts, arguments.prompts) else 1


if __name__ == "__main__":
    sys.exit(main())
