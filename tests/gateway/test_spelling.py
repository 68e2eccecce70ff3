"""Servers on different systems separate folders differently: each gets a prompt in its own spelling."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from comfyui.engine import Engine, EngineOptions
from tests.support.engine_workflows import txt2img
from tests.support.relaying import eventually
from tests.support.running import graphs_of, running_gateway

SPELLINGS = ("sd/xl/one.safetensors", "sd\\xl\\one.safetensors", "sd/xl\\one.safetensors")


def engine(spelling: str) -> Engine:
    return Engine(EngineOptions(models={"checkpoints": (spelling,)}))


async def spellings_on(engine: Engine) -> list[str]:
    """The checkpoint of each prompt that the engine has run."""
    return [graph["4"]["inputs"]["ckpt_name"] for graph in await graphs_of(engine)]


@pytest.mark.parametrize("preflight", [False, True])
@pytest.mark.parametrize("sent", SPELLINGS)
async def test_each_of_three_servers_gets_its_own_spelling(sent: str, preflight: bool) -> None:
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(engine(spelling)) for spelling in SPELLINGS]
        addresses = [f"gpu-{number}={one.url}" for number, one in enumerate(made)]
        gateway = await stack.enter_async_context(running_gateway(*addresses, preflight=preflight))
        await eventually(lambda: len(gateway.handler.pool.ready) == len(made))
        for chosen in gateway.handler.pool.backends:
            for other in gateway.handler.pool.backends:
                other.drain(other is not chosen)
            status, answer = await gateway.prompt_sync(txt2img(checkpoint=sent, text="an a/b\\c text"))
            assert status == 200, answer
        assert [await spellings_on(one) for one in made] == [[spelling] for spelling in SPELLINGS]


@pytest.mark.parametrize("preflight", [False, True])
async def test_a_single_server_gets_its_own_spelling_too(preflight: bool) -> None:
    async with engine(SPELLINGS[1]) as only, running_gateway(only.url, preflight=preflight) as gateway:
        status, answer = await gateway.prompt_sync(txt2img(checkpoint=SPELLINGS[0]))
        assert status == 200, answer
        assert await spellings_on(only) == [SPELLINGS[1]]


async def test_validate_accepts_another_spelling() -> None:
    async with engine(SPELLINGS[1]) as only, running_gateway(only.url) as gateway:
        async with gateway.http.post("/validate", json={"prompt": txt2img(checkpoint=SPELLINGS[0])}) as response:
            answer = await response.json()
        assert answer["valid"], answer


async def test_a_model_that_exists_in_no_spelling_is_refused() -> None:
    async with engine(SPELLINGS[1]) as only, running_gateway(only.url) as gateway:
        status, answer = await gateway.prompt_sync(txt2img(checkpoint="sd/other.safetensors"))
    assert status == 400
    assert "sd/other.safetensors" in str(answer)
