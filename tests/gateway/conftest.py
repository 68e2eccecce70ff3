"""Fixtures that the tests of the gateway share."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
from pydantic import SecretStr
from structlog.testing import capture_logs
from yarl import URL

from comfyui.client import ComfyUIClient
from comfyui.engine import NEW_VERSION, OLD_VERSION, Engine, EngineOptions
from comfyui.inputs.staging import InputStager
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.metrics import Metrics
from comfyui.outputs.stores.s3 import S3Settings, S3Store
from comfyui.sdk import GatewayClient
from comfyui.servers.backend import Backend
from comfyui.transport.http1 import Http1Client
from comfyui.web.server.connections import Connections
from config import Settings
from server import create_app
from tests.support.calls import Calls
from tests.support.credentials import CERTIFICATE, TOKEN
from tests.support.described import Document
from tests.support.disks import mounted_disk
from tests.support.faces import Face
from tests.support.keys import ALICE, BOB, CAROL, DAVE, KEY, KEYS, OTHER_KEY, ROOT, WATCHER, bearer, table, write_keys
from tests.support.large_output import SIZE
from tests.support.log_lines import Lines
from tests.support.named_folder import named_folder
from tests.support.object_store import (
    ACCESS_KEY,
    BUCKET,
    OTHER_BUCKET,
    OTHER_OUTPUTS_BUCKET,
    OUTPUTS_BUCKET,
    SECRET_KEY,
    ensure_bucket,
)
from tests.support.openai_models import write_models
from tests.support.processes import engine_process
from tests.support.receivers import SECRET, Receiver, receiver
from tests.support.relaying import fetch
from tests.support.run_forms import every_folder
from tests.support.running import (
    RunningGateway,
    engines,
    head_limits,
    invert_workflow,
    request_limits,
    running_gateway,
    sleep_workflow,
)
from tests.support.runpod_endpoint import (
    NOWHERE,
    FakeEndpoint,
)
from tests.support.runpod_worker import WorkingEndpoint
from tests.support.servers import server_of
from tests.support.sites import Site, open_site
from tests.support.stripping import PUBLIC
from tests.support.url_server import Server, give_png, serve

if TYPE_CHECKING:
    from openai import AsyncOpenAI


@pytest.fixture
async def locked(engine: Engine) -> AsyncIterator[RunningGateway]:
    """A gateway with two API keys and one allowed origin."""
    async with running_gateway(
        engine.url, api_keys=f"{KEY}, {OTHER_KEY}", cors_allow_origins="https://app.example"
    ) as running:
        yield running


@pytest.fixture
async def small_bodies(engine: Engine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(engine.url, max_request_body_mb=0.01) as running:
        yield running


@pytest.fixture
async def small_limits(engine: Engine) -> AsyncIterator[RunningGateway]:
    """A gateway with small limits."""
    small = request_limits(
        max_json_values=2_000,
        max_json_depth=16,
        max_workflow_nodes=20,
        max_node_inputs=5,
        max_inputs=4,
        max_name_length=30,
        max_problems=3,
    )
    async with running_gateway(engine.url, changed=small) as running:
        yield running


@pytest.fixture
async def small_answers(engine: Engine) -> AsyncIterator[RunningGateway]:
    """A gateway that accepts only short answers of ComfyUI."""
    async with running_gateway(engine.url, max_answer_mb=1) as running:
        yield running


@pytest.fixture
def endless_file(tmp_path: Path) -> str:
    """The path of a workflow that runs until it is cancelled."""
    path = tmp_path / "endless.json"
    path.write_text(json.dumps(sleep_workflow(600)))
    return str(path)


@pytest.fixture
async def closed_engine() -> AsyncIterator[Engine]:
    """An engine that requires a bearer token and another header."""
    required = {"Authorization": TOKEN, "X-Edge": "4711"}
    async with Engine(EngineOptions(step_seconds=0.002, required_headers=required)) as running:
        yield running


@pytest.fixture
async def tls_engine() -> AsyncIterator[Engine]:
    """An engine whose TLS certificate no system trusts."""
    async with Engine(EngineOptions(step_seconds=0.002, certificate=CERTIFICATE)) as running:
        yield running


@pytest.fixture
def few_connections() -> Connections:
    """A limit of three connections."""
    return Connections(3, Metrics())


@pytest.fixture
async def http1_client() -> AsyncIterator[Callable[..., Http1Client]]:
    clients = []

    def made(url: str, **options: Any) -> Http1Client:
        clients.append(Http1Client(URL(url), **options))
        return clients[-1]

    yield made
    for client in clients:
        await client.close()


@pytest.fixture
async def plain_engine() -> AsyncIterator[Engine]:
    async with Engine() as running:
        yield running


@pytest.fixture
async def plain_server(plain_engine: Engine) -> AsyncIterator[Backend]:
    async with ComfyUIClient(plain_engine.url, retries=0) as client:
        yield server_of(client)


@pytest.fixture
async def stager() -> AsyncIterator[InputStager]:
    async with InputStager(max_bytes=4_000_000, url_allow=(), url_timeout_s=5) as opened:
        yield opened


@pytest.fixture
async def inside_server() -> AsyncIterator[Server]:
    """A private service on an address that is not allowed; a request to it fails the test."""
    async with serve(give_png, "127.0.0.9") as server:
        yield server
        assert server.requests == []


@pytest.fixture
async def url_server() -> AsyncIterator[Server]:
    async with serve(give_png) as server:
        yield server


@pytest.fixture(params=[OLD_VERSION, NEW_VERSION])
async def either_engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """An engine without ComfyUI's atomic cancel, and one with it."""
    async with Engine(EngineOptions(comfyui_version=request.param)) as running:
        yield running


@pytest.fixture
async def either_gateway(either_engine: Engine) -> AsyncIterator[RunningGateway]:
    """A gateway with default settings for `either_engine`."""
    async with running_gateway(either_engine.url) as running:
        yield running


@pytest.fixture
def form_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the gateway stores the files of forms."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a fake `gs` on the PATH; returns the file that it writes when it runs."""
    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\necho $@ >> {ran}\n[ $1 = --version ] && echo 10.0\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return ran


@pytest.fixture
async def cookie_session() -> AsyncIterator[aiohttp.ClientSession]:
    """A session that keeps cookies by the rules of a browser, including their paths."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


@pytest.fixture
async def public_gateway(engine: Engine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(engine.url, public_url=f"{PUBLIC}/") as running:
        yield running


@pytest.fixture
async def gpu_pair() -> AsyncIterator[tuple[Engine, Engine, RunningGateway]]:
    """Two ready servers, gpu-1 and gpu-2, and their gateway."""
    async with (
        Engine() as first,
        Engine() as second,
        running_gateway(f"gpu-1={first.url}", f"gpu-2={second.url}") as gateway,
    ):
        async with asyncio.timeout(30):
            while len(gateway.handler.pool.ready) < 2:
                await asyncio.sleep(0.01)
        yield first, second, gateway


@pytest.fixture
async def guarded_heads(engine: Engine) -> AsyncIterator[RunningGateway]:
    """A gateway with an API key and small limits for the heads of requests."""
    small = head_limits(max_bytes=4000, max_fields=20, seconds=0.3)
    async with running_gateway(engine.url, changed=small, api_keys="k") as running:
        yield running


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on its own disk of 2 MB."""
    with mounted_disk(tmp_path / "disk", "2m") as folder:
        yield folder


@pytest.fixture
def journals(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """The database connections that journals have opened."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remembering(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", remembering)
    return opened


@pytest.fixture
async def runpod_gateway(endpoint: FakeEndpoint, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway with RunPod and without a local ComfyUI."""
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path / "data")) as running:
        yield running


@pytest.fixture
async def runpod_beside(endpoint: FakeEndpoint, engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway that runs prompts on RunPod and has the engine as its local ComfyUI."""
    async with running_gateway(engine.url, **endpoint.settings(tmp_path)) as running:
        yield running


@pytest.fixture
async def runpod_and_engine(endpoint: FakeEndpoint, engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway that runs prompts on the engine and on RunPod."""
    async with running_gateway(engine.url, **endpoint.settings(tmp_path) | {"backend": "comfyui,runpod"}) as running:
        yield running


@pytest.fixture
async def comfyui_and_runpod(tmp_path: Path) -> AsyncIterator[tuple[RunningGateway, RunningGateway, Engine]]:
    """A gateway with a ComfyUI, a gateway with RunPod, and the ComfyUI of the RunPod worker."""
    async with (
        Engine(EngineOptions(step_seconds=0.02)) as one,
        Engine(EngineOptions(step_seconds=0.02)) as home,
        Engine(EngineOptions(step_seconds=0.02)) as theirs,
        WorkingEndpoint(theirs.url) as endpoint,
        running_gateway(one.url, queue="gateway") as over_comfyui,
        running_gateway(home.url, **endpoint.settings(tmp_path)) as over_runpod,
    ):
        yield over_comfyui, over_runpod, theirs


@pytest.fixture(params=["alone", "beside a ComfyUI"])
async def over_runpod(
    request: pytest.FixtureRequest, endpoint: FakeEndpoint, engine: Engine, keys_path: Path, tmp_path: Path
) -> AsyncIterator[Calls]:
    """A gateway with keys and RunPod, without and with a local ComfyUI."""
    comfyui = NOWHERE if request.param == "alone" else engine.url
    async with running_gateway(comfyui, keys_file=keys_path, **endpoint.settings(tmp_path)) as gateway:
        yield Calls(gateway)


@pytest.fixture
def log_lines() -> Iterator[Lines]:
    with capture_logs() as captured:
        yield captured


@pytest.fixture
async def two_engines() -> AsyncIterator[list[Engine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Engine(EngineOptions())) for _ in range(2)]


@pytest.fixture
def s3_settings(seaweedfs: str) -> S3Settings:
    pytest.importorskip("aiobotocore")
    return S3Settings(
        bucket=BUCKET,
        endpoint_url=seaweedfs,
        access_key=SecretStr(ACCESS_KEY),
        secret_key=SecretStr(SECRET_KEY),
        addressing_style="path",
        allowed_buckets=(OTHER_BUCKET,),
        retries=0,
    )


@pytest.fixture
async def s3_store(s3_settings: S3Settings) -> AsyncIterator[S3Store]:
    async with S3Store(s3_settings) as opened:
        for bucket in (BUCKET, OTHER_BUCKET):
            await ensure_bucket(opened, bucket)
        yield opened


@pytest.fixture
async def s3_variables(seaweedfs: str) -> dict[str, Any]:
    """The settings of a gateway that may store files in two buckets of a running server."""
    pytest.importorskip("aiobotocore")
    settings = S3Settings(
        OUTPUTS_BUCKET,
        endpoint_url=seaweedfs,
        addressing_style="path",
        access_key=SecretStr(ACCESS_KEY),
        secret_key=SecretStr(SECRET_KEY),
    )
    async with S3Store(settings) as store:
        have = {entry["Name"] for entry in (await store._client.list_buckets())["Buckets"]}
        for bucket in {OUTPUTS_BUCKET, OTHER_OUTPUTS_BUCKET} - have:
            await store._client.create_bucket(Bucket=bucket)
    return {
        "s3_bucket": OUTPUTS_BUCKET,
        "s3_allowed_buckets": OTHER_OUTPUTS_BUCKET,
        "s3_endpoint_url": seaweedfs,
        "s3_access_key_id": ACCESS_KEY,
        "s3_secret_access_key": SECRET_KEY,
        "s3_addressing_style": "path",
        "s3_prefix": "renders",
    }


@pytest.fixture
async def storing_gateway(engine: Engine, s3_variables: dict[str, Any]) -> AsyncIterator[RunningGateway]:
    async with running_gateway(engine.url, **s3_variables) as running:
        yield running


@pytest.fixture
async def locked_plain(engine: Engine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(engine.url, api_keys=f"{KEY}, {OTHER_KEY}") as running:
        yield running


@pytest.fixture
async def own_engine() -> AsyncIterator[str]:
    """The address of an engine in its own process, which receives the parts of a split request separately."""
    async with engine_process() as url:
        yield url


@pytest.fixture(scope="module")
def document() -> Document:
    return create_app(Settings()).openapi()


@pytest.fixture(scope="module")
def digest_of_output() -> str:
    block, digest = bytes(range(256)) * 4096, hashlib.sha256()
    for start in range(0, SIZE, len(block)):
        digest.update(block[: SIZE - start])
    return digest.hexdigest()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turns off the garbage collector, so that it cannot hide a reference cycle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
async def sdk_client(gateway: RunningGateway) -> AsyncIterator[GatewayClient]:
    async with GatewayClient(gateway.url, timeout_s=60) as client:
        yield client


@pytest.fixture
async def webhook_receiver() -> AsyncIterator[Receiver]:
    """A receiver of webhooks that answers 204 by default."""
    async with receiver() as running:
        yield running


@pytest.fixture
async def file_journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    async with SqliteJournal(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
async def webhook_gateway(engine: Engine) -> AsyncIterator[RunningGateway]:
    """A gateway that sends webhooks, to public addresses only."""
    async with running_gateway(engine.url, webhook_secret=SECRET, public_url=PUBLIC) as running:
        yield running


@pytest.fixture
def keys_path(tmp_path: Path) -> Path:
    """A keys file with the keys of two users, a key of role read and a key of role admin."""
    return write_keys(tmp_path / "keys.toml", KEYS)


@pytest.fixture(params=[NEW_VERSION, OLD_VERSION])
async def three_servers(request: pytest.FixtureRequest) -> AsyncIterator[tuple[RunningGateway, list[Engine]]]:
    """A gateway without keys and its three servers, once with `/api/jobs` and once without it."""
    async with (
        engines(3, comfyui_version=request.param) as servers,
        running_gateway(*(server.url for server in servers)) as gateway,
    ):
        yield gateway, servers


@pytest.fixture
async def calls(engine: Engine, keys_path: Path) -> AsyncIterator[Calls]:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        yield Calls(gateway)


@pytest.fixture
def no_log() -> Iterator[None]:
    """Hides the log of thousands of requests, which would hide why a test failed."""
    with capture_logs():
        yield


@pytest.fixture(params=["one server with keys", "three servers"])
async def face(request: pytest.FixtureRequest, keys_path: Path) -> AsyncIterator[Face]:
    with_keys = request.param == "one server with keys"
    async with AsyncExitStack() as stack:
        options = EngineOptions(step_seconds=0.002)
        engines = [await stack.enter_async_context(Engine(options)) for _ in range(1 if with_keys else 3)]
        settings: dict[str, Any] = {"keys_file": keys_path} if with_keys else {}
        gateway = await stack.enter_async_context(running_gateway(*(one.url for one in engines), **settings))
        yield Face(gateway, engines, bearer(ROOT) if with_keys else {})


@pytest.fixture
async def gateway_with_usage(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway with usage: alice ran two prompts, one of them for eve, and a third failed; bob ran one."""
    path = write_keys(
        tmp_path / "keys.toml",
        table("alice", ALICE, user_header="X-User")
        + table("bob", BOB)
        + table("watcher", WATCHER, "read")
        + table("root", ROOT, "admin"),
    )
    async with running_gateway(engine.url, keys_file=path, api_keys=KEY) as gateway:
        for key, headers in ((ALICE, {}), (ALICE, {"X-User": "eve"}), (BOB, {})):
            body = {"prompt": sleep_workflow(0.2, tag=len(headers)), "return_image_base64": True}
            assert (
                await fetch(gateway, "/prompt_sync", "POST", json=body, headers=bearer(key) | headers)
            ).status == 200
        await engine.set_faults({"node_error": {"message": "no", "times": 1}})
        body = {"prompt": invert_workflow(9)}
        assert (await fetch(gateway, "/prompt_sync", "POST", json=body, headers=bearer(ALICE))).status == 500
        yield gateway


@pytest.fixture
async def three_engines() -> AsyncIterator[list[Engine]]:
    """Three engines with separate folders."""
    async with engines(3) as started:
        yield started


@pytest.fixture
async def fleet(three_engines: list[Engine]) -> AsyncIterator[RunningGateway]:
    """A gateway that merges `three_engines` into one ComfyUI."""
    async with running_gateway(*(one.url for one in three_engines)) as running:
        yield running


@pytest.fixture
async def owned_fleet(three_engines: list[Engine], keys_path: Path) -> AsyncIterator[Calls]:
    """Like `fleet`, with a key for each caller."""
    async with running_gateway(*(one.url for one in three_engines), keys_file=keys_path) as running:
        yield Calls(running)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_site() -> AsyncIterator[Site]:
    async with open_site() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def site(shared_site: Site) -> AsyncIterator[Site]:
    """A page that the tests of a module share, with an empty graph, queue and history."""
    await shared_site.clear()
    yield shared_site
    assert await shared_site.jobs() == [[], []]


@pytest.fixture
async def named(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway with the workflows of `tests.support.named_folder`."""
    async with running_gateway(engine.url, workflows_dir=named_folder(tmp_path / "workflows")) as running:
        yield running


@pytest.fixture
async def limited(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """Like `named`, with keys: the key of alice may run only `flat`, and no graph."""
    keys = "\n".join((table("alice", ALICE, workflows=["flat"]), table("root", ROOT, "admin")))
    async with running_gateway(
        f"gpu-1={engine.url}",
        keys_file=write_keys(tmp_path / "keys.toml", keys),
        workflows_dir=named_folder(tmp_path / "workflows"),
    ) as running:
        yield running


@pytest.fixture
async def models(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway with the workflows of `tests.support.openai_models`, some named like models of OpenAI."""
    async with running_gateway(
        engine.url,
        workflows_dir=write_models(tmp_path / "workflows"),
        openai_models=("gpt-image-1=portrait", "gpt-image-1=retouch", "dall-e-3=portrait"),
    ) as gateway:
        yield gateway


@pytest.fixture
async def openai_keys(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """Like `models`, with keys: several persons share the key of alice, and the key of bob may run only `retouch`."""
    keys = table("alice", ALICE, user_header="X-OpenWebUI-User-Id") + table("bob", BOB, workflows=["retouch"])
    async with running_gateway(
        engine.url,
        workflows_dir=write_models(tmp_path / "workflows"),
        keys_file=write_keys(tmp_path / "keys.toml", keys),
    ) as gateway:
        yield gateway


@pytest.fixture
async def openai_sdk(models: RunningGateway) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's own client for the gateway `models`."""
    from tests.support.openai_sdk import openai_client  # this package is slow to import

    async with openai_client(models.url) as found:
        yield found


@pytest.fixture
async def mcp_gateway(engine: Engine) -> AsyncIterator[RunningGateway]:
    """A gateway with `/mcp`."""
    async with running_gateway(engine.url, mcp=True) as running:
        yield running


@pytest.fixture
async def mcp_keyed(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway with `/mcp` and keys: carol's may run only one named workflow, and dave's may submit twice a minute."""
    limited = [table("carol", CAROL, workflows=["portrait"]), table("dave", DAVE, per_minute=2)]
    path = write_keys(tmp_path / "keys.toml", "\n".join([KEYS, *limited]))
    async with running_gateway(engine.url, mcp=True, keys_file=path) as running:
        yield running


@pytest.fixture
async def mcp_named(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway with `/mcp` and the workflows of `tests.support.named_folder`."""
    async with running_gateway(engine.url, workflows_dir=named_folder(tmp_path / "workflows"), mcp=True) as running:
        yield running


@pytest.fixture
async def run_forms(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway with the workflows of `every_folder`."""
    folder = every_folder(tmp_path / "workflows")
    async with running_gateway(engine.url, workflows_dir=folder, queue="gateway") as gateway:
        yield gateway


@pytest.fixture
async def run_keyed(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """Like `run_forms`, with keys: carol's may run only `flat`, twice a minute; several persons share dave's."""
    carol = table("carol", CAROL, workflows=["flat"], per_minute=2)
    dave = table("dave", DAVE, user_header="X-User")
    keys = write_keys(tmp_path / "keys.toml", f"{KEYS}\n{carol}\n{dave}")
    folder = every_folder(tmp_path / "workflows")
    async with running_gateway(engine.url, workflows_dir=folder, keys_file=keys) as gateway:
        yield gateway
