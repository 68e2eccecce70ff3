"""`make chaos`: many prompts from many clients through three servers, which misbehave, die and come back at random.

Each server is a process behind a link of its own. It is killed, stopped in order, suspended, cut off with closed or
with silent connections, and started again; meanwhile it misbehaves as ComfyUI does.

Promises, checked at the end: every prompt got a result; none was executed twice except by a stated policy (its server
forgot it or died, or its cached file was gone), which the gateway's log names and the servers count; every caller got
its own files; no server still has a prompt that no caller waits for.
Exit status 1 if a promise is broken. The same ``--seed`` gives the same faults in the same order.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
from PIL import Image
from structlog.testing import capture_logs

from config import GatewayOptions
from tests.support.fleet import Member, fleet
from tests.support.running import RunningGateway, invert_workflow, running_gateway

PACE_S = 0.25
"""Mean time between two faults."""
SERVERS = 3
TIMEOUT_S = 120.0
CLEARED_S = 20.0
"""Time after the last answer in which servers may still end prompts that no caller waits for."""
RETRIES = 5
"""How often a prompt may be lost: in one minute here, more servers die than elsewhere in a year."""

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
    failed: list[str] = field(default_factory=list)
    """Ids of the prompts that were answered with something other than a result."""


async def caller(gateway: RunningGateway, numbers: AsyncIterator[int], outcome: Outcome, seed: int) -> None:
    """Posts one workflow after the other, each in a colour of its own, so that its picture can be recognised."""
    async for number in numbers:
        color = (number * 2654435761 + seed) % 0xFFFFFF
        workflow = invert_workflow(color, prefix=f"chaos_{number}")
        workflow["4"] = {"class_type": "SimulatedSleep", "inputs": {"value": ["2", 0], "seconds": 0.05, "steps": 1}}
        workflow["3"]["inputs"]["images"] = ["4", 0]
        prompt_id = str(UUID(int=random.Random(f"{seed}/{number}").getrandbits(128), version=4))  # noqa: S311
        started = time.monotonic()
        try:
            status, body = await gateway.prompt_sync(
                workflow, timeout=TIMEOUT_S, prompt_id=prompt_id, return_image_base64=True
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            outcome.statuses[f"no answer: {type(error).__name__}"] += 1
            outcome.failed.append(prompt_id)
            continue
        outcome.seconds.append(time.monotonic() - started)
        outcome.statuses[str(status) if status == 200 else f"{status} {body.get('type')}: {body.get('detail')}"] += 1
        if status == 200:
            check_files(number, color, body, outcome)
        else:
            outcome.failed.append(prompt_id)


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


async def strike(members: list[Member], seed: int, struck: Counter[str]) -> None:
    """Sets random faults until it is cancelled."""
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    async with asyncio.TaskGroup() as tasks:
        while True:
            await asyncio.sleep(chance.expovariate(1 / PACE_S))
            fault = chance.choice(FAULTS)
            struck[next(iter(fault))] += 1
            tasks.create_task(chance.choice(members).fault(**fault))


async def deal_blows(members: list[Member], pace_s: float, seed: int, struck: Counter[str]) -> None:
    """Kills, suspends and cuts off servers at random until it is cancelled; then all of them run again."""
    chance = random.Random(f"blows {seed}")  # noqa: S311 - reproducible, not secret
    under_way: dict[Member, asyncio.Task[None]] = {}
    try:
        while True:
            await asyncio.sleep(chance.expovariate(1 / pace_s))
            member, (name, blow), seconds = chance.choice(members), chance.choice(BLOWS), chance.uniform(0.2, 3)
            before = under_way.get(member)
            if before is None or before.done():
                struck[name] += 1
                under_way[member] = asyncio.create_task(blow(member, seconds), name=f"{name} {member.name}")
    finally:
        await asyncio.gather(*under_way.values())


async def killed(member: Member, seconds: float) -> None:
    await member.kill()
    await asyncio.sleep(seconds)
    await member.start()


async def restarted(member: Member, _seconds: float) -> None:
    await member.stop()
    await member.start()


async def hung(member: Member, seconds: float) -> None:
    member.hang()
    await asyncio.sleep(seconds)
    member.go_on()


async def cut_off(member: Member, seconds: float) -> None:
    await member.link.cut()
    await asyncio.sleep(seconds)
    await member.link.mend()


async def frozen(member: Member, seconds: float) -> None:
    member.link.freeze()
    await asyncio.sleep(seconds)
    await member.link.mend()


BLOWS = tuple({"killed": killed, "restarted": restarted, "hung": hung, "cut off": cut_off, "frozen": frozen}.items())


def impatient(made: GatewayOptions) -> GatewayOptions:
    """Reduces timeouts of half a minute to about a second."""
    servers = replace(made.servers, probe_timeout_s=0.5, heartbeat_s=0.6)
    queue = replace(made.handler.queue, move_after_s=0.5)
    return replace(made, servers=servers, handler=replace(made.handler, queue=queue))


@dataclass
class Counted:
    """What the servers and the gateway's log say at the end.

    Attributes:
        executed: how often each prompt was begun.
        again: how often the log says that each prompt had to run again.
        reasons: the same by the policy that the log names.
        left: ids of prompts that a server still has.
        lines: the gateway's log.
    """

    executed: Counter[str]
    again: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)
    lines: list[Any] = field(default_factory=list)

    def story_of(self, prompt_id: str) -> Iterator[str]:
        """What the log says of one prompt."""
        for line in self.lines:
            if line.get("prompt_id") == prompt_id:
                said = {name: value for name, value in line.items() if name not in {"log_level", "request_id"}}
                yield " ".join(f"{name}={value}" for name, value in said.items())

    @property
    def beyond_policy(self) -> list[str]:
        return [one for one, times in self.executed.items() if times > 1 + self.again[one]]


async def run(
    prompts: int, clients: int, seconds: float, seed: int, *, blow_pace_s: float
) -> tuple[Outcome, Counter[str], Counted]:
    """`blow_pace_s`: mean time between two blows; a server suffers one at a time."""
    outcome, struck = Outcome(), Counter[str]()
    with tempfile.TemporaryDirectory() as folder, capture_logs() as lines:
        async with AsyncExitStack() as stack:
            members = await stack.enter_async_context(fleet(Path(folder), SERVERS))

            gateway = await stack.enter_async_context(
                running_gateway(
                    *(member.url for member in members),
                    changed=impatient,
                    state_dir=Path(folder, "state"),
                    default_timeout=TIMEOUT_S,
                    http_timeout=2,
                    lost_prompt_retries=RETRIES,
                    quarantine_after=2 * RETRIES,
                )
            )
            numbers = Numbers(prompts, seconds)
            striking = [
                asyncio.create_task(strike(members, seed, struck), name="strikes"),
                asyncio.create_task(deal_blows(members, blow_pace_s, seed, struck), name="blows"),
            ]
            await asyncio.gather(*(caller(gateway, numbers.take(), outcome, seed) for _ in range(clients)))
            for task in striking:
                task.cancel()
            await asyncio.gather(*striking, return_exceptions=True)
            for member in members:
                await member.well()
            left = await left_on(members)
            executed = sum((member.executions() for member in members), Counter[str]())
    counted = Counted(executed, left=left, lines=lines)
    for line in lines:
        if line["event"] == "prompt.again":
            counted.again[line["prompt_id"]] += 1
            counted.reasons[line["reason"]] += 1
    return outcome, struck, counted


async def left_on(members: list[Member]) -> list[str]:
    """Ids of prompts that are still in the servers' queues after `CLEARED_S`."""
    deadline = time.monotonic() + CLEARED_S
    while True:
        left = [prompt_id for member in members for ids in await member.queue() for prompt_id in ids]
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.05)


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


def report(outcome: Outcome, struck: Counter[str], counted: Counted, prompts: int) -> bool:
    """Prints the summary; returns True if every promise held."""
    answered = sum(count for status, count in outcome.statuses.items() if status[0].isdigit())
    print(f"faults     {sum(struck.values())}: {dict(struck.most_common())}")
    print(f"answers    {dict(outcome.statuses.most_common())}")
    print(f"partial    {outcome.partial} (their file was deleted or cut by a fault)")
    again = sum(times - 1 for times in counted.executed.values())
    print(f"executed   {len(counted.executed)} prompts, {again} times again; policies {dict(counted.reasons)}")
    seconds = sorted(outcome.seconds)
    print(f"seconds    p50 {seconds[len(seconds) // 2]:.2f}, p99 {seconds[int(len(seconds) * 0.99)]:.2f}")
    promises = {
        f"every prompt answered ({answered} of {prompts})": answered == prompts,
        f"every answer a result ({outcome.statuses['200']} of {prompts})": outcome.statuses["200"] == prompts,
        f"none executed more often than policy says ({len(counted.beyond_policy)} were)": not counted.beyond_policy,
        f"no prompt left on a server ({len(counted.left)} are)": not counted.left,
        f"every caller got its own files ({len(outcome.wrong_files)} did not)": not outcome.wrong_files,
    }
    for promise, held in promises.items():
        print(f"{'held  ' if held else 'BROKEN'}     {promise}")
    for wrong in (*outcome.wrong_files[:5], *outcome.failed[:5], *counted.beyond_policy[:5], *counted.left[:5]):
        print(f"           {wrong}", *counted.story_of(wrong), sep="\n             ")
    return all(promises.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blow-every", type=float, default=2, help="mean seconds between two blows to servers")
    parser.add_argument("--log", type=Path, help="a file for the gateway's log, one JSON object a line")
    arguments = parser.parse_args()
    print(f"chaos      { ({name: value for name, value in vars(arguments).items() if name != 'log'}) }")
    how = {name: getattr(arguments, name) for name in ("prompts", "clients", "seconds", "seed")}
    outcome, struck, counted = asyncio.run(run(**how, blow_pace_s=arguments.blow_every))
    if arguments.log is not None:
        arguments.log.write_text("".join(f"{json.dumps(line, default=str)}\n" for line in counted.lines))
    return 0 if report(outcome, struck, counted, arguments.prompts) else 1


if __name__ == "__main__":
    sys.exit(main())
