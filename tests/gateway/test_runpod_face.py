"""BACKEND=runpod answers ComfyUI's clients as ComfyUI does: both get the same requests, and give the same answers."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.running import (
    RunningGateway,
    Workflow,
    invert_workflow,
    loading_workflow,
    queue_of,
    sleep_workflow,
    until,
)
from tests.support.tabs import ENDED, Tab, in_words
from tests.support.url_server import PNG

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# Differs from run to run.
_VARIES = frozenset(
    {"timestamp", "create_time", "execution_start_time", "execution_end_time", "timings", "execution_time"}
)
# Only a ComfyUI behind the gateway reports these: a node's values, its traceback, and that it is a simulation.
_UNKNOWN = frozenset({"current_inputs", "current_outputs", "traceback", "request_id", "simulation"})


class Client:
    """Records each answer under the name of its request."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.answers: dict[str, Any] = {}
        self._http = gateway.http

    async def ask(self, name: str, method: str, path: str, **request: Any) -> Any:
        async with self._http.request(method, path, **request) as response:
            is_json = response.content_type == "application/json"
            body = await (response.json() if is_json else response.read())
            self.answers[name] = response.status, response.content_type, body
            return body

    async def prompt(self, name: str, workflow: Workflow, **fields: Any) -> str:
        answer = await self.ask(name, "POST", "/prompt", json={"prompt": workflow, "client_id": "tab", **fields})
        return str(answer["prompt_id"])

    async def entry(self, name: str, prompt_id: str) -> Any:
        """The history of a prompt, as soon as there is one."""
        found = await until(lambda: self.ask(name, "GET", f"/history/{prompt_id}"), bool)
        return found[prompt_id]

    def steady(self) -> Any:
        """The answers without the parts that differ from run to run."""
        names: dict[str, str] = {}

        def steady(value: Any) -> Any:
            if isinstance(value, dict):
                return {steady(name): steady(one) for name, one in value.items() if name not in _VARIES | _UNKNOWN}
            if isinstance(value, list | tuple):
                return [steady(one) for one in value]
            if isinstance(value, str):
                return _ID.sub(lambda found: names.setdefault(found[0], f"prompt {len(names)}"), value).strip()
            return value

        return steady(self.answers)


async def run_a_prompt(gateway: RunningGateway) -> Any:
    client = Client(gateway)
    extra_data = {"extra_pnginfo": {"workflow": {"id": "of the editor"}}}
    prompt_id = await client.prompt("prompt", sleep_workflow(0.2, tag=7), extra_data=extra_data)
    entry = await client.entry("history", prompt_id)
    await client.ask("histories", "GET", "/history")
    [image] = entry["outputs"]["3"]["images"]
    await client.ask("view", "GET", "/view", params=image)
    await client.ask("view HEAD", "HEAD", "/view", params=image)
    await client.ask("view a part", "GET", "/view", params=image, headers={"Range": "bytes=2-5"})
    await client.ask("view none", "GET", "/view", params={**image, "filename": "none.png"})
    await client.ask("view of none", "GET", "/view", params={**image, "subfolder": str(uuid4())})
    await client.ask("view temp", "GET", "/view", params={**image, "type": "temp"})
    await client.ask("job", "GET", f"/api/jobs/{prompt_id}")
    await client.ask("jobs", "GET", "/api/jobs")
    await client.ask("queue", "GET", "/queue")
    await client.ask(
        "another with its id", "POST", "/prompt", json={"prompt": invert_workflow(), "prompt_id": prompt_id}
    )
    await client.ask("hide", "POST", "/history", json={"delete": [prompt_id]})
    await client.ask("hidden", "GET", f"/history/{prompt_id}")
    return client.steady()


async def run_a_failing_prompt(gateway: RunningGateway) -> Any:
    client, workflow = Client(gateway), invert_workflow(1)
    workflow["2"] |= {
        "class_type": "SimulatedError",
        "inputs": {"exception_type": "RuntimeError", "message": "no such luck"},
    }
    workflow["3"]["inputs"]["images"] = ["2", 0]
    prompt_id = await client.prompt("prompt", workflow)
    await client.entry("history", prompt_id)
    await client.ask("job", "GET", f"/api/jobs/{prompt_id}")
    await client.ask("sync", "POST", "/prompt_sync", json={"prompt": workflow})
    await client.ask("its result", "GET", f"/prompt_sync/{prompt_id}")
    return client.steady()


async def send_invalid_requests(gateway: RunningGateway) -> Any:
    client = Client(gateway)
    await client.ask("nothing", "POST", "/prompt", json={})
    await client.ask("a list", "POST", "/prompt", json={"prompt": [1]})
    await client.ask("no class", "POST", "/prompt", json={"prompt": {"1": {"inputs": {}}}})
    await client.ask("of none", "GET", "/history/00000000-0000-4000-8000-000000000000")
    await client.ask("cancel none", "POST", "/queue", json={"delete": ["00000000-0000-4000-8000-000000000000"]})
    await client.ask("interrupt nothing", "POST", "/interrupt", json={})
    return client.steady()


async def run_with_an_upload(gateway: RunningGateway) -> Any:
    client = Client(gateway)
    form = aiohttp.FormData()
    form.add_field("image", PNG, filename="photo.png", content_type="image/png")
    await client.ask("upload", "POST", "/upload/image", data=form)
    await client.ask("uploaded", "GET", "/view", params={"filename": "photo.png", "type": "input"})
    entry = await client.entry("history", await client.prompt("prompt", loading_workflow("photo.png")))
    [made] = entry["outputs"]["3"]["images"]
    await client.ask("view", "GET", "/view", params=made)
    # The output of one prompt is the input of another.
    name = f"{made['subfolder']}/{made['filename']} [output]"
    entry = await client.entry("history again", await client.prompt("again", loading_workflow(name)))
    await client.ask("view again", "GET", "/view", params=entry["outputs"]["3"]["images"][0])
    # The contents differ, because the names in the workflows inside the pictures have the ids of the prompts.
    for name in ("view", "view again"):
        status, content_type, content = client.answers[name]
        client.answers[name] = status, content_type, content[:4]
    return client.steady()


@pytest.mark.parametrize("send", [run_a_prompt, run_a_failing_prompt, send_invalid_requests, run_with_an_upload])
async def test_the_same_requests_get_the_same_answers_from_both(
    send: Any, comfyui_and_runpod: tuple[RunningGateway, RunningGateway, Engine]
) -> None:
    over_comfyui, over_runpod, _ = comfyui_and_runpod
    expected, answers = await send(over_comfyui), await send(over_runpod)
    assert list(answers) == list(expected)
    for name, answer in expected.items():
        assert answers[name] == answer, name


async def test_running_and_waiting_prompts_are_listed_and_cancelled_alike(
    comfyui_and_runpod: tuple[RunningGateway, RunningGateway, Engine],
) -> None:
    answers = []
    for gateway in comfyui_and_runpod[:2]:
        client = Client(gateway)
        async with gateway.http.ws_connect("/ws?clientId=tab") as websocket:
            tab = Tab(websocket)
            await tab.read_until("status")
            running = await client.prompt("runs", sleep_workflow(600))
            while (await tab.read_until("executing", running))["node"] != "4":
                pass
            waiting = await client.prompt("waits", invert_workflow(5))
            await client.ask("queue", "GET", "/queue")
            await client.ask("remaining", "GET", "/prompt")
            await client.ask("of one", "GET", f"/api/jobs/{waiting}")
            await client.ask("take one away", "POST", "/queue", json={"delete": [waiting]})
            await client.ask("interrupt", "POST", "/interrupt", json={})
            await tab.read_until("execution_interrupted", running)
        for name, prompt_id in (("history", running), ("history of the other", waiting)):
            await client.entry(name, prompt_id)
        await client.ask("queue after", "GET", "/queue")
        answers.append(client.steady())
    assert answers[1] == answers[0]
    assert await until(lambda: queue_of(comfyui_and_runpod[2]), lambda queue: queue == ([], [])) == ([], []), (
        "the worker stopped too"
    )


async def test_frames_are_a_part_of_comfyuis_in_the_same_order(
    comfyui_and_runpod: tuple[RunningGateway, RunningGateway, Engine],
) -> None:
    frames = []
    for gateway in comfyui_and_runpod[:2]:
        client, workflow = Client(gateway), sleep_workflow(0.4, tag=7)
        workflow["4"]["inputs"]["steps"] = 4
        async with gateway.http.ws_connect("/ws?clientId=tab") as websocket:
            tab = Tab(websocket)
            await tab.read_until("status")
            await tab.read_until(ENDED, await client.prompt("prompt", workflow))
            frames.append(in_words(tab.frames, "a"))
    comfyui, runpod = frames
    seen = [words for words in runpod if not words.startswith("progress")]
    left = iter(comfyui)
    assert [words for words in seen if words not in left] == [], "each is one of ComfyUI's frames, in its order"
    kinds = [words.partition(":")[0] for words in runpod]
    assert (kinds[:2], kinds[-3:]) == (
        ["execution_start", "execution_cached"],
        ["executed", "execution_success", ENDED],
    )
    assert any(words.startswith("progress_state") for words in runpod)
