"""One run for each kind of call, point and victim, and how its job ended."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfyui.jobs.journal.records import JobRecord
from tests.chaos.kills.calls import Call
from tests.chaos.kills.points import Point
from tests.chaos.kills.world import Answer, Victim, World


@dataclass(frozen=True)
class Ended:
    """How the job of one run ended.

    Attributes:
        point: None if the run only recorded the points.
        told: the caller's last answer, and how many of its requests failed.
        became: the job's state in the journal, and how often ComfyUI began to run it.
        wrong: the broken promises, or "".
    """

    call: str
    victim: Victim | None
    point: Point | None
    told: str
    became: str
    wrong: str
    points: tuple[Point, ...] = ()

    def __str__(self) -> str:
        where = f"{self.victim} killed {self.point}" if self.point else "nothing killed"
        return f"{self.call:32} {where:58} {self.told:24} {self.became:30} {self.wrong}"


async def matrix(
    calls: Sequence[Call],
    victims: Sequence[Victim],
    chosen: Callable[[Point], bool],
    *,
    at_once: int,
    keep: str | None = None,
    told: Callable[[Ended], None],
) -> list[Ended]:
    """Makes all runs of these calls and passes each result to `told`."""
    places = asyncio.Semaphore(at_once)

    async def one(call: Call, victim: Victim, point: Point | None) -> Ended:
        async with places:
            ended = await run(call, victim, point, keep)
            told(ended)
            return ended

    async def all_of(call: Call) -> list[Ended]:
        recorded = await one(call, "gateway", None)
        points = [point for point in recorded.points if chosen(point)]
        return [recorded, *await asyncio.gather(*(one(call, victim, point) for victim in victims for point in points))]

    return [ended for runs in await asyncio.gather(*map(all_of, calls)) for ended in runs]


async def run(call: Call, victim: Victim, point: Point | None, keep: str | None = None) -> Ended:
    """One run; the folder of a wrong run is copied below `keep`."""
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    world = World(folder, victim, point, call.ahead)
    answer: Answer = (0, {})
    unfinished = ""
    records: list[JobRecord] = []
    try:
        async with world.living():
            try:
                answer = await call.play(world)
                unfinished = await world.settled()
                records = await world.records()
            except TimeoutError:
                answer, unfinished = (0, {"type": "hung"}), "the call did not end"
            except (AssertionError, OSError):
                unfinished = traceback.format_exc(limit=-2)
        ended = judged(call, victim, point, world, answer, unfinished, records)
        if ended.wrong and keep:
            kept = Path(keep, f"{call.name} {victim} {point}".replace("/", "_"))
            shutil.copytree(folder, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns("control", "comfyui"))
        return ended
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judged(
    call: Call,
    victim: Victim,
    point: Point | None,
    world: World,
    answer: Answer,
    unfinished: str,
    records: Sequence[JobRecord],
) -> Ended:
    """Compares what happened with what is promised."""
    status, body = answer
    said = f"{status} {body.get('type', '')}".strip() if status else str(body.get("type"))
    states = Counter(record.state.value for record in records)
    executions = world.executions()
    wrong = [unfinished] if unfinished else []
    if status == 200 and not all(file["filename"].startswith(world.prefix) for file in body["images"]):
        wrong.append("another's result")
    allowed_to_end = status == 0 and not call.known
    if said not in call.may_end and not allowed_to_end:
        wrong.append(f"told {said}, {body.get('detail')}")
    for prompt_id, count in executions.items():
        died = victim != "gateway" and world.begun_before[prompt_id] > 0
        # When ComfyUI died, the gateway may not have heard that the last attempt had begun; when both died, it may
        # not have written it.
        more = died + call.losable
        if count > call.runs + more:
            wrong.append(f"{prompt_id} ran {count} times")
    if point is not None and not world.points.struck:
        said = f"{said}, not reached"
    return Ended(
        call.name,
        victim if point else None,
        point,
        f"{said} after {world.failures} failures" if world.failures else said,
        ", ".join([*(f"{count} {state}" for state, count in states.items()), f"{executions.total()} executions"]),
        "; ".join(wrong),
        tuple(Point(what, number, when) for what, number in world.points.passed for when in ("before", "after")),
    )


def table(ended: Sequence[Ended]) -> str:
    """The number of runs by kind of call, victim and outcome."""
    lines = []
    for call in dict.fromkeys(each.call for each in ended):
        for victim in dict.fromkeys(each.victim for each in ended if each.call == call and each.victim):
            runs = [each for each in ended if (each.call, each.victim) == (call, victim)]
            outcomes = Counter(f"{each.told.partition(', ')[0]}: {each.became}" for each in runs)
            for outcome, count in outcomes.most_common():
                lines.append(f"{call:32} {victim:8} {count:3} x {outcome}")
    return "\n".join(lines)
