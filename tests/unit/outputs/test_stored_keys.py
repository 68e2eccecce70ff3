"""The exact keys of stored files. Links and folders from earlier versions must stay valid."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image
from pydantic import SecretStr

from comfyui.answer_json import FileEntry
from comfyui.models import ImageConversion, OutputFile, OutputPlace, PromptResult, Timings
from comfyui.outputs.delivery import Deliverer, DeliveryOptions, Order
from comfyui.outputs.files import OutputFiles
from comfyui.outputs.images import ImageConverter
from comfyui.outputs.keys import local_path, task_key
from comfyui.outputs.stores.s3 import S3Settings, S3Store
from comfyui.outputs.stores.store import ObjectStore, Placement
from comfyui.outputs.stores.supabase import SupabaseApi, SupabaseStorage
from comfyui.transport.body import IteratedBody, OpenBody
from comfyui.workers.runpod.job import parse_input, reply
from tests.support.local_store import LocalStore
from tests.support.pictures import encoded

ID = "7f000001-0000-4000-8000-000000000001"
FILES = (
    OutputFile("9", "images", "a_00001_.png", "", "output"),
    OutputFile("12:3", "images", "b.png", "sub/dir", "output"),
    OutputFile("9", "images", "p.png", "", "temp"),
    OutputFile("9", "images", "ä b.png", "Übung", "output"),
    OutputFile("9", "video", "clip.mp4", "..\\..", "output"),
)
RESULT = PromptResult(ID, "127.0.0.1:8188", {}, FILES, Timings())
PNG = encoded(Image.new("RGB", (2, 2)))


async def _png() -> AsyncIterator[bytes]:
    yield PNG


def a_file() -> OpenBody:
    """The body of a picture from ComfyUI."""
    return IteratedBody(_png(), len(PNG))


@asynccontextmanager
async def open_file(_result: PromptResult, _file: OutputFile) -> AsyncIterator[OpenBody]:
    yield a_file()


def s3(url: str, prefix: str = "renders") -> S3Store:
    pytest.importorskip("aiobotocore")
    key = SecretStr("k")
    return S3Store(
        S3Settings("bucket", endpoint_url=url, prefix=prefix, access_key=key, secret_key=key, addressing_style="path")
    )


async def gateway_entries(store: ObjectStore, order: Order) -> list[FileEntry]:
    async with OutputFiles(open_file, store, converter=ImageConverter()) as files:
        return await Deliverer(files, DeliveryOptions()).entries(RESULT, order, deadline=math.inf)


async def test_the_gateway_stores_in_s3_by_prompt_folder_and_name(accepting_store: tuple[str, list[str]]) -> None:
    url, written = accepting_store
    async with s3(url) as store:
        entries = await gateway_entries(store, Order(output=OutputPlace(store="s3", prefix="user 7")))
    keys = [
        f"renders/user_7-08ae6a73/{ID}/a_00001_.png",
        f"renders/user_7-08ae6a73/{ID}/sub/dir/b.png",
        f"renders/user_7-08ae6a73/{ID}/temp/p.png",
        f"renders/user_7-08ae6a73/{ID}/Ubung-c9ebdab8/a_b-f1617e38.png",
        f"renders/user_7-08ae6a73/{ID}/clip.mp4",
    ]
    assert [entry["key"] for entry in entries] == keys
    assert sorted(written) == sorted(f"/bucket/{key}" for key in keys)


async def test_the_gateway_stores_a_converted_picture_under_its_new_name(tmp_path: Path) -> None:
    async with LocalStore(tmp_path, "http://files.test") as store:
        order = Order(convert=ImageConversion(format="webp"), output=OutputPlace(store="s3"))
        entries = await gateway_entries(store, order)
    assert [entry["key"] for entry in entries] == [
        f"{ID}/a_00001_.webp",
        f"{ID}/sub/dir/b.webp",
        f"{ID}/temp/p.webp",
        f"{ID}/Ubung-c9ebdab8/a_b-bae8c576.webp",
        f"{ID}/clip.mp4",
    ]


async def test_a_runpod_worker_stores_in_s3_by_prompt_node_and_name(accepting_store: tuple[str, list[str]]) -> None:
    url, written = accepting_store
    job = parse_input({"workflow": {}, "output": {"prefix": "user 7"}})
    async with s3(url) as store, OutputFiles(open_file, store) as files:
        answer = await reply(files, RESULT, job, max_bytes=100_000)
    assert [image["type"] for image in answer["images"]] == ["s3_url"] * 4
    assert written == [
        f"/bucket/renders/user_7-08ae6a73/{ID}/9/a_00001_.png",
        f"/bucket/renders/user_7-08ae6a73/{ID}/12_3-351935bb/sub/dir/b.png",
        f"/bucket/renders/user_7-08ae6a73/{ID}/9/Ubung-c9ebdab8/a_b-f1617e38.png",
        f"/bucket/renders/user_7-08ae6a73/{ID}/9/clip.mp4",
    ]


@pytest.mark.parametrize(("run", "folder"), [(0, "task-7"), (2, "task-7/run-2")])
async def test_a_postgres_worker_stores_by_task_run_node_and_name(
    accepting_store: tuple[str, list[str]], run: int, folder: str
) -> None:
    url, written = accepting_store
    keys = [
        f"{folder}/9/a_00001_.png",
        f"{folder}/12.3/sub/dir/b.png",
        f"{folder}/9/temp/p.png",
        f"{folder}/9/Ubung-c9ebdab8/a_b-f1617e38.png",
        f"{folder}/9/clip.mp4",
    ]
    async with s3(url, prefix="") as store:
        for file in FILES:
            await store.put(task_key("task-7", run, file), a_file(), len(PNG))
    assert written == [f"/bucket/{key}" for key in keys]
    written.clear()
    async with SupabaseApi(url, SecretStr("a.b.c")) as api:
        storage = SupabaseStorage(api, "outputs", prefix="renders")
        for file in FILES:
            await storage.put(task_key("task-7", run, file), a_file(), len(PNG), placement=Placement())
    assert written == [f"/storage/v1/object/outputs/renders/{key}" for key in keys]


def test_a_littlehorse_worker_reports_the_paths_that_comfyui_wrote() -> None:
    assert [local_path("/data/output", file) for file in FILES[:4]] == [
        "/data/output/a_00001_.png",
        "/data/output/sub/dir/b.png",
        "/data/output/p.png",
        "/data/output/Übung/ä b.png",
    ]
