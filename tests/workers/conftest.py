"""Fixtures that the tests of the workers share."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import SecretStr

from comfyui.engine import Engine, EngineOptions
from comfyui.outputs.stores.s3 import S3Settings, S3Store
from comfyui.outputs.stores.supabase import SupabaseApi
from comfyui.workers.base import ComfyUIWorker
from comfyui.workers.options import WorkerOptions
from tests.support import littlehorse_process
from tests.support.comfyui_folders import Folders
from tests.support.job_api import JobApi, WorkerProcess, running_worker
from tests.support.littlehorse_process import Fake, Trio, Worker, running_fake
from tests.support.model_store import Store, serving
from tests.support.named_folder import named_folder
from tests.support.object_store import ACCESS_KEY, POSTGRES_BUCKET, SECRET_KEY
from tests.support.ports import free_port
from tests.support.postgres_server import PostgresServer, binaries, running_postgres
from tests.support.running import RunningGateway, running_gateway
from tests.support.runpod_endpoint import NOWHERE, gateway_settings
from tests.support.supabase_stub import SERVICE_ROLE_KEY, SupabaseStub, running_supabase
from tests.support.tables import Tables
from tests.support.watched_store import WatchedStore


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real Postgres that runs for the whole session."""
    if binaries() is None or importlib.util.find_spec("asyncpg") is None:
        pytest.skip("no Postgres here: install requirements/dev.txt")
    with running_postgres() as server:
        yield server


@pytest.fixture
async def tables(postgres: PostgresServer) -> AsyncIterator[Tables]:
    """A database for this test alone, with the migrations applied."""
    from tests.support.tables import new_database

    async with new_database(postgres) as database:
        yield database


@pytest.fixture(autouse=True)
def _no_setting_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the platforms' variables of the developer's shell."""
    for name in ("DATABASE_URL", "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "LH_HOST", "S3_BUCKET", "COMFY_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cleaned_folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def littlehorse_shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trio]:
    folder = named_folder(tmp_path_factory.mktemp("workflows"))
    async with (
        Engine(EngineOptions(step_seconds=0.002)) as engine,
        running_fake() as fake,
        littlehorse_process.running_worker(fake.ports[0], engine.url, workflows_dir=folder) as worker,
    ):
        yield Trio(fake, worker, engine, (await fake.until("PutTaskDef"))["request"])


@pytest_asyncio.fixture(loop_scope="module")
async def littlehorse_fake() -> AsyncIterator[Fake]:
    async with running_fake() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def littlehorse_engine() -> AsyncIterator[Engine]:
    async with Engine(EngineOptions(step_seconds=0.002)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def littlehorse_worker(littlehorse_fake: Fake, littlehorse_engine: Engine) -> AsyncIterator[Worker]:
    async with littlehorse_process.running_worker(littlehorse_fake.ports[0], littlehorse_engine.url) as running:
        yield running


@pytest.fixture
def watched_store(tmp_path: Path) -> WatchedStore:
    return WatchedStore(tmp_path / "store")


@pytest.fixture
async def supabase(tables: Tables) -> AsyncIterator[SupabaseStub]:
    async with running_supabase(tables.url) as stub:
        yield stub


@pytest.fixture
async def supabase_api(supabase: SupabaseStub) -> AsyncIterator[SupabaseApi]:
    async with SupabaseApi(supabase.url + "/", SecretStr(SERVICE_ROLE_KEY)) as opened:
        yield opened


@pytest.fixture
async def outputs_bucket(seaweedfs: str) -> AsyncIterator[S3Store]:
    settings = S3Settings(
        bucket=POSTGRES_BUCKET,
        endpoint_url=seaweedfs,
        access_key=SecretStr(ACCESS_KEY),
        secret_key=SecretStr(SECRET_KEY),
        addressing_style="path",
    )
    async with S3Store(settings) as store:
        listed = await store._client.list_buckets()
        if POSTGRES_BUCKET not in {entry["Name"] for entry in listed["Buckets"]}:
            await store._client.create_bucket(Bucket=POSTGRES_BUCKET)
        yield store


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local_api_worker() -> AsyncIterator[tuple[str, WorkerProcess]]:
    port = free_port()
    arguments = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port))
    async with running_worker({}, *arguments) as worker:
        await worker.says("Uvicorn running")
        yield f"http://127.0.0.1:{port}", worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def production_worker() -> AsyncIterator[tuple[JobApi, WorkerProcess]]:
    async with JobApi() as api, running_worker(api.environment()) as worker:
        await worker.says("comfyui.ready")
        yield api, worker


@pytest_asyncio.fixture(loop_scope="module")
async def gateway_of_worker(
    production_worker: tuple[JobApi, WorkerProcess], tmp_path: Path
) -> AsyncIterator[RunningGateway]:
    async with running_gateway(NOWHERE, **gateway_settings(production_worker[0].url, tmp_path)) as running:
        yield running


@pytest.fixture
def model_store() -> Iterator[Store]:
    store = Store()
    with serving(store):
        yield store


@pytest.fixture
async def comfyui_worker(engine: Engine) -> AsyncIterator[ComfyUIWorker]:
    async with ComfyUIWorker(WorkerOptions(engine.url)) as running:
        yield running


@pytest.fixture
async def naming_worker(engine: Engine, tmp_path: Path) -> AsyncIterator[ComfyUIWorker]:
    """A worker with the named workflows of `tests.support.named_folder`."""
    options = WorkerOptions(engine.url, workflows_dir=named_folder(tmp_path / "workflows"))
    async with ComfyUIWorker(options) as worker:
        await worker.wait_until_ready()
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_runpod_worker() -> AsyncIterator[tuple[JobApi, WorkerProcess]]:
    """One worker for all tests that leave it unchanged, because importing the SDK takes two seconds."""
    async with JobApi() as api, running_worker(api.environment()) as worker:
        yield api, worker


@pytest_asyncio.fixture(loop_scope="module")
async def job_api() -> AsyncIterator[JobApi]:
    """A job API for tests that start their own worker."""
    async with JobApi() as running:
        yield running
