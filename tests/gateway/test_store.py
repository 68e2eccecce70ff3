"""Outputs in object storage: settings and requests choose a place on a real S3 server."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from comfyui.engine import Engine
from comfyui.exceptions import SettingsError
from config import Settings
from server import create_app
from tests.support.object_store import ACCESS_KEY, OTHER_OUTPUTS_BUCKET, OUTPUTS_BUCKET, SECRET_KEY
from tests.support.outputs import simulated_bytes, simulated_output
from tests.support.running import RunningGateway, invert_workflow, requests, running_gateway


async def fetch(url: str) -> tuple[bytes, str]:
    async with aiohttp.ClientSession() as http, http.get(URL(url, encoded=True)) as response:
        assert response.status == 200, await response.text()
        return await response.read(), response.content_type


async def test_a_stored_output_can_be_fetched_by_its_link(storing_gateway: RunningGateway) -> None:
    prompt_id = str(uuid4())
    place = {"store": "s3", "prefix": "user 7", "presign_seconds": 60}
    status, body = await storing_gateway.prompt_sync(invert_workflow(), prompt_id=prompt_id, output=place)
    (image,) = body["images"]
    assert status == 200
    assert image["bucket"] == OUTPUTS_BUCKET
    assert image["key"].startswith("renders/user_7")
    assert image["key"].endswith(f"/{prompt_id}/test_00001_.png")
    content, content_type = await fetch(image["url"])
    assert content.startswith(b"\x89PNG")
    assert (content_type, len(content)) == ("image/png", image["size"])
    assert URL(image["url"], encoded=True).query["X-Amz-Expires"] == "60"
    async with storing_gateway.http.get(image["view_url"]) as response:
        assert await response.read() == content
    assert "base64" not in image
    assert SECRET_KEY not in json.dumps(body)


async def test_a_large_output_is_stored_in_full(storing_gateway: RunningGateway) -> None:
    size = 20_000_000
    _, body = await storing_gateway.prompt_sync({"1": simulated_output(size)}, output={"store": "s3"})
    content, content_type = await fetch(body["images"][0]["url"])
    assert content_type == "video/mp4"
    assert hashlib.sha256(content).digest() == hashlib.sha256(simulated_bytes(size)).digest()


async def test_a_request_may_choose_another_allowed_bucket(storing_gateway: RunningGateway) -> None:
    _, body = await storing_gateway.prompt_sync(
        invert_workflow(), output={"store": "s3", "bucket": OTHER_OUTPUTS_BUCKET}
    )
    assert body["images"][0]["bucket"] == OTHER_OUTPUTS_BUCKET
    await fetch(body["images"][0]["url"])


async def test_an_answer_may_have_base64_and_a_link(storing_gateway: RunningGateway) -> None:
    _, body = await storing_gateway.prompt_sync(invert_workflow(), output={"store": "s3"}, return_image_base64=True)
    assert body["images"][0]["base64"]
    assert body["images"][0]["url"].startswith("http")


@pytest.mark.parametrize(
    ("place", "status", "named"),
    [
        ({"store": "s3", "bucket": "bucket-of-another"}, 400, "may not store in the bucket"),
        ({"store": "s3", "presign_seconds": 10_000_000}, 400, "presign_seconds"),
        ({"store": "ftp"}, 422, "output.store"),
        ({"store": "s3", "path": "x"}, 422, "output.path: there is no such field"),
    ],
)
async def test_an_invalid_place_for_outputs_is_refused_before_the_prompt_is_submitted(
    storing_gateway: RunningGateway, engine: Engine, place: dict[str, Any], status: int, named: str
) -> None:
    answered, body = await storing_gateway.prompt_sync(invert_workflow(), output=place)
    assert answered == status
    assert named in body["detail"]
    assert requests(engine, "POST /prompt") == 0


async def test_a_request_for_a_store_is_refused_when_none_is_set(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        status, body = await gateway.prompt_sync(invert_workflow(), output={"store": "s3"})
        assert (status, body["type"]) == (400, "storage_refused")
        assert "S3_BUCKET" in body["detail"]


async def test_a_request_may_decline_the_default_store(engine: Engine, s3_variables: dict[str, Any]) -> None:
    async with running_gateway(engine.url, **s3_variables, output_store="s3") as gateway:
        _, body = await gateway.prompt_sync(invert_workflow(1))
        await fetch(body["images"][0]["url"])
        _, body = await gateway.prompt_sync(invert_workflow(2), output={"store": "none"})
        assert body["images"][0]["url"].startswith("/view?")


@pytest.mark.parametrize("broken", [{"s3_bucket": "no-such-bucket"}, {"s3_secret_access_key": "wrong"}])
async def test_a_failed_upload_is_reported_in_a_successful_answer(
    engine: Engine, s3_variables: dict[str, Any], broken: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_gateway(engine.url, **{**s3_variables, **broken}) as gateway:
        status, body = await gateway.prompt_sync(invert_workflow(), output={"store": "s3"}, return_image_base64=True)
    (image,) = body["images"]
    assert (status, body["status"]) == (200, "success")
    assert "bucket" in image["error"]
    assert image["url"].startswith("/view?")
    assert image["base64"]
    said = json.dumps(body) + "".join(capsys.readouterr())
    for secret in (ACCESS_KEY, SECRET_KEY, "X-Amz-Signature"):
        assert secret not in said


async def test_an_unreachable_store_is_reported_in_a_successful_answer(
    engine: Engine, s3_variables: dict[str, Any]
) -> None:
    async with running_gateway(engine.url, **{**s3_variables, "s3_endpoint_url": "http://127.0.0.1:9"}) as gateway:
        status, body = await gateway.prompt_sync(invert_workflow(), output={"store": "s3"})
    assert status == 200
    assert "cannot be reached" in body["images"][0]["error"]


async def test_a_missing_file_is_reported_in_a_successful_answer(
    storing_gateway: RunningGateway, engine: Engine
) -> None:
    await engine.set_faults({"output_deleted": {"match": "first*"}})
    workflow = {"1": simulated_output(prefix="first"), "2": simulated_output(prefix="second")}
    status, body = await storing_gateway.prompt_sync(workflow, output={"store": "s3"})
    gone, there = body["images"]
    assert status == 200
    assert "first_00001_.mp4" in gone["error"]
    assert await fetch(there["url"]) == (simulated_bytes(1000), "video/mp4")


async def test_an_attached_client_may_request_storage(storing_gateway: RunningGateway) -> None:
    prompt_id = str(uuid4())
    await storing_gateway.prompt_sync(invert_workflow(), prompt_id=prompt_id)
    async with storing_gateway.http.get(f"/prompt_sync/{prompt_id}?store=s3&bucket={OTHER_OUTPUTS_BUCKET}") as response:
        image = (await response.json())["images"][0]
    assert image["bucket"] == OTHER_OUTPUTS_BUCKET
    await fetch(image["url"])


async def test_the_result_event_has_links_to_stored_files(storing_gateway: RunningGateway) -> None:
    body = {"prompt": invert_workflow(), "output": {"store": "s3"}}
    async with storing_gateway.http.post(
        "/prompt_sync", json=body, headers={"Accept": "text/event-stream"}
    ) as response:
        last = (await response.text()).rstrip().rpartition("data: ")[2]
    await fetch(json.loads(last)["images"][0]["url"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"output_store": "s3"}, "S3_BUCKET must be set"),
        ({"s3_bucket": "b" * 3, "s3_access_key_id": "x"}, "must be set together"),
        ({"s3_bucket": "abc", "s3_endpoint_url": "http://key:secret@host"}, "without user and password"),
    ],
)
def test_unusable_store_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Settings(**settings)


def test_an_invalid_bucket_name_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="S3_BUCKET"):
        create_app(Settings(s3_bucket="a/b"))


def test_the_repr_of_settings_hides_keys() -> None:
    assert "topsecret" not in repr(
        Settings(s3_access_key_id=SecretStr("topsecret"), s3_secret_access_key=SecretStr("topsecret"))
    )
