"""Scripts about ``/ws``: the frames of a client's prompts, in their order. `status` is told when it changes."""

from __future__ import annotations

import uuid
from typing import Any

from tests.support.same_answers import Answer, Caller, Step
from tests.support.tabs import Tab
from tests.support.target import Prompt, node


async def _told(who: Caller, *workflows: tuple[str, Prompt], declares: bool = False, names_itself: bool = True) -> None:
    """What a client is told of prompts that it queues one after the other."""
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
    # Which of them was in a cache is chance; a new picture never is.
    told: list[Any] = [kinds, *(who.without_names(words) for words in tab.told_of(*"abcdefgh"))]
    who.steps.append(Step("websocket /ws", Answer(101, "", told), None))


def _shown(who: Caller) -> Prompt:
    """As `quick`, whose picture goes to the websocket as well."""
    workflow = who.quick()
    workflow["5"] = node("SaveImageWebsocket", images=["2", 0])
    return workflow


async def one_after_the_other(who: Caller) -> None:
    await _told(who, ("one", who.quick()), ("two", who.quick(batch_size=2)))


async def for_a_client_without_a_name(who: Caller) -> None:
    await _told(who, ("one", who.quick()), names_itself=False)


async def pictures_for_the_websocket(who: Caller) -> None:
    await _told(who, ("one", _shown(who)))


async def pictures_with_metadata(who: Caller) -> None:
    await _told(who, ("one", _shown(who)), declares=True)


async def a_node_that_fails(who: Caller) -> None:
    failing = {**who.quick(), "2": node("ImageInvert", image="no picture")}
    await _told(who, ("failing", failing), ("one", who.quick()))


async def a_previewed_picture(who: Caller) -> None:
    workflow = who.quick()
    workflow["3"] = node("PreviewImage", images=["2", 0])
    await _told(who, ("one", workflow))


CASES = (
    one_after_the_other,
    for_a_client_without_a_name,
    pictures_for_the_websocket,
    pictures_with_metadata,
    a_node_that_fails,
    a_previewed_picture,
)
