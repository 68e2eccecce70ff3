"""Scripts about ``GET`` and ``POST /history``."""

from __future__ import annotations

import uuid
from typing import Any

from tests.support.same_answers import Caller, Instead
from tests.support.target import node

_NAMED = Instead(
    "product contract section 6: an invalid number gets an error that names the field; ComfyUI's code fails",
    422,
    "must be a whole number",
)


async def _four(who: Caller) -> list[str]:
    """Runs four prompts one after the other and returns their ids."""
    ended = []
    for number in range(4):
        ended.append(await who.submit(f"ended {number}", who.quick()))
        await who.ended(ended[-1])
    return ended


async def an_empty_history(who: Caller) -> None:
    await who.get("/history")
    for prompt_id in (str(uuid.uuid4()), "odd", "a%20b"):
        await who.get(f"/history/{prompt_id}")


async def pages(who: Caller) -> None:
    await _four(who)
    for query in (
        "",
        "?max_items=2",
        "?max_items=9",
        "?max_items=0",
        "?max_items=-3",
        "?max_items=2&offset=1",
        "?max_items=2&offset=3",
        "?max_items=0&offset=1",
        "?max_items=-1&offset=1",
        "?offset=3",
        "?offset=-1",
        "?offset=-7",
        "?offset=99",
        "?max_items=1&offset=-1",
        "?other=1",
        "?max_items=%202%20",
        "?max_items=1&max_items=2",
    ):
        await who.get(f"/history{query}")


async def invalid_numbers(who: Caller) -> None:
    for query in ("max_items=x", "max_items=", "max_items=1.5", "offset=x", "offset=", "max_items=1&offset=2.0"):
        await who.get(f"/history?{query}", gateway=_NAMED)


async def a_failing_node(who: Caller) -> None:
    workflow = {**who.quick(), "2": node("ImageInvert", image="no picture")}
    one = await who.submit("one", workflow, client_id="tab")
    await who.ended(one)
    await who.get(f"/history/{one}")
    await who.get("/history")
    await who.get("/queue")


async def an_interrupted_prompt(who: Caller) -> None:
    one = await who.submit("one", who.long())
    await who.runs(one)
    await who.post("/interrupt", {"prompt_id": one})
    await who.ended(one)
    await who.get(f"/history/{one}")


async def the_same_workflow_again(who: Caller) -> None:
    workflow = who.pinned()
    for name in ("first", "from the cache"):
        one = await who.submit(name, workflow)
        await who.ended(one)
        await who.get(f"/history/{one}")


async def several_outputs(who: Caller) -> None:
    workflow = {
        **who.quick(batch_size=2),
        "4": node("PreviewImage", images=["1", 0]),
        "5": node(
            "SaveImage", images=["1", 0], filename_prefix=f"{who.quick()['3']['inputs']['filename_prefix']}/deep"
        ),
    }
    one = await who.submit("one", workflow)
    await who.ended(one)
    answer = await who.get(f"/history/{one}")
    if who.is_modern:
        # ComfyUI chooses the names of temporary files at its start.
        assert answer.status == 200


async def delete_entries(who: Caller) -> None:
    ended = await _four(who)
    await who.post("/history", {"delete": [ended[1], str(uuid.uuid4()), "odd"]})
    await who.get("/history")
    await who.get(f"/history/{ended[1]}")
    await who.get(f"/history/{ended[2]}")
    await who.post("/history", {"clear": True})
    await who.get("/history")
    await who.get(f"/history/{ended[2]}")


async def clear_keeps_running_and_waiting_prompts(who: Caller) -> None:
    ended = await who.submit("ended", who.pinned())
    await who.ended(ended)
    running = await who.submit("running", who.long())
    await who.runs(running)
    waiting = await who.submit("waiting", who.pinned())
    await who.waits(waiting)
    await who.post("/history", {"clear": True, "delete": [running, waiting]})
    await who.get("/history")
    await who.get("/queue")
    await who.post("/interrupt", {"prompt_id": running})
    await who.ended(running, waiting)
    await who.get("/history")


async def odd_bodies_delete_nothing(who: Caller) -> None:
    one = await who.submit("one", who.quick())
    await who.ended(one)
    odd: tuple[Any, ...] = (
        b"",
        b"{",
        b"null",
        b"7",
        b"[]",
        {},
        {"clear": False},
        {"delete": []},
        {"delete": 7},
        {"delete": None},
        {"delete": [7, None]},
    )
    for body in odd:
        await who.post("/history", body)
    await who.get("/history")


CASES = (
    an_empty_history,
    pages,
    invalid_numbers,
    a_failing_node,
    an_interrupted_prompt,
    the_same_workflow_again,
    several_outputs,
    delete_entries,
    clear_keeps_running_and_waiting_prompts,
    odd_bodies_delete_nothing,
)
