"""Reverse proxies that serve a gateway below a path: a small one of our own, and the examples of docs/proxies.md."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.ports import free_port

_DOCS = Path(__file__).parents[2] / "docs" / "proxies.md"
PREFIX = "/comfy"
KINDS = ("stripping", "telling", "nginx", "caddy")
"""Our proxy without and with X-Forwarded-Prefix, and the two examples of the docs."""


def behind(kind: str, gateway: str, folder: Path) -> AbstractAsyncContextManager[str]:
    """The address below which such a proxy serves the gateway, without a slash at its end."""
    if kind == "nginx":
        return _nginx(gateway, folder)
    if kind == "caddy":
        return _caddy(gateway, folder)
    return _stripping(gateway, tell=kind == "telling")


@asynccontextmanager
async def _stripping(gateway: str, *, tell: bool) -> AsyncIterator[str]:
    parts = urlsplit(gateway)
    tasks = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            head = _stripped(await reader.readuntil(b"\r\n\r\n"), tell=tell)
            if head is None:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                below_reader, below_writer = await asyncio.open_connection(parts.hostname, parts.port)
                below_writer.write(head)
                sending = asyncio.create_task(_copy(reader, below_writer))
                tasks.add(sending)
                await _copy(below_reader, writer)
                sending.cancel()
                below_writer.close()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}{PREFIX}"
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _stripped(head: bytes, *, tell: bool) -> bytes | None:
    line, *headers = head[:-4].split(b"\r\n")
    method, target, version = line.split(b" ")
    if not target.startswith(f"{PREFIX}/".encode()):
        return None
    if not any(header.lower().startswith(b"upgrade:") for header in headers):
        headers = [header for header in headers if not header.lower().startswith(b"connection:")]
        headers.append(b"Connection: close")
    if tell:
        headers.append(f"X-Forwarded-Prefix: {PREFIX}".encode())
    return b"\r\n".join([b" ".join((method, target.removeprefix(PREFIX.encode()), version)), *headers, b"", b""])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


def _example(language: str, gateway: str) -> str:
    """The docs' own text, with the gateway's real port."""
    match = re.search(rf"```{language}\n(.*?)```", _DOCS.read_text(), re.DOTALL)
    assert match, f"docs/proxies.md has no example for {language}"
    assert "127.0.0.1:18188" in match[1]
    return match[1].replace("127.0.0.1:18188", urlsplit(gateway).netloc)


@asynccontextmanager
async def _nginx(gateway: str, folder: Path) -> AsyncIterator[str]:
    program = _program("nginx", "nginx-light")
    port = free_port()
    example = _example("nginx", gateway)
    assert "listen 80;" in example
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}{example.replace('listen 80;', f'listen 127.0.0.1:{port};')}}}\n"
    )
    async with _running(port, program, "-p", str(folder), "-e", "stderr", "-c", str(config)):
        yield f"http://127.0.0.1:{port}{PREFIX}"


@asynccontextmanager
async def _caddy(gateway: str, folder: Path) -> AsyncIterator[str]:
    program = _program("caddy", "caddy")
    port = free_port()
    example = _example("caddy", gateway)
    assert "example.org {" in example
    config = folder / "Caddyfile"
    address = f"http://127.0.0.1:{port}"
    config.write_text(f"{{\nadmin off\nauto_https off\n}}\n{example.replace('example.org {', f'{address} {{')}")
    arguments = ("run", "--adapter", "caddyfile", "--config", str(config))
    async with _running(port, program, *arguments, HOME=str(folder), XDG_DATA_HOME=str(folder)):
        yield f"{address}{PREFIX}"


@asynccontextmanager
async def _running(port: int, program: str, *arguments: str, **environment: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        program, *arguments, env={"PATH": "/usr/sbin:/usr/bin:/bin", **environment}
    )
    try:
        async with asyncio.timeout(20):
            while True:
                assert process.returncode is None, f"{program} ended with {process.returncode}; its output is above"
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path="/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin")
    if found is None:
        pytest.skip(f"no {name}: apt-get install --no-install-recommends {package}")
    return found


PUBLIC = "https://example.org/comfy"
