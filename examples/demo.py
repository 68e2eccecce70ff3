"""`make demo`: starts the embedded engine and a gateway in front of it, makes one picture, and stops both.

It needs no GPU and no models: the engine is a simulation of ComfyUI, and its picture says so.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_S = 30.0
STOP_S = 10.0
LOG_LINES = 15


class DemoError(Exception):
    """A child process failed."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    name: str, *command: str, logs: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a Python child process and always stops it at the end. Its output goes to a file below `logs`."""
    with (logs / name).open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own programs
            [sys.executable, *command], cwd=ROOT, env={**os.environ, **(env or {})}, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(gateway: str, children: Mapping[str, subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        for name, process in children.items():
            if process.poll() is not None:
                raise DemoError(f"{name} ended with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(f"{gateway}/health/ready", timeout=START_S):  # noqa: S310 - our own address
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)  # it does not listen yet, or answers 503 until it has found the engine
    raise DemoError(f"the gateway was not ready within {START_S:.0f} s")


def run_client(gateway: str, output: Path) -> list[Path]:
    """Runs the example as a user would; returns the new files."""
    before = set(output.rglob("*"))
    command = ["client.py", "run", "examples/txt2img.json", "--server", gateway, "--output", str(output)]
    print("$ python", *command, flush=True)
    exit_code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode  # noqa: S603
    if exit_code != 0:
        raise DemoError(f"client.py ended with exit code {exit_code}")
    return sorted(set(output.rglob("*")) - before)


def demo(logs: Path) -> None:
    engine_port, gateway_port = free_port(), free_port()
    gateway = f"http://127.0.0.1:{gateway_port}"
    settings = {
        "SERVER_HOST": "127.0.0.1",
        "SERVER_PORT": str(gateway_port),
        "COMFYUI_SERVER_ADDRESS": f"127.0.0.1:{engine_port}",
        "STATE_DIR": str(logs / "jobs"),  # the default folder may belong to another gateway
    }
    with ExitStack() as stack:
        engine = running("engine", "-m", "comfyui.engine", "--port", str(engine_port), logs=logs)
        server = running("gateway", "server.py", logs=logs, env=settings)
        children = {"engine": stack.enter_context(engine), "gateway": stack.enter_context(server)}
        print("starting the embedded engine (a simulation of ComfyUI, no GPU) and the gateway …", flush=True)
        wait_until_ready(gateway, children)
        saved = run_client(gateway, ROOT / "out")
    for path in saved:
        print(f"saved: {path}")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        try:
            demo(logs)
        except KeyboardInterrupt:
            return 130
        except DemoError as error:
            print(f"the demo failed: {error}", file=sys.stderr)
            for log in sorted(path for path in logs.iterdir() if path.is_file()):
                lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
                print(f"--- {log.name}, last lines:", *lines, sep="\n", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
