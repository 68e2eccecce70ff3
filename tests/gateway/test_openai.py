"""OpenAI's image API over named workflows, with the official Python client and as Open WebUI and LibreChat call it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from comfyui.engine import Engine
from comfyui.jobs.journal.records import JobFilter
from tests.support.jobs import listed
from tests.support.keys import ALICE, BOB, bearer
from tests.support.openai_models import opened, png, write_models
from tests.support.openai_sdk import openai_client
from tests.support.relaying import eventually
from tests.support.running import (
    RunningGateway,
    executions,
    graphs_of,
    handler_options,
    queue_of,
    running_gateway,
    until,
)

PERSON = "X-OpenWebUI-User-Id"


def made(data: Any) -> bytes:
    assert data.url is None
    return base64.b64decode(data.b64_json, validate=True)


async def test_a_generation_returns_a_picture_as_base64(openai_sdk: AsyncOpenAI) -> None:
    answer = await openai_sdk.images.generate(model="gpt-image-1", prompt="a cat", size="72x40")
    assert (answer.output_format, answer.size) == ("png", "72x40")
    assert answer.created > 1_700_000_000
    assert answer.data is not None
    assert opened(made(answer.data[0])).size == (72, 40)


async def test_each_of_several_pictures_is_a_run_with_its_own_seed(openai_sdk: AsyncOpenAI, engine: Engine) -> None:
    answer = await openai_sdk.images.generate(model="portrait", prompt="a cat", n=3)
    assert answer.data is not None
    assert len({made(data) for data in answer.data}) == 3
    assert len(executions(engine)) == 3


async def test_a_workflow_with_a_batch_makes_several_pictures_in_one_run(
    openai_sdk: AsyncOpenAI, engine: Engine
) -> None:
    answer = await openai_sdk.images.generate(model="sheet", prompt="a cat", n=3)
    assert answer.data is not None
    assert len(answer.data) == 3
    assert len(executions(engine)) == 1


@pytest.mark.parametrize(("output_format", "kind"), [("webp", "WEBP"), ("jpeg", "JPEG"), ("png", "PNG")])
async def test_a_picture_has_the_requested_format(openai_sdk: AsyncOpenAI, output_format: Any, kind: str) -> None:
    answer = await openai_sdk.images.generate(
        model="portrait", prompt="a", output_format=output_format, output_compression=80
    )
    assert answer.data is not None
    assert opened(made(answer.data[0])).format == kind
    assert (answer.output_format, answer.size) == (output_format, "64x48")


async def test_dall_e_models_return_a_url_that_opens_without_a_key_header(
    openai_sdk: AsyncOpenAI, models: RunningGateway
) -> None:
    answer = await openai_sdk.images.generate(model="dall-e-3", prompt="a cat", quality="hd", style="vivid", n=1)
    assert answer.data is not None
    [data] = answer.data
    assert answer.output_format == "png"
    assert data.b64_json is None
    assert data.url is not None
    assert data.url.startswith(f"{models.url}/v1/images/")
    assert data.url.endswith(".png")
    async with aiohttp.ClientSession() as http, http.get(data.url) as response:
        assert (response.status, response.content_type) == (200, "image/png")
        assert opened(await response.read()).size == (64, 48)


async def test_a_url_with_a_ticket_opens_one_picture_without_a_key_and_no_other(openai_keys: RunningGateway) -> None:
    async with openai_client(openai_keys.url, ALICE) as client:
        answer = await client.images.generate(model="portrait", prompt="a", response_format="url", output_format="webp")
    assert answer.data is not None
    url = answer.data[0].url
    assert answer.output_format == "webp"
    assert url is not None
    assert url.partition("?")[0].endswith(".webp")
    async with aiohttp.ClientSession() as http:
        async with http.get(url) as response:
            assert (response.status, response.content_type) == (200, "image/webp")
            assert opened(await response.read()).format == "WEBP"
        for other, key in ((url.partition("?")[0], None), (url.replace("/0.", "/1."), None), (url.split("?")[0], BOB)):
            async with http.get(other, headers=bearer(key) if key else {}) as response:
                assert response.status == (401 if key is None else 404)
                assert set((await response.json())["error"]) == {"message", "type", "param", "code"}


async def test_an_edit_takes_pictures_and_a_mask(openai_sdk: AsyncOpenAI) -> None:
    answer = await openai_sdk.images.edit(
        model="gpt-image-1",
        image=[("a.png", png((10, 20, 30))), ("a.png", png((1, 2, 3)))],
        mask=png((0, 0, 0, 55)),
        prompt="another sky",
    )
    assert answer.data is not None
    first, second, mask = (opened(made(data)).convert("RGB").getpixel((0, 0)) for data in answer.data)
    assert first == (245, 235, 225)
    assert second == (1, 2, 3)
    assert mask == (200, 200, 200)  # where OpenAI's mask is transparent, ComfyUI's is white


async def test_previews_come_as_partial_images(openai_sdk: AsyncOpenAI) -> None:
    told = [
        event
        async for event in await openai_sdk.images.generate(
            model="portrait", prompt="a", stream=True, partial_images=2, extra_body={"steps": 300}
        )
    ]
    assert told[-1].type == "image_generation.completed"
    assert opened(base64.b64decode(told[-1].b64_json)).size == (64, 48)
    partial = [event for event in told if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert 1 <= len(partial) <= 2


async def test_workflow_parameters_are_fields_and_ignored_fields_are_named(
    models: RunningGateway, engine: Engine
) -> None:
    body = {"model": "portrait", "prompt": "a", "steps": 7, "seed": 5, "background": "auto", "loras": [{"a": 1}]}
    async with models.http.post("/v1/images/generations", json=body) as response:
        assert response.status == 200
        assert response.headers["X-Ignored-Parameters"] == "background, loras"
    sampler = (await graphs_of(engine))[-1]["4"]["inputs"]
    assert (sampler["steps"], sampler["seed"]) == (7, 5)


async def test_models_are_workflows_and_their_aliases(openai_sdk: AsyncOpenAI) -> None:
    names = [model.id async for model in openai_sdk.models.list()]
    assert names == ["gpt-image-1", "dall-e-3", "broken", "portrait", "retouch", "sheet"]
    assert (await openai_sdk.models.retrieve("dall-e-3")).id == "dall-e-3"


async def test_a_key_sees_and_runs_only_its_own_workflows(openai_keys: RunningGateway) -> None:
    async with openai_client(openai_keys.url, BOB) as client:
        assert [model.id async for model in client.models.list()] == ["retouch"]
        with pytest.raises(openai.NotFoundError) as refused:
            await client.images.generate(model="portrait", prompt="a")
    known, _, offered = str(refused.value.message).partition("; ")
    assert known.endswith("'portrait' is no model for generations")
    assert offered
    assert "portrait" not in offered


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"model": "nope"}, "model", "model_not_found"),
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"n": "two"}, "n", "invalid_value"),
        ({"size": "big"}, "size", "invalid_value"),
        ({"size": "70x0"}, "size", "invalid_value"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        ({"response_format": "xml"}, "response_format", "invalid_value"),
        ({"steps": "many"}, "steps", "invalid_value"),
        ({"steps": 1001}, "steps", "invalid_value"),
        ({"user": 5}, "user", "invalid_value"),
    ],
)
async def test_an_unusable_parameter_is_named(
    models: RunningGateway, engine: Engine, asked: dict[str, Any], param: str, code: str
) -> None:
    async with models.http.post("/v1/images/generations", json={"prompt": "a", **asked}) as response:
        error = (await response.json())["error"]
        assert response.status == (404 if code == "model_not_found" else 400)
        assert response.headers["x-should-retry"] == "false"
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert not executions(engine)


async def test_a_model_whose_file_cannot_be_used_gives_the_reason(engine: Engine, tmp_path: Path) -> None:
    folder = write_models(tmp_path)
    (folder / "torn.json").write_text("{")
    async with running_gateway(engine.url, workflows_dir=folder, openai_models=("dall-e-3=torn",)) as gateway:
        for model in ("torn", "dall-e-3"):
            body = {"model": model, "prompt": "a"}
            async with gateway.http.post("/v1/images/generations", json=body) as response:
                error = (await response.json())["error"]
                assert (response.status, response.headers["x-should-retry"]) == (409, "false")
            assert error["code"] == "workflow_unusable"
            assert error["message"].startswith("the workflow torn cannot be used: its file is not JSON")


async def test_the_error_of_a_workflow_that_comfyui_refuses_names_its_node(engine: Engine, tmp_path: Path) -> None:
    folder = write_models(tmp_path)
    portrait = folder / "portrait.json"
    portrait.write_text(portrait.read_text().replace("v1-5-pruned-emaonly", "nowhere"))
    async with running_gateway(engine.url, workflows_dir=folder) as gateway:
        body = {"model": "portrait", "prompt": "a"}
        async with gateway.http.post("/v1/images/generations", json=body) as response:
            error = (await response.json())["error"]
    assert (response.status, error["code"]) == (400, "validation_failed")
    assert "node 1: Value not in list: ckpt_name: 'nowhere.safetensors'" in error["message"]


async def test_a_failed_render_is_not_repeated_by_the_client(models: RunningGateway, engine: Engine) -> None:
    async with openai_client(models.url, max_retries=2) as client:
        with pytest.raises(openai.InternalServerError) as failed:
            await client.images.generate(model="broken", prompt="a")
    assert failed.value.code == "task_failed"
    assert len(executions(engine)) == 1


async def test_a_retried_call_joins_the_job_of_the_first_call(models: RunningGateway, engine: Engine) -> None:
    body = {"model": "portrait", "prompt": "a house", "n": 2}
    pictures = []
    for count in ("0", "1", "2"):
        headers = {"x-stainless-retry-count": count}
        async with models.http.post("/v1/images/generations", json=body, headers=headers) as response:
            assert response.status == 200
            pictures.append([data["b64_json"] for data in (await response.json())["data"]])
    assert pictures[0] == pictures[1] == pictures[2]
    assert len(executions(engine)) == 2
    async with models.http.post("/v1/images/generations", json=body) as response:
        assert [data["b64_json"] for data in (await response.json())["data"]] != pictures[0]


async def test_a_retried_call_after_a_broken_connection_gets_the_first_job(
    models: RunningGateway, engine: Engine
) -> None:
    body = {"model": "portrait", "prompt": "a slow house", "steps": 60}
    await cut_off(models, engine, body, "0")
    assert await status_of(models, body, "1") == 200
    assert len(executions(engine)) == 1


async def test_a_broken_connection_cancels_the_job_of_a_client_that_never_retries(
    models: RunningGateway, engine: Engine
) -> None:
    body = {"model": "portrait", "prompt": "a slow house", "steps": 60}
    await cut_off(models, engine, body)
    await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
    # A retry that finds it cancelled runs the workflow again.
    assert await status_of(models, body, "1") == 200


async def cut_off(gateway: RunningGateway, engine: Engine, body: dict[str, Any], count: str | None = None) -> None:
    """Sends a call, and breaks its connection while ComfyUI works on it."""
    call = asyncio.create_task(status_of(gateway, body, count))
    await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
    call.cancel()
    await asyncio.wait([call])
    await eventually(lambda: gateway.handler.waiting == 0)


async def status_of(gateway: RunningGateway, body: dict[str, Any], count: str | None = None) -> int:
    headers = {} if count is None else {"x-stainless-retry-count": count}
    async with gateway.http.post("/v1/images/generations", json=body, headers=headers) as response:
        await response.read()
        return response.status


async def test_more_pictures_than_requests_may_wait_are_made_one_after_another(engine: Engine, tmp_path: Path) -> None:
    folder, two = write_models(tmp_path), handler_options(max_concurrent_requests=2)
    async with (
        running_gateway(engine.url, workflows_dir=folder, changed=two) as gateway,
        openai_client(gateway.url) as client,
    ):
        answer = await client.images.generate(model="portrait", prompt="a", n=5)
    assert answer.data is not None
    assert len({made(data) for data in answer.data}) == 5
    assert len(executions(engine)) == 5


async def test_a_call_without_a_model_runs_the_first_fitting_workflow_of_the_setting(
    models: RunningGateway,
) -> None:
    form, picture = aiohttp.FormData({"prompt": "a"}), png((200, 10, 10))
    for field, content in (("image[]", picture), ("image[]", picture), ("mask", png((0, 0, 0, 0)))):
        form.add_field(field, content, filename="a.png", content_type="image/png")
    for path, body in (("generations", {"json": {"prompt": "a"}}), ("edits", {"data": form})):
        async with models.http.post(f"/v1/images/{path}", **body) as response:
            assert response.status == 200
    assert [job["workflow"] for job in (await listed(models.http))["jobs"]] == ["retouch", "portrait"]


async def test_a_retried_edit_with_its_pictures_swapped_is_another_call(models: RunningGateway, engine: Engine) -> None:
    red, blue = png((200, 10, 10)), png((10, 10, 200))

    async def edited(first: bytes, second: bytes, count: str) -> list[str]:
        form = aiohttp.FormData([("model", "retouch"), ("prompt", "a")])
        for place, content in (("image[]", first), ("image[]", second), ("mask", png((0, 0, 0, 0)))):
            form.add_field(place, content, filename="a.png", content_type="image/png")
        headers = {"x-stainless-retry-count": count}
        async with models.http.post("/v1/images/edits", data=form, headers=headers) as response:
            assert response.status == 200
            return [data["b64_json"] for data in (await response.json())["data"]]

    made = await edited(red, blue, "0")
    assert await edited(red, blue, "1") == made
    assert len(executions(engine)) == 1
    assert (await edited(blue, red, "1"))[:2] != made[:2]
    assert len(executions(engine)) == 2


@pytest.mark.parametrize(("wrong", "field"), [(0, "image"), (1, "image"), (2, "mask")])
async def test_an_unusable_file_is_named_by_its_field(models: RunningGateway, wrong: int, field: str) -> None:
    form = aiohttp.FormData([("model", "retouch"), ("prompt", "a")])
    for index, place in enumerate(("image[]", "image[]", "mask")):
        content = b"" if index == wrong else png((0, 0, index, 0))
        form.add_field(place, content, filename="b.png", content_type="image/png")
    async with models.http.post("/v1/images/edits", data=form) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"], error["message"]) == (400, field, f"{field}: the content is empty")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_text_that_is_no_base64_is_named_by_its_field(models: RunningGateway, streamed: bool) -> None:
    good = base64.b64encode(png((0, 0, 0, 0))).decode()
    body = {"model": "retouch", "prompt": "a", "image": [good, "no base64!"], "mask": good, "stream": streamed}
    async with models.http.post("/v1/images/edits", json=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"], error["message"].partition(": ")[0]) == (400, "image", "image")


async def test_open_webui_and_librechat_get_the_answers_that_they_expect(models: RunningGateway) -> None:
    webui = {"model": "portrait", "prompt": "a", "n": 1, "size": "auto", "response_format": "b64_json"}
    async with models.http.post("/v1/images/generations", json=webui) as response:
        [data] = (await response.json())["data"]
        assert set(data) == {"b64_json"}
    chat = {"model": "gpt-image-1", "prompt": "a", "n": 1, "background": "auto", "output_format": "webp"}
    chat |= {"output_compression": 100, "quality": "auto", "size": "auto"}
    async with models.http.post("/v1/images/generations", json=chat) as response:
        [data] = (await response.json())["data"]
        assert opened(base64.b64decode(data["b64_json"])).format == "WEBP"


async def test_a_form_may_come_in_pieces_with_its_headers_in_any_order(models: RunningGateway) -> None:
    parts = [
        b"--b\r\nContent-Type: image/png\r\n"
        b'Content-Disposition: form-data; name="image[]"; filename="image.png"\r\n\r\n' + png((9, 9, 9)),
        b'--b\r\nContent-Type: text/plain\r\nContent-Disposition: form-data; name="model"\r\n\r\nretouch',
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nbluer',
        b'--b\r\nContent-Disposition: form-data; name="mask"; filename="m.png"\r\n\r\n' + png((0, 0, 0, 0)),
        b'--b\r\nContent-Disposition: form-data; name="image[]"; filename="image.png"\r\n\r\n' + png((7, 7, 7)),
        b"--b--\r\n",
    ]

    async def pieces() -> AsyncIterator[bytes]:
        for part in parts[:-1]:
            yield part + b"\r\n"
        yield parts[-1]

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    async with models.http.post("/v1/images/edits", data=pieces(), headers=headers) as response:
        answer = await response.json()
        assert response.status == 200, answer
    colors = [opened(base64.b64decode(data["b64_json"])).convert("RGB").getpixel((0, 0)) for data in answer["data"]]
    assert colors == [(246, 246, 246), (7, 7, 7), (255, 255, 255)]


async def test_persons_behind_one_key_own_their_own_jobs(openai_keys: RunningGateway) -> None:
    async with openai_client(openai_keys.url, ALICE) as client:
        await client.images.generate(model="portrait", prompt="a", user="kim")
        await client.images.generate(model="portrait", prompt="a", extra_headers={PERSON: "lee"})
    page = await openai_keys.handler.journal.page(JobFilter(), 10)
    assert [job.owner for job in page.records] == ["alice/lee", "alice/kim"]
