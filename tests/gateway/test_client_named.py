"""Named workflows through the SDK and ``client.py workflows``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from comfyui.sdk import Finished, GatewayClient, GatewayError, GatewayRefusedError
from comfyui.sdk.command_line import Exit
from tests.support import command_line
from tests.support.keys import ALICE
from tests.support.named_folder import png
from tests.support.running import RunningGateway


async def test_the_sdk_lists_shows_and_runs_named_workflows(named: RunningGateway) -> None:
    async with GatewayClient(named.url) as gateway:
        found = {one.name: one for one in await gateway.named.list()}
        assert (found["flat"].title, found["flat"].problem, list(found)) == (
            "Flat",
            None,
            ["broken", "flat", "inverted"],
        )
        shown = await gateway.named.show("flat")
        assert (shown.outputs, set(shown.parameters["properties"])) == (("picture",), {"seed", "width", "prompt"})
        assert [lacks for lacks in shown.missing.values() if lacks] == []
        result = await gateway.named.run("flat", {"width": 9, "seed": 5})
        assert result.workflow is not None
        assert result.workflow["parameters"] == {"width": 9, "seed": 5, "prompt": "flat"}
        assert [file.output for file in result.files] == ["picture"]
        inverted = await gateway.named.run("inverted", {"image": png("black")}, return_base64=True)
        assert inverted.files[0].base64
        events = [event async for event in gateway.named.stream("flat", {"width": 7})]
        assert isinstance(events[-1], Finished)


async def test_the_sdk_submits_a_named_workflow_as_a_job(named: RunningGateway) -> None:
    async with GatewayClient(named.url) as gateway:
        job = await gateway.named.submit("flat", {"width": 3}, labels={"order": "1"}, idempotency_key="order 1")
        again = await gateway.named.submit("flat", {"width": 3}, idempotency_key="order 1")
        assert job.prompt_id == again.prompt_id
        result = await gateway.wait(job.prompt_id)
        assert result.workflow is not None
        assert result.workflow["parameters"]["width"] == 3
        [listed] = [one async for one in gateway.jobs(workflow="flat", labels={"order": "1"})]
        assert (listed.prompt_id, listed.workflow) == (job.prompt_id, "flat")
        with pytest.raises(ValueError, match="either"):
            await gateway.named.submit("flat", prompt_id=job.prompt_id, idempotency_key="x")


async def test_the_sdk_says_which_parameter_is_wrong(named: RunningGateway) -> None:
    async with GatewayClient(named.url) as gateway:
        with pytest.raises(GatewayRefusedError) as refused:
            await gateway.named.run("flat", {"width": 99, "widht": 1})
        assert (refused.value.type, set(refused.value.parameters)) == ("invalid_parameters", {"width", "widht"})
        assert refused.value.to_json()["parameters"]["widht"]["closest"] == "width"
        with pytest.raises(GatewayRefusedError) as unknown:
            await gateway.named.show("../etc")
        assert unknown.value.status == 404
        with pytest.raises(GatewayError) as unusable:
            await gateway.named.run("broken")
        assert unusable.value.type == "workflow_unusable"


async def test_the_commands_list_show_and_run_named_workflows(
    named: RunningGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def cli(*arguments: str) -> command_line.Ran:
        return await command_line.cli_here(capsys, "workflows", *arguments, "--server", named.url)

    listed = await cli("list")
    assert (listed.code, "flat" in listed.out, "cannot be called" in listed.out) == (Exit.OK, True, True)
    shown = await cli("show", "flat")
    assert (shown.code, "integer from 1 to 64" in shown.out, "outputs: picture" in shown.out) == (Exit.OK, True, True)
    photo = tmp_path / "photo.png"
    photo.write_bytes(png("black"))
    ran = await cli("run", "inverted", "--file", f"image={photo}", "--output", str(tmp_path / "out"))
    assert ran.code == Exit.OK, ran.out
    [made] = (tmp_path / "out").iterdir()
    with Image.open(made) as picture:
        assert picture.convert("RGB").getcolors() == [(48, (255, 255, 255))]
    ran = await cli(
        "run", "flat", "--set", "width=9", "--set", "prompt=5", "--set", "seed:=7", "--output", str(tmp_path)
    )
    assert ran.code == Exit.OK, ran.out
    for wrong, told in (
        (("run", "flat", "--set", "width"), "expected NAME=TEXT"),
        (("run", "flat", "--set", "width:=x"), "must be followed by JSON"),
        (("run", "flat", "--set", "width=1", "--set", "width=2"), "must not be given twice"),
        (("run", "inverted", "--file", "image=nowhere.png"), "nowhere.png"),
    ):
        refused = await cli(*wrong)
        assert (refused.code, told in refused.out + refused.err) == (Exit.USAGE, True), wrong
    refused = await cli("run", "flat", "--set", "width=99")
    assert refused.code == Exit.REFUSED


async def test_a_key_without_the_right_to_a_workflow_gets_forbidden(limited: RunningGateway) -> None:
    async with GatewayClient(limited.url, ALICE) as gateway:
        with pytest.raises(GatewayRefusedError) as refused:
            await gateway.named.run("inverted", {"image": png()})
        assert (refused.value.status, refused.value.type) == (403, "forbidden")
        assert json.dumps(refused.value.to_json())
