"""Scripts about ``POST /prompt``."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Mapping
from typing import Any

from tests.support.same_answers import Caller, Instead
from tests.support.target import empty, inverted, node

_ONE_RUN = (
    "fleet contract, the same `prompt_id` again: it gets the same answer and runs once; ComfyUI runs twice (trap 10)"
)
_MALFORMED = Instead(
    "`check_api_format`: the gateway refuses a workflow that could end ComfyUI's prompt worker",
    400,
    "Not a workflow in API format: see node",
)
_ON_THE_SERVER = Instead(
    "jobs contract section 3: each server has a running and a waiting prompt, and the waiting one is never taken back",
    200,
    "<waiting>",
)
_ID = "5f0c0000-aaaa-4000-8000-00000000000a"
_CANONICAL = Instead(
    "fleet contract, hard cases: the gateway requires canonical UUIDs as ids; ComfyUI 0.3.64 takes any text",
    400,
    '"type": "invalid_prompt_id"',
)
_TYPED = (
    "jobs contract section 1, product contract section 6: fields have types, and an error names its field; ComfyUI's "
    "code fails at such values or keeps them"
)
_MARK = Instead(
    "api.md: a byte order mark before JSON is ignored; ComfyUI's code fails at it", 200, '"node_errors": {}'
)
_NO_NUMBER = Instead(
    "api.md: the gateway's answers are strict JSON, so NaN and infinities become null", 400, '"received_value": null'
)
_NO_TEXT = Instead(f"{_TYPED}; one is half of a surrogate pair", 400, '"message": "client_id: ')
_BUSY = (
    "fleet contract, `POST /prompt`: all servers that can run it are busy, so the preflight answers: ComfyUI's error "
    "types with our own texts"
)
_LATER = (
    "fleet contract, `POST /prompt`: all servers that can run it are busy, so the prompt waits; which outputs a server "
    "refuses is known when one takes it"
)
_NEWER = Instead(f"{_BUSY}; the type is that of newer versions", 400, '"type": "missing_node_type"')
_OTHER_BODY = "fleet contract, the same `prompt_id` again: with another body it is 409; ComfyUI runs both (trap 10)"


async def a_good_prompt(who: Caller) -> None:
    one = await who.submit(
        "one", who.quick(), client_id="tab", extra_data={"a": [1], "extra_pnginfo": {"workflow": {}}}
    )
    await who.ended(one)
    await who.get(f"/history/{one}")
    await who.get("/prompt")
    await who.get("/queue")


async def an_id_chosen_by_the_caller(who: Caller) -> None:
    mine = who.named(str(uuid.uuid4()), "mine")
    assert await who.submit("mine", who.quick(), prompt_id=mine) == mine
    await who.ended(mine)
    await who.get(f"/history/{mine}")


async def the_same_id_again(who: Caller) -> None:
    mine, workflow = who.named(str(uuid.uuid4()), "mine"), who.quick()
    first = await who.post("/prompt", {"prompt": workflow, "prompt_id": mine})
    await who.ended(mine)
    again = await who.ask(
        "POST", "/prompt", {"prompt": workflow, "prompt_id": mine}, gateway=Instead(_ONE_RUN, 200, "number 0")
    )
    assert who.role == "comfyui" or again == first
    other = {"prompt": who.quick(), "prompt_id": mine}
    await who.post("/prompt", other, gateway=Instead(_OTHER_BODY, 409, '"error": {"type": '))


async def refused_workflows(who: Caller) -> None:
    good = inverted("refused")
    for workflow in (
        {},
        {"1": empty()},
        {"1": {"class_type": "NoSuchNode", "inputs": {}}},
        {**good, "7": {"class_type": "NoSuchNode", "inputs": {}}},
        {**good, "3": node("SaveImage", images=["2", 0])},
        {**good, "3": node("SaveImage", images=["1", 5], filename_prefix="x")},
        {**good, "1": node("ImageInvert", image=["2", 0])},
        {**good, "1": empty(width=0)},
        {**good, "1": empty(width=1 << 20)},
        {**good, "1": node("EmptyImage", width="wide", height=8, batch_size=1, color=0)},
        {**good, "1": node("EmptyImage", height=8, batch_size=1, color=0)},
        {**good, "2": node("ImageScale", image=["1", 0], upscale_method="no", width=8, height=8, crop="disabled")},
        {
            **good,
            "3": node("SaveImage", images=["4", 0], filename_prefix="x"),
            "4": node("EmptyLatentImage", width=8, height=8, batch_size=1),
        },
    ):
        await who.post("/prompt", {"prompt": workflow})
    for workflow in (
        {**good, "3": node("SaveImage", images=["9", 0], filename_prefix="x")},
        {**good, "2": node("ImageInvert", image=["9", 0])},
        {"1": {"class_type": "SaveImage"}},
        {"1": {"class_type": "SaveImage", "inputs": []}},
    ):
        await who.post("/prompt", {"prompt": workflow}, gateway=_MALFORMED)
    await who.get("/queue")
    await who.get("/history")


async def good_and_refused_outputs(who: Caller) -> None:
    one = await who.submit("one", {**who.quick(), "4": node("SaveImage", images=["1", 0])})
    await who.ended(one)
    await who.get(f"/history/{one}")


async def only_some_outputs(who: Caller) -> None:
    workflow = {**who.quick(), "4": node("PreviewImage", images=["1", 0])}
    one = await who.submit("one", workflow, partial_execution_targets=["4"])
    await who.ended(one)
    await who.get(f"/history/{one}")
    for targets in (["nope"], ["1"], []):
        await who.post("/prompt", {"prompt": who.quick(), "partial_execution_targets": targets})


async def invalid_bodies(who: Caller) -> None:
    odd: tuple[Any, ...] = (b"", b"{", b"[]", b"null", b"7", b'"prompt"', b"\xff\xfe", {}, {"workflow": {}})
    for body in odd:
        await who.post("/prompt", body)


async def _asked(who: Caller, name: str, body: bytes, **more: Any) -> None:
    """Waits for the end of an accepted prompt, so that a server is free and judges the next prompt itself."""
    answer = await who.ask("POST", "/prompt", body, name=name, **more)
    if answer.status == 200:
        await who.ended(answer.body["prompt_id"])


async def odd_json(who: Caller) -> None:
    good = json.dumps({"prompt": who.quick()})
    bodies: Mapping[str, str] = {
        "something behind it": f"{good} x",
        "two prompts": '{"prompt": {}, "prompt": []}',
        "two classes": good.replace('"class_type"', '"class_type": "x", "class_type"'),
        "no numbers": f'{{"extra_data": {{"a": NaN, "b": [Infinity, -Infinity]}}, {good[1:]}',
        "large numbers": f'{{"extra_data": {{"a": 1e999, "b": {"9" * 400}}}, {good[1:]}',
        "deep": f'{{"extra_data": {{"a": {"[" * 200}{"]" * 200}}}, {good[1:]}',
        "half a character": f'{{"extra_data": {{"a": "\\ud800", "b": "\\u0000"}}, {good[1:]}',
        **{
            f"{value} of {name}": good.replace(f'"{name}": 1', f'"{name}": {value}')
            for name in ("batch_size",)
            for value in ("1.0", '"1"', "true", "null", '" 1 "', "[]", "{}", "1e3", "-1", "0.9")
        },
    }
    for name, body in bodies.items():
        await _asked(who, name, body.encode())
    await _asked(who, "UTF-16", good.encode("utf-16"))
    for kind in ("text/plain", "application/json; charset=latin-1", "application/x-www-form-urlencoded"):
        await _asked(who, kind, good.encode(), headers={"Content-Type": kind})
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    await _asked(who, "packed", gzip.compress(good.encode()), headers=headers)


async def json_that_only_the_gateway_accepts(who: Caller) -> None:
    good = json.dumps({"prompt": who.quick()})
    await _asked(who, "with a mark", good.encode("utf-8-sig"), gateway=_MARK)
    for value in ("NaN", "1e400"):
        body = good.replace('"batch_size": 1', f'"batch_size": {value}')
        await _asked(who, value, body.encode(), gateway=_NO_NUMBER)
    await _asked(who, "half a name", f'{{"client_id": "\\ud800", {good[1:]}'.encode(), gateway=_NO_TEXT)


async def refusals_while_all_servers_are_busy(who: Caller) -> None:
    """All servers that could run the prompt are busy, so the gateway asks none of them."""
    running = await who.submit("running", who.long())
    await who.runs(running)
    waiting = await who.submit("waiting", who.pinned())
    await who.waits(waiting)
    for workflow in ({"1": empty()}, {**who.pinned(), "9": node("SaveImage", images=["2", 0])}):
        await who.post("/prompt", {"prompt": workflow})
    unknown = {**who.pinned(), "7": {"class_type": "NoSuchNode", "inputs": {}}}
    await who.post("/prompt", {"prompt": unknown}, gateway=None if who.is_modern or who.servers > 1 else _NEWER)
    for kind, batch_size in (
        ("value_smaller_than_min", 0),
        ("value_bigger_than_max", 1 << 40),
        ("invalid_input_type", "many"),
    ):
        workflow = who.pinned()
        made = next(one for one in workflow.values() if "batch_size" in one["inputs"])
        made["inputs"]["batch_size"] = batch_size
        await who.post("/prompt", {"prompt": workflow}, gateway=Instead(_BUSY, 400, f'"type": "{kind}"'))
    workflow = {**who.pinned(), "10": node("PreviewImage", images=["11", 0]), "11": empty(width=0)}
    await who.post("/prompt", {"prompt": workflow}, gateway=Instead(_LATER, 200, '"node_errors": {}'))


async def invalid_prompts(who: Caller) -> None:
    odd: tuple[Any, ...] = (None, [], "text", 7, True, {"1": None}, {"1": []}, {"1": {}}, {"1": {"class_type": 3}})
    for prompt in odd:
        await who.post("/prompt", {"prompt": prompt})


async def invalid_ids(who: Caller) -> None:
    refused = None if who.is_modern else _CANONICAL
    odd: tuple[Any, ...] = ("nope", "", 7, [], _ID.upper(), _ID.replace("-", ""))
    for prompt_id in odd:
        await who.post("/prompt", {"prompt": who.quick(), "prompt_id": prompt_id}, gateway=refused)
    await who.post("/prompt", {"prompt": {}, "prompt_id": "nope"}, gateway=refused)


async def fields_of_the_wrong_type(who: Caller) -> None:
    refused: tuple[tuple[str, Any], ...] = (
        ("number", "first"),
        ("number", []),
        ("extra_data", []),
        ("extra_data", "text"),
        ("partial_execution_targets", "3"),
        ("partial_execution_targets", 3),
        ("client_id", 7),
    )
    for name, value in refused:
        body = {"prompt": who.quick(), name: value}
        await who.post("/prompt", {"client_id": "tab", **body}, gateway=Instead(_TYPED, 400, f'"message": "{name}: '))
    # ComfyUI's code fails at null only for these fields.
    for name in ("number", "extra_data"):
        body = {"prompt": who.quick(), name: None, "client_id": "tab"}
        await who.post("/prompt", body, gateway=Instead(_TYPED, 200, '"node_errors": {}'))


async def fields_with_odd_values(who: Caller) -> None:
    for name, value in (
        ("partial_execution_targets", None),
        ("client_id", None),
        ("front", "yes"),
        ("front", 0),
        ("number", "-1000000.5"),
        ("an unknown field", 1),
    ):
        await who.post("/prompt", {"prompt": who.quick(), name: value})


async def positions_in_the_queue(who: Caller) -> None:
    running = await who.submit("running", who.long())
    await who.runs(running)
    waiting = await who.submit("waiting", who.pinned())
    await who.waits(waiting)
    for name, fields in (
        ("first", {}),
        ("second", {}),
        ("front", {"front": True}),
        ("number 1000000", {"number": 1000000}),
        ("third", {}),
    ):
        await who.submit(name, who.pinned(), **fields)
    await who.get("/queue", gateway=_ON_THE_SERVER)
    await who.post("/queue", {"delete": [waiting]})
    await who.get("/queue")


CASES = (
    a_good_prompt,
    an_id_chosen_by_the_caller,
    the_same_id_again,
    refused_workflows,
    good_and_refused_outputs,
    only_some_outputs,
    invalid_bodies,
    odd_json,
    json_that_only_the_gateway_accepts,
    refusals_while_all_servers_are_busy,
    invalid_prompts,
    invalid_ids,
    fields_of_the_wrong_type,
    fields_with_odd_values,
    positions_in_the_queue,
)
