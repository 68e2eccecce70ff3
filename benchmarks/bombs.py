"""How soon the gateway answers `/health/live` while it works on a body that was made to stop it."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.processes import BenchError, Server, exact_cpu_s
from benchmarks.stage import Row, Stage

TARGET_S = 0.1
# The limit for the suite, which runs on machines of any speed; each fault that stopped the loop took far longer.
HELD_UP_S = 3 * TARGET_S
_PROBE_EVERY_S = 0.02
_TRIES = 3
_FORM = b"bombs"

_SAVE = {"class_type": "SaveImage", "inputs": {"images": ["0", 0], "filename_prefix": "x"}}
_PICTURE = {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}, "2": _SAVE}


def _nodes(count: int, class_type: str = "KSampler", **inputs: Any) -> dict[str, Any]:
    return {str(number): {"class_type": class_type, "inputs": inputs} for number in range(count)}


def _a_million_nodes() -> bytes:
    """The text of `_nodes` with a million nodes: making their objects takes longer than the gateway's refusal."""
    return b"{%b}" % b",".join(b'"%d":{"class_type":"KSampler","inputs":{}}' % number for number in range(1_000_000))


def _sync(**fields: Any) -> bytes:
    return json.dumps({"prompt": _PICTURE, **fields}).encode()


def _images(count: int) -> bytes:
    return _sync(images=[{"name": f"{number}.png", "image": "aGVsbG8="} for number in range(count)])


def _large_image(**fields: Any) -> bytes:
    return _sync(images=[{"name": "b", "image": "iVBO" * 15_000_000}], **fields)


def _undeclared() -> bytes:
    inputs = {f"in{number}": 1 for number in range(999)}
    return json.dumps({str(number): {"class_type": "KSampler", "inputs": inputs} for number in range(200)}).encode()


def _submission() -> bytes:
    return json.dumps({"prompt": _nodes(1, "CLIPTextEncode", text="a" * 90_000_000)}).encode()


def _chain(count: int) -> bytes:
    nodes = {str(i): {"class_type": "VAEDecode", "inputs": {"samples": [str(i - 1), 0]}} for i in range(count)}
    return json.dumps({**nodes, "s": _SAVE}).encode()


def _in_form(workflow: bytes, boundary: bytes = _FORM, more: bytes = b"") -> bytes:
    head = b'--%b\r\nContent-Disposition: form-data; name="workflow"%b\r\n\r\n' % (boundary, more)
    return head + workflow + b"\r\n--%b--\r\n" % boundary


def _file_in_form(content: bytes) -> bytes:
    """A form with a boundary of one character, which costs a parser the most for each byte that looks like it."""
    file = b'\r\n--b\r\nContent-Disposition: form-data; name="images"; filename="b.png"\r\n\r\n' + content
    return _in_form(json.dumps(_PICTURE).encode() + file, b"b")


def _ui(nodes: int, links: int = 0) -> bytes:
    listed = [{"id": i, "type": "EmptyLatentImage", "widgets_values": [1, 1, 1]} for i in range(nodes)]
    return json.dumps({"nodes": listed, "links": [[i, 1, 0, 1, 0, "*"] for i in range(links)]}).encode()


@dataclass(frozen=True)
class Bomb:
    """A body that once stopped the gateway for seconds, and the statuses with which the gateway answers it now."""

    path: str
    body: Callable[[], bytes]
    statuses: tuple[int, ...]
    headers: tuple[tuple[str, str], ...] = ()


_AS_FORM = (("Content-Type", f"multipart/form-data; boundary={_FORM.decode()}"),)
_AS_SHORT_FORM = (("Content-Type", "multipart/form-data; boundary=b"),)
_AS_EVENTS = (("Accept", "text/event-stream"),)
_PACKED = (("Content-Encoding", "gzip"),)
_IN_CHUNKS = (("Transfer-Encoding", "chunked"),)


def _chunks() -> bytes:
    """A body of as many chunks as possible."""
    return b"1\r\na\r\n" * 2_000_000 + b"0\r\n\r\n"


BOMBS: dict[str, Bomb] = {
    "one long string": Bomb("/validate", lambda: json.dumps(_nodes(1, text="a" * 50_000_000)).encode(), (200,)),
    "many long strings": Bomb(
        "/validate", lambda: json.dumps(_nodes(9_000, sampler_name="eulre" * 900)).encode(), (200,)
    ),
    "a million nodes": Bomb("/validate", _a_million_nodes, (413,)),
    "unknown classes": Bomb("/validate", lambda: json.dumps(_nodes(9_999, "KSamplr")).encode(), (200,)),
    "a long class name": Bomb("/validate", lambda: json.dumps(_nodes(24, "KS" + "ab" * 1_000_000)).encode(), (413,)),
    "undeclared inputs": Bomb("/validate", _undeclared, (200,)),
    "a long chain": Bomb("/validate", lambda: _chain(9_999), (200,)),
    "a form of nodes": Bomb("/validate", lambda: _in_form(json.dumps(_nodes(9_999)).encode()), (200,), _AS_FORM),
    "a million nodes to convert": Bomb("/convert", lambda: _ui(300_000), (413,)),
    "many nodes to convert": Bomb("/convert", lambda: _ui(9_999), (200, 400)),
    "a million links": Bomb("/convert", lambda: _ui(1, 1_000_000), (413,)),
    "a hundred thousand images": Bomb("/prompt_sync", lambda: _images(100_000), (413,)),
    "a thousand images": Bomb("/prompt_sync", lambda: _images(1_000), (200, 400)),
    "a large image": Bomb("/prompt_sync", _large_image, (200, 400)),
    "a large image with an id": Bomb(
        "/prompt_sync", lambda: _large_image(prompt_id="7d0b5c39-0000-4000-8000-0000000000b0"), (200, 400)
    ),
    "events of a million nodes": Bomb(
        "/prompt_sync", lambda: b'{"prompt":%b}' % _a_million_nodes(), (413,), _AS_EVENTS
    ),
    "a form of a million nodes": Bomb("/prompt_sync", lambda: _in_form(_a_million_nodes()), (413,), _AS_FORM),
    "a form of one long text": Bomb(
        "/validate",
        lambda: _in_form(json.dumps(_nodes(1, text="ä€" * 19_000_000), ensure_ascii=False).encode()),
        (200,),
        _AS_FORM,
    ),
    "a form of a long plain text": Bomb(
        "/validate",
        lambda: _in_form(
            b'{}\r\n--bombs\r\nContent-Disposition: form-data; name="client_id"\r\n\r\n' + "€ä".encode() * 19_000_000
        ),
        (400, 422),
        _AS_FORM,
    ),
    "a form of boundaries": Bomb("/validate", lambda: _file_in_form(b"\r\n--bb" * 1_000_000), (200,), _AS_SHORT_FORM),
    "a form of halves of boundaries": Bomb(
        "/validate", lambda: _file_in_form(b"\r\n-" * 10_000_000), (200,), _AS_SHORT_FORM
    ),
    "a form of line ends": Bomb("/validate", lambda: _file_in_form(b"\r" * 40_000_000), (200,), _AS_SHORT_FORM),
    "unknown fields": Bomb("/prompt_sync", lambda: _sync(**{f"f{i}": 1 for i in range(200_000)}), (422,)),
    "unknown fields of an image": Bomb(
        "/prompt_sync", lambda: _sync(images=[{f"f{i}": 1 for i in range(200_000)}]), (422,)
    ),
    "a long name of an image": Bomb(
        "/prompt_sync", lambda: _sync(images=[{"name": "€" * 15_000_000, "image": "aGk="}]), (422,)
    ),
    "depth": Bomb("/validate", lambda: b"[" * 1_000_000, (400,)),
    "blanks": Bomb("/validate", lambda: b'{"prompt":' + b" \r" * 49_000_000 + b"{}}", (200,)),
    "a long number": Bomb("/validate", lambda: b'{"prompt":' + b"1" * 90_000_000 + b"}", (413,)),
    "many empty gzip members": Bomb("/validate", lambda: gzip.compress(b"") * 500_000, (422,), _PACKED),
    "a body of tiny chunks": Bomb("/validate", _chunks, (422,), _IN_CHUNKS),
    "tiny chunks for the relay": Bomb("/upload/image", _chunks, (400,), _IN_CHUNKS),
    "a submission for the relay": Bomb("/prompt", _submission, (200, 400)),
}


@dataclass(frozen=True, slots=True)
class Probes:
    """The longest time of any probe, and the most CPU time that the gateway used during any probe.

    A stopped loop raises both. Other programs on the machine raise only the first.
    """

    wall_s: float
    cpu_s: float


async def bombs(on: Stage) -> list[Row]:
    """One row for each bomb: the worst probe of the best of some tries, so that other programs do not count."""
    rows = []
    for name, bomb in BOMBS.items():
        body = bomb.body()
        tries = [await asyncio.to_thread(probed, on.gateway, bomb, body) for _ in range(_TRIES)]
        best = min(tries, key=lambda probes: probes.wall_s)
        detail = f"all tries: {', '.join(f'{probes.wall_s * 1000:.0f}' for probes in tries)} ms"
        detail += f"; the gateway's CPU {min(probes.cpu_s for probes in tries) * 1000:.0f} ms"
        rows.append(Row(f"live: {name}", f"{best.wall_s * 1000:.0f} ms", "≤ 100 ms", best.wall_s <= TARGET_S, detail))
    return rows


def probed(gateway: Server, bomb: Bomb, body: bytes) -> Probes:
    """The probes while the bomb was sent, processed and answered.

    Raises `BenchError` if its status is not one of the expected ones.
    """
    with probing(gateway) as worst:
        status = _post(gateway.port, bomb, body)
    if status not in bomb.statuses:
        raise BenchError(f"{bomb.path} answered {status}, not one of {bomb.statuses}")
    return worst()


def _post(port: int, bomb: Bomb, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", bomb.path, body, dict(bomb.headers))
        response = connection.getresponse()
        while response.read(1 << 16):
            pass
        return response.status
    finally:
        connection.close()


@contextmanager
def probing(gateway: Server) -> Iterator[Callable[[], Probes]]:
    """Probes while the block runs, and once more at its end; then the yielded function returns the result."""
    probes: list[tuple[float, float]] = []
    done = threading.Event()

    def probe() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=120)
        while True:
            last = done.is_set()
            began, used = time.perf_counter(), exact_cpu_s(gateway.pid)
            connection.request("GET", "/health/live")
            connection.getresponse().read()
            probes.append((time.perf_counter() - began, exact_cpu_s(gateway.pid) - used))
            if last:
                break
            done.wait(_PROBE_EVERY_S)
        connection.close()

    prober = threading.Thread(target=probe, name="probe")
    prober.start()
    try:
        yield lambda: Probes(max(wall_s for wall_s, _ in probes), max(cpu_s for _, cpu_s in probes))
    finally:
        done.set()
        prober.join()
