"""Node definitions, models and facts about the servers of a gateway with several servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from comfyui.engine import Engine, EngineOptions
from tests.support.keys import ALICE, KEYS, bearer, write_keys
from tests.support.relaying import eventually
from tests.support.running import RunningGateway, requests, running_gateway, until

_MODELS: tuple[dict[str, Any], ...] = (
    {"checkpoints": ("z.safetensors", "a.safetensors"), "loras": (), "embeddings": ("first.pt",)},
    {"checkpoints": ("a.safetensors", "b.safetensors"), "loras": ("only.safetensors",), "embeddings": ("second.pt",)},
    {"checkpoints": ("c.safetensors",), "loras": (), "embeddings": (), "more": ("x.bin",)},
)
_FEATURES: tuple[dict[str, Any], ...] = ({"flag": True}, {"flag": False, "max_upload_size": 7}, {"flag": True})


@asynccontextmanager
async def three(**settings: Any) -> AsyncIterator[tuple[list[Engine], RunningGateway]]:
    """A gateway with the servers gpu-1, gpu-2 and gpu-3, each with its own models and features."""
    async with (
        Engine(EngineOptions(models=_MODELS[0], features=_FEATURES[0])) as first,
        Engine(EngineOptions(models=_MODELS[1], features=_FEATURES[1])) as second,
        Engine(EngineOptions(models=_MODELS[2], features=_FEATURES[2])) as third,
    ):
        engines = [first, second, third]
        named = [f"gpu-{number}={engine.url}" for number, engine in enumerate(engines, 1)]
        async with running_gateway(*named, **settings) as gateway:
            await eventually(lambda: len(gateway.handler.pool.ready) == 3)
            yield engines, gateway


async def get(gateway: RunningGateway, path: str, key: str | None = None) -> Any:
    async with gateway.http.get(path, headers={} if key is None else bearer(key)) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def checkpoints(gateway: RunningGateway, path: str = "/object_info") -> list[str]:
    listed: list[str] = (await get(gateway, path))["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    return listed


async def test_node_definitions_have_the_models_of_all_servers_and_are_cached() -> None:
    async with three() as (engines, gateway):
        wanted = [f"{name}.safetensors" for name in "zabc"]
        assert await checkpoints(gateway) == wanted
        assert await checkpoints(gateway, "/api/object_info/CheckpointLoaderSimple") == wanted
        assert await get(gateway, "/object_info/NoSuchNode") == {}
        for _ in range(20):
            await get(gateway, "/object_info")
        asked = [requests(engine, "GET /object_info") for engine in engines]
    assert max(asked) < 10  # not one for each request


async def test_models_of_a_server_leave_and_join_the_lists_with_it() -> None:
    async with three() as (engines, gateway):
        assert "b.safetensors" in await checkpoints(gateway)
        await engines[1].set_faults({"ws_refuse": {}, "status": {"status": 503}, "ws_drop": {}})
        await until(lambda: checkpoints(gateway), lambda listed: "b.safetensors" not in listed)
        assert await get(gateway, "/models/loras") == []
        engines[1].faults.clear()
        assert await until(lambda: checkpoints(gateway), lambda listed: "b.safetensors" in listed)
        assert await until(lambda: get(gateway, "/models/loras"), lambda listed: listed == ["only.safetensors"])


async def test_the_last_node_definitions_remain_while_no_server_is_up() -> None:
    async with three() as (engines, gateway):
        before = await get(gateway, "/object_info")
        for engine in engines:
            await engine.set_faults({"ws_refuse": {}, "status": {"status": 503}, "ws_drop": {}})
        await eventually(lambda: not gateway.handler.pool.ready)
        assert await get(gateway, "/object_info") == before


async def test_model_lists_are_the_union_of_all_servers() -> None:
    async with three() as (_, gateway):
        assert (await get(gateway, "/models"))[-1] == "more"
        assert await get(gateway, "/models/checkpoints") == [f"{name}.safetensors" for name in "zabc"]
        assert await get(gateway, "/api/models/more") == ["x.bin"]
        assert await get(gateway, "/embeddings") == ["first", "second"]
        files = await get(gateway, "/experiment/models/checkpoints")
        assert [file["name"] for file in files] == [f"{name}.safetensors" for name in "zabc"]
        (folders,) = [one["folders"] for one in await get(gateway, "/experiment/models") if one["name"] == "loras"]
        assert len(folders) == 3
        async with gateway.http.get("/models/nothing") as response:
            assert (response.status, await response.read()) == (404, b"")


async def test_the_metadata_of_a_file_comes_from_a_server_that_has_it() -> None:
    async with three() as (_, gateway):
        found = await get(gateway, "/view_metadata/loras?filename=only.safetensors")
        assert found["modelspec.title"] == "only.safetensors"
        async with gateway.http.get("/view_metadata/loras?filename=none.safetensors") as response:
            assert response.status == 404


async def test_system_stats_are_the_first_servers_with_the_devices_of_all() -> None:
    async with three() as (_, gateway):
        stats = await get(gateway, "/system_stats")
        assert stats["system"]["simulation"] is True
        assert [(one["index"], one["name"]) for one in stats["devices"]] == [
            (0, "gpu-1: simulation"),
            (1, "gpu-2: simulation"),
            (2, "gpu-3: simulation"),
        ]


async def test_features_are_those_that_all_servers_support() -> None:
    async with three() as (_, gateway):
        assert await get(gateway, "/features") == {
            "supports_preview_metadata": True,
            "max_upload_size": 7,
            "flag": False,
        }


async def test_a_server_that_answers_with_an_error_is_left_out_of_a_list() -> None:
    async with three() as (engines, gateway):
        await engines[2].set_faults({"status": {"route": "/models/*", "status": 500}})
        assert await get(gateway, "/models/checkpoints") == [f"{name}.safetensors" for name in "zab"]


async def test_a_user_sees_the_models_of_all_servers_but_no_uploaded_files(tmp_path: Path) -> None:
    async with three(keys_file=write_keys(tmp_path / "keys.toml", KEYS)) as (engines, gateway):
        (engines[1].folders.input / "another's.png").write_bytes(b"")
        shown = await get(gateway, "/object_info", ALICE)
    loader = shown["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"]
    assert loader[0] == [f"{name}.safetensors" for name in "zabc"]
    assert shown["LoadImage"]["input"]["required"]["image"][0] == []
