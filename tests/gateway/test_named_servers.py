"""`COMFYUI_SERVER_ADDRESS=gpu-1=host:port`: jobs, logs and results keep the server's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui import jsonio
from comfyui.address import parse_headers, parse_server_address
from comfyui.engine import Engine
from config import Settings
from tests.support.jobs import fetch, listed, submit
from tests.support.running import invert_workflow, running_gateway


async def test_a_job_and_its_file_are_found_after_its_server_changes_its_address(tmp_path: Path) -> None:
    """The journal keeps the result, and its file is read from the address that the server's name has now."""
    async with Engine() as engine:
        async with running_gateway(f"gpu-1={engine.url}", state_dir=tmp_path) as gateway:
            prompt_id = await submit(gateway.http, invert_workflow())
            status, result = await fetch(gateway.http, prompt_id)
            assert status == 200
            assert (await listed(gateway.http))["jobs"][0]["server"] == "gpu-1"
        other_spelling = engine.url.replace("127.0.0.1", "localhost")
        async with running_gateway(f"gpu-1={other_spelling}", state_dir=tmp_path) as gateway:
            async with gateway.http.get(f"/prompt_sync/{prompt_id}", headers={"Accept": "image/*"}) as response:
                assert (response.status, response.content_type) == (200, "image/png")
            assert (await fetch(gateway.http, prompt_id))[1]["outputs"] == result["outputs"]


@pytest.mark.parametrize(
    ("address", "name", "url"),
    [
        ("gpu-1=10.0.0.5:8188", "gpu-1", "http://10.0.0.5:8188"),
        ("big.gpu=https://u:p=w@comfy/base", "big.gpu", "https://comfy/base"),
        ("https://comfy/?a=b", "comfy:443/", "https://comfy/"),
    ],
)
def test_a_server_may_have_a_name_before_its_address(address: str, name: str, url: str) -> None:
    server = parse_server_address(address)
    assert (server.name.rstrip("/"), str(server.url).rstrip("/").partition("?")[0]) == (
        name.rstrip("/"),
        url.rstrip("/"),
    )


def test_two_servers_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="'gpu-1' is the name of several servers"):
        Settings(comfyui_server_address=("gpu-1=a:1", "gpu-1=b:1"))


@pytest.mark.parametrize("second", ["gpu-2=a:8188", "gpu-2=http://a:8188/", "gpu-2=a"])
def test_two_servers_cannot_share_an_address(second: str) -> None:
    with pytest.raises(ValueError, match="'http://a:8188' is listed more than once"):
        Settings(comfyui_server_address=("gpu-1=a:8188", second))


def test_headers_of_a_server_are_given_by_its_name_or_address() -> None:
    addresses = ("gpu-1=a:1", "b:1")
    for written in ("gpu-1", "a:1", "gpu-1=a:1"):
        found = parse_headers(jsonio.dumps({written: {"X-Key": "1"}}).decode(), addresses)
        assert found == {"gpu-1=a:1": {"X-Key": "1"}, "b:1": {}}
    with pytest.raises(ValueError, match="gpu-2"):
        parse_headers('{"gpu-2": {"X-Key": "1"}}', addresses)
