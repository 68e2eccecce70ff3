"""Scripts about ``/ws``: the frames of a client's prompts in their order; `status` comes when it changes."""

from __future__ import annotations

import uuid
from typing import Any

from tests.support.same_answers import Answer, Caller, Step
from tests.support.tabs import Tab
from tests.support.target import Prompt, node


async def _told(who: Caller, *workflows: tuple[str, Prompt], declares: bool = False, names_itself: bool = True) -> None:
    """Records the frames that a client gets for prompts that it queues one after the other."""
    client = uuid.uuid4().hex
    query = f"?clientId={client}" if names_itself else ""
    async with who.http.ws_connect(f"{who.prefix}/ws{query}", max_msg_size=0) as websocket:
        tab = Tab(websocket)
        first = await tab.read_until("status")
        if declares:
            await tab.declare()
        sid = who.named(first["sid"], "the client")
        assert not names_itself or sid == client
        for name, workflow in workflows:
            await tab.ended([await who.submit(name, workflow, client_id=sid)])
    kinds = sorted(first)
    # Which nodes come from a cache is chance, but a new picture never does.
    told: list[Any] = [kinds, *(who.without_names(words) for words in tab.told_of(*"abcdefgh"))]
    who.steps.append(Step("websocket /ws", Answer(101, "", told), None))


def _shown(who: Caller) -> Prompt:
    """The workflow `quick`, which also sends its picture to the websocket."""
    workflow = who.quick()
    workflow["5"] = node("SaveImageWebsocket", images=["2", 0])
    return workflow


async def two_prompts_in_a_row(who: Caller) -> None:
    await _told(who, ("one", who.quick()), ("two", who.quick(batch_size=2)))


async def a_client_without_an_id(who: Caller) -> None:
    await _told(who, ("one", who.quick()), names_itself=False)


async def pictures_for_the_websocket(who: Caller) -> None:
    await _told(who, ("one", _shown(who)))


async def pictures_with_metadata(who: Caller) -> None:
    await _told(who, ("one", _shown(who)), declares=True)


async def a_failing_node(who: Caller) -> None:
    failing = {**who.quick(), "2": node("ImageInvert", image="no picture")}
    await _told(who, ("failing", failing), ("one", who.quick()))


async def a_previewed_picture(who: Caller) -> None:
    workflow = who.quick()
    workflow["3"] = node("PreviewImage", images=["2", 0])
    await _told(who, ("one", workflow))


CASES = (
    two_prompts_in_a_row,
    a_client_without_an_id,
    pictures_for_the_websocket,
    pictures_with_metadata,
    a_failing_node,
    a_previewed_picture,
)
