"""Scripts about the queue: ``GET`` and ``POST /queue``, ``/interrupt`` and ``/free``."""

from __future__ import annotations

import uuid
from typing import Any

from tests.support.same_answers import Caller, Instead

_FREE = "jobs contract section 4, roles: `/free` is 403 for a `user`, because all servers would load their models again"
_FORBIDDEN = Instead(_FREE, 403, '"type": "forbidden"')
_NO_ROW = Instead("issue 19: a request outside the table of rights is 403 for a `user`", 403, '"type": "forbidden"')
TOLD_ALIKE = Instead(
    "fleet contract, frames, 3: every end has a history entry, also that of a waiting prompt that was cancelled",
    200,
    "execution_interrupted",
)


async def an_empty_queue(who: Caller) -> None:
    await who.get("/queue")
    await who.get("/prompt")


async def _filled(who: Caller, **fields: Any) -> tuple[str, list[str]]:
    """Submits a prompt that runs, with these fields, and three that wait; returns their ids in this order."""
    running = await who.submit("running", who.long(), **fields)
    await who.runs(running)
    waiting = [await who.submit(f"waiting {number}", who.pinned()) for number in range(3)]
    await who.waits(*waiting)
    return running, waiting


async def one_runs_and_three_wait(who: Caller) -> None:
    running, waiting = await _filled(who, client_id="tab", extra_data={"a": 1})
    await who.get("/queue")
    await who.get("/prompt")
    await who.get("/history")
    for prompt_id in (running, waiting[0], waiting[2]):
        await who.get(f"/history/{prompt_id}")


async def secrets_are_not_shown(who: Caller) -> None:
    secrets = {"api_key_comfy_org": "secret", "auth_token_comfy_org": "secret", "told": 1}
    running = await who.submit("running", who.long(), extra_data=secrets)
    await who.runs(running)
    if who.is_modern:
        await who.get("/queue")


async def delete_waiting_prompts(who: Caller) -> None:
    running, waiting = await _filled(who)
    await who.post("/queue", {"delete": [waiting[1]]})
    await who.get("/queue")
    await who.post("/queue", {"delete": [running, str(uuid.uuid4()), "odd"]})
    await who.get("/queue")
    await who.post("/queue", {"delete": [waiting[2], waiting[0]]})
    await who.get("/queue")
    await who.get("/prompt")
    await who.get("/history", gateway=TOLD_ALIKE)
    for prompt_id in waiting:
        await who.get(f"/history/{prompt_id}", gateway=TOLD_ALIKE)


async def clear_waiting_prompts(who: Caller) -> None:
    _, waiting = await _filled(who)
    await who.post("/queue", {"clear": False})
    await who.get("/prompt")
    await who.post("/queue", {"clear": True, "delete": [waiting[0]]})
    await who.get("/queue")
    await who.get("/history", gateway=TOLD_ALIKE)


async def odd_bodies_change_no_queue(who: Caller) -> None:
    await _filled(who)
    odd: tuple[Any, ...] = (
        b"",
        b"{",
        b"null",
        b"7",
        b"[]",
        b'"clear"',
        {},
        {"clear": 0},
        {"delete": []},
        {"delete": None},
        {"delete": 7},
        {"delete": [7, None]},
    )
    for body in odd:
        await who.post("/queue", body)
    await who.get("/queue")


async def interrupt_by_id(who: Caller) -> None:
    running, waiting = await _filled(who)
    for prompt_id in (waiting[0], str(uuid.uuid4()), "odd"):
        await who.post("/interrupt", {"prompt_id": prompt_id})
    await who.get("/queue")
    await who.post("/interrupt", {"prompt_id": running})
    await who.ended(running, *waiting)
    await who.get("/history")
    await who.get("/queue")


async def interrupt_the_running_prompt(who: Caller) -> None:
    for number, body in enumerate((None, b"", {}, {"prompt_id": None}, {"prompt_id": ""}, b"not JSON")):
        running = await who.submit(f"running {number}", who.long())
        await who.runs(running)
        await who.post("/interrupt", body)
        await who.ended(running)
    await who.get("/history")
    await who.post("/interrupt")


async def odd_bodies_interrupt_nothing(who: Caller) -> None:
    running = await who.submit("running", who.long())
    await who.runs(running)
    for body in (b"[]", b"7", b"null", b'"x"', {"prompt_id": 7}, {"prompt_id": [running]}):
        await who.post("/interrupt", body)
    await who.get("/queue")


async def free(who: Caller) -> None:
    for body in (
        {},
        {"unload_models": True},
        {"unload_models": True, "free_memory": True},
        {"free_memory": "yes"},
        {"other": 1},
    ):
        await who.post("/free", body, user=_FORBIDDEN)
    for odd in (b"", b"{", b"[]", b"7", b"null"):
        await who.post("/free", odd, user=_FORBIDDEN)


async def other_methods(who: Caller) -> None:
    for method, path in (
        ("HEAD", "/queue"),
        ("HEAD", "/prompt"),
        ("HEAD", "/history"),
        ("HEAD", "/history/nothing"),
        ("GET", "/interrupt"),
        ("GET", "/free"),
    ):
        await who.ask(method, path, user=_NO_ROW if path in {"/interrupt", "/free"} else None)
    for path in ("/queue", "/prompt", "/history", "/interrupt", "/free"):
        await who.ask("OPTIONS", path, user=_NO_ROW)
        await who.ask("PUT", path, user=_NO_ROW)
        await who.ask("DELETE", path, user=_NO_ROW)


CASES = (
    an_empty_queue,
    one_runs_and_three_wait,
    secrets_are_not_shown,
    delete_waiting_prompts,
    clear_waiting_prompts,
    odd_bodies_change_no_queue,
    interrupt_by_id,
    interrupt_the_running_prompt,
    odd_bodies_interrupt_nothing,
    free,
    other_methods,
)
