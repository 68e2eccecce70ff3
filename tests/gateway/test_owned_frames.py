"""A user's websocket gets only the frames of its own prompts and the length of its own queue."""

from __future__ import annotations

import struct
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.calls import Calls
from tests.support.keys import ALICE, BOB, ROOT, WATCHER, bearer
from tests.support.running import invert_workflow, queue_of, sleep_workflow, until
from tests.support.tabs import ENDED, Tab


async def _prompt(calls: Calls, key: str, workflow: Any, client_id: str | None) -> str:
    body = {"prompt": workflow} | ({} if client_id is None else {"client_id": client_id})
    status, told = await calls.call(key, "POST", "/prompt", body)
    assert status == 200, told
    return str(told["prompt_id"])


@pytest.mark.parametrize("path", ["/ws", "/api/ws"])
async def test_two_keys_with_the_same_client_id_see_only_their_own_prompts(calls: Calls, path: str) -> None:
    ws = calls.gateway.http.ws_connect
    async with (
        ws(f"{path}?clientId=tab", headers=bearer(ALICE)) as a,
        ws(f"{path}?clientId=tab", headers=bearer(BOB)) as b,
    ):
        alice, bob = Tab(a), Tab(b)
        for tab in (alice, bob):
            status = await tab.read_until("status")
            assert status == {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "tab"}
        mine = await _prompt(calls, ALICE, sleep_workflow(0.1, tag=1), "tab")
        theirs = await _prompt(calls, BOB, sleep_workflow(0.1, tag=2), "tab")
        await alice.read_until(ENDED, mine)
        await bob.read_until(ENDED, theirs)
        kinds = [told["type"] for told in alice.texts if told["data"].get("prompt_id") == mine]
        assert {"execution_start", "executing", "executed", "execution_success"} <= set(kinds)
        assert (alice.prompts, bob.prompts) == ({mine}, {theirs})
        # After the last frame, the history has the prompt.
        assert mine in (await calls.call(ALICE, "GET", f"/history/{mine}"))[1]


async def test_frames_that_comfyui_sends_to_all_do_not_reach_other_users(calls: Calls, engine: Engine) -> None:
    """ComfyUI sends interrupts, the length of its queue, and all frames of a prompt without client id to everyone."""
    async with calls.gateway.http.ws_connect("/ws", headers=bearer(ALICE)) as websocket:
        alice = Tab(websocket)
        first = await alice.read_until("status")
        assert first["sid"]
        assert "alice" not in first["sid"]
        steps = sleep_workflow(600)
        steps["4"]["inputs"]["steps"] = 50
        theirs = await _prompt(calls, ROOT, steps, None)
        await until(lambda: queue_of(engine), lambda queue: theirs in queue[0])
        assert (await fetch_status(calls, ROOT, "/interrupt")) == 200
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
        mine = await _prompt(calls, ALICE, invert_workflow(3), first["sid"])
        await alice.read_until(ENDED, mine)
        assert alice.prompts == {mine}
        lengths = [
            told["data"]["status"]["exec_info"]["queue_remaining"] for told in alice.texts if told["type"] == "status"
        ]
        assert set(lengths) <= {0, 1}
        first_own = next(place for place, told in enumerate(alice.texts) if told["data"].get("prompt_id") == mine)
        before = [told["data"]["status"]["exec_info"]["queue_remaining"] for told in alice.texts[1:first_own]]
        assert 0 not in before, "no frame comes while only others have prompts"
        assert {told["type"] for told in alice.texts} <= {
            *("status", "execution_start", "execution_cached", "executing", "progress", "progress_state", "executed"),
            "execution_success",
        }


async def fetch_status(calls: Calls, key: str, path: str) -> int:
    async with calls.gateway.http.post(path, headers=bearer(key)) as response:
        return response.status


async def test_a_user_gets_previews_of_its_own_prompts_only(calls: Calls, engine: Engine) -> None:
    workflow: Any = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a", "clip": ["1", 1]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["3", 0],
                "seed": 1,
                "steps": 4,
                "cfg": 7,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "p"}},
    }
    async with aiohttp.ClientSession() as http, http.get(f"{engine.url}/models/checkpoints") as answer:
        workflow["1"]["inputs"]["ckpt_name"] = (await answer.json())[0]
    ws = calls.gateway.http.ws_connect
    async with ws("/ws?clientId=t", headers=bearer(ALICE)) as a, ws("/ws?clientId=t", headers=bearer(BOB)) as b:
        await a.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        alice, bob = Tab(a), Tab(b)
        await alice.read_until("feature_flags")
        mine = await _prompt(calls, ALICE, workflow, "t")
        await alice.read_until(ENDED, mine)
        workflow["4"]["inputs"]["seed"] = 2
        theirs = await _prompt(calls, BOB, workflow, "t")
        await bob.read_until(ENDED, theirs)
        assert alice.pictures
        assert bob.pictures
        assert {struct.unpack(">I", picture[:4])[0] for picture in alice.pictures} == {4}
        assert {struct.unpack(">I", picture[:4])[0] for picture in bob.pictures} == {1}
        assert alice.prompts == {mine}


@pytest.mark.parametrize("path", ["/ws", "/ws?clientId=t", "/api/ws"])
async def test_a_key_of_role_read_cannot_open_a_websocket(calls: Calls, path: str) -> None:
    """With the client id of another user it would take that user's events away."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await calls.gateway.http.ws_connect(path, headers=bearer(WATCHER))
    assert refused.value.status == 403
