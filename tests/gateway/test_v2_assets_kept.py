"""Assets of Comfy API v2: they survive a kill of the gateway, large ones cost little memory, and clients may leave."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from blake3 import blake3

from comfyui.engine import Engine
from tests.support.engine_workflows import writing
from tests.support.pictures import color_of, picture
from tests.support.processes import GatewayProcess, gateway_process, peak_kb
from tests.support.running import RunningGateway, engines, until
from tests.support.target import node
from tests.support.v2 import ASSETS, JOBS, ask, asset_reference, comfy, reading, submit, until_ended, upload

_SIZE = 300_000_000
_LIMIT_KB = 60_000


async def test_assets_and_outputs_are_the_same_after_a_kill(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    async with engines(3) as servers:
        addresses = ",".join(one.url for one in servers)
        async with gateway_process(addresses, STATE_DIR=state) as gateway:
            _, asset = await upload(gateway, picture((0x11, 0x22, 0x33)), "a.png")
            workflow = {**reading(asset_reference(asset["id"])), "7": node("PreviewAny", source="told")}
            job = await until_ended(gateway, await submit(gateway, workflow))
            contents = {one["id"]: await content_of(gateway, one["id"]) for one in job["outputs"]}
            known = [(await ask(gateway, f"{ASSETS}/{one}"))[1] for one in (asset["id"], *contents)]
            await gateway.kill()
        async with gateway_process(addresses, STATE_DIR=state) as gateway:
            _, same = await ask(gateway, f"{JOBS}/{job['id']}")
            assert [one["id"] for one in same["outputs"]] == list(contents)
            assert [without_links(one) for one in same["outputs"]] == [
                {**without_links(one), "hash": f"blake3:{blake3(contents[one['id']]).hexdigest()}"}
                for one in job["outputs"]
            ]
            for one in known:
                _, found = await ask(gateway, f"{ASSETS}/{one['id']}")
                assert without_links(found) == without_links(one)
            for name, content in contents.items():
                assert await content_of(gateway, name) == content
            for one in (asset["id"], job["outputs"][0]["id"]):
                again = await until_ended(gateway, await submit(gateway, reading(asset_reference(one))))
                assert color_of(await content_of(gateway, again["outputs"][0]["id"])) == (0x11, 0x22, 0x33)


def without_links(shown: dict[str, object]) -> dict[str, object]:
    """The gateway has another port after a restart."""
    return {name: value for name, value in shown.items() if name != "url"}


async def content_of(gateway: RunningGateway | GatewayProcess, asset_id: str) -> bytes:
    async with gateway.http.get(f"{ASSETS}/{asset_id}/content") as response:
        assert response.status == 200
        return await response.read()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's peak memory from /proc")
@pytest.mark.timeout(300)
async def test_assets_of_300_mb_cost_little_memory(engine: Engine, tmp_path: Path) -> None:
    with (tmp_path / "large.mp4").open("wb") as file:
        file.write(b"begin")
        file.truncate(_SIZE)
    async with gateway_process(engine.url, STATE_DIR=str(tmp_path / "state")) as gateway, comfy(gateway.url) as client:
        await client.assets.from_bytes(b"small", filename="small.mp4").commit()
        before = peak_kb(gateway)
        asset = client.assets.from_file(tmp_path / "large.mp4")
        await asset.commit()
        assert asset.created_new
        again = client.assets.from_file(tmp_path / "large.mp4")
        await again.commit()
        assert (again.created_new, again.hash) == (False, asset.hash)
        async with gateway.http.get(f"{ASSETS}/{asset.id}/content") as response:
            assert (response.status, response.content_length) == (200, _SIZE)
            size = sum([len(chunk) async for chunk in response.content.iter_any()])
        assert size == _SIZE
        job = await client.submit(client.workflows.from_json(writing(size=_SIZE, extension="mp4", key="video")))
        await job.result()
        (output,) = job.outputs
        assert output.size_bytes == _SIZE
        path = await output.to_file(tmp_path / "made.mp4")
        part = await output.to_bytes(range=(_SIZE - 4, _SIZE - 1))
        cost = peak_kb(gateway) - before
        digest = blake3().update_mmap(path)
        assert part == path.read_bytes()[-4:]
        assert (await client.assets.get(output.id)).hash == f"blake3:{digest.hexdigest()}"
    print(f"{_SIZE / 1e6:.0f} MB cost {cost / 1000:.1f} MB")
    assert cost < _LIMIT_KB


async def test_the_bytes_of_an_upload_are_released_when_a_client_leaves(gateway: RunningGateway) -> None:
    async with comfy(gateway.url) as client:
        asset = client.assets.from_bytes(b"x" * 50_000_000, filename="large.bin")
        # The SDK reads the head of the answer, and drops the connection.
        assert (await asset.get_download_url()).url == f"{gateway.url}{ASSETS}/{asset.id}/content"
        await asset.delete()
    await until(gateway.handler.uploads.sweep, lambda removed: removed == 1, timeout_s=30)
