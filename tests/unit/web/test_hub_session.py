"""`Session`: the frames for a client that reads slowly or not at all, and where they are kept meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from comfyui.jobs.origin import Origin
from comfyui.metrics import Metrics
from comfyui.owners import KeyRules
from comfyui.web.comfyui.hub.budget import Budget
from comfyui.web.comfyui.hub.focus import Focus
from comfyui.web.comfyui.hub.frames import Frame, Kind, done, message
from comfyui.web.comfyui.hub.outbox import Shelf
from comfyui.web.comfyui.hub.session import Session, SessionLimits
from comfyui.web.comfyui.viewer import Viewer
from tests.support.relaying import eventually

_PATIENCE_S = 30.0


class Client:
    """The other side of the websocket; it accepts frames while `reads` is set.

    Attributes:
        got: the accepted texts and bytes and the close code, in order.
    """

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.reads = asyncio.Event()
        self._says: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        return await self._says.get()

    async def send(self, event: Any) -> None:
        if event["type"] == "websocket.close":
            self.got.append(event["code"])
            return
        await self.reads.wait()
        self.got.append(event.get("text") or event.get("bytes"))

    def say(self, text: str) -> None:
        self._says.put_nowait({"type": "websocket.receive", "text": text})

    def leave(self) -> None:
        self._says.put_nowait({"type": "websocket.disconnect", "code": 1000})

    async def has(self, count: int) -> None:
        await eventually(lambda: len(self.got) >= count, within_s=_PATIENCE_S)


@asynccontextmanager
async def _served(
    client: Client,
    *,
    limits: SessionLimits | None = None,
    budget: Budget | None = None,
    viewer: Viewer | None = None,
    flags: Frame | None = None,
) -> AsyncIterator[Session]:
    scope = {"type": "websocket", "path": "/ws"}
    session = Session(
        scope,
        client.receive,
        client.send,
        viewer or Viewer(None, Origin("prompt")),
        "tab",
        Focus(),
        lambda: flags,
        Metrics(),
        limits or SessionLimits(),
        budget or Budget(512_000_000),
    )
    running = asyncio.create_task(session.run())
    try:
        yield session
    finally:
        client.leave()
        async with asyncio.timeout(_PATIENCE_S):
            await running


def _text(kind: Kind, number: int = 0, prompt_id: str = "a") -> Frame:
    return message(kind, kind.name, {"number": number}, prompt_id, str(number))


def _picture(number: int, size: int = 50_000, prompt_id: str = "a") -> Frame:
    data = b"\0\0\0\1\0\0\0\2" + number.to_bytes(4, "big") * (size // 4)
    return Frame(Kind.PICTURE, data, prompt_id, is_text=False)


async def test_a_client_that_reads_gets_every_frame() -> None:
    client = Client()
    client.reads.set()
    async with _served(client) as session:
        session.hear(_text(Kind.START))
        for number in range(500):
            session.hear(_text(Kind.PROGRESS, number))
        await client.has(501)
    assert [json.loads(one)["data"]["number"] for one in client.got[1:]] == list(range(500))


async def test_a_slow_client_misses_only_progress() -> None:
    client = Client()
    async with _served(client) as session:
        session.hear(_text(Kind.START))
        for number in range(5000):
            session.hear(_text(Kind.PROGRESS, number))
            if number % 500 == 0:
                session.hear(_text(Kind.EXECUTED, number))
        session.hear(_text(Kind.SUCCESS))
        session.tell(session.narration.ended("a", done("a")))
        client.reads.set()
        await eventually(lambda: bool(client.got) and '"node":null' in client.got[-1], within_s=_PATIENCE_S)
    told = [json.loads(one) for one in client.got]
    assert [one["data"]["number"] for one in told if one["type"] == "EXECUTED"] == list(range(0, 5000, 500))
    progress = [one["data"]["number"] for one in told if one["type"] == "PROGRESS"]
    assert progress == sorted(progress)
    assert progress[-1] == 4999
    assert len(progress) < 2500
    assert [one["type"] for one in told[-2:]] == ["SUCCESS", "executing"]


async def test_waiting_frames_beyond_the_limit_go_to_a_file_and_arrive_in_order() -> None:
    client, budget = Client(), Budget(512_000_000)
    limits = SessionLimits(memory_bytes=2_000_000)
    async with _served(client, limits=limits, budget=budget) as session:
        session.hear(_text(Kind.START))
        sent = [_picture(number) for number in range(200)]
        expected = [frame.data for frame in sent]
        for number, frame in enumerate(sent):
            session.hear(frame)
            session.hear(_text(Kind.EXECUTED, number))
        await eventually(lambda: sum(frame.held for frame in sent) <= limits.memory_bytes, within_s=_PATIENCE_S)
        client.reads.set()
        await client.has(401)
    assert [one for one in client.got if isinstance(one, bytes)] == expected
    numbers = [json.loads(one)["data"]["number"] for one in client.got[1:] if isinstance(one, str)]
    assert numbers == list(range(200))


async def test_frames_kept_until_another_prompt_ends_go_to_a_file_beyond_the_limit() -> None:
    client, limits = Client(), SessionLimits(memory_bytes=1_000_000)
    client.reads.set()
    async with _served(client, limits=limits) as session:
        session.hear(_text(Kind.START, prompt_id="a"))
        session.hear(_text(Kind.START, prompt_id="b"))
        session.hear(_text(Kind.EXECUTING, 5, "b"))
        kept = [_picture(number, prompt_id="b") for number in range(100)]
        expected = [frame.data for frame in kept]
        for frame in kept:
            session.hear(frame)
        await eventually(lambda: sum(frame.held for frame in kept) <= limits.memory_bytes, within_s=_PATIENCE_S)
        session.hear(_text(Kind.SUCCESS, prompt_id="b"))
        session.tell(session.narration.ended("b", done("b")))
        await client.has(1 + 1 + 1 + 100 + 2 + 1)
    assert [one for one in client.got if isinstance(one, bytes)] == expected


async def test_the_waiting_frames_of_all_clients_share_one_memory_limit() -> None:
    client, other, budget = Client(), Client(), Budget(3_000_000)
    async with _served(client, budget=budget) as one, _served(other, budget=budget) as two:
        sent: list[Frame] = []
        for session in (one, two):
            session.hear(_text(Kind.START))
            for number in range(80):
                sent.append(_picture(number))
                session.hear(sent[-1])
        await eventually(lambda: sum(frame.held for frame in sent) <= 3_500_000, within_s=_PATIENCE_S)
        for each in (client, other):
            each.reads.set()
            await each.has(81)
    assert client.got == other.got


async def test_a_client_that_reads_nothing_is_dropped() -> None:
    client = Client()
    async with _served(client, limits=SessionLimits(idle_s=0.2)) as session:
        session.hear(_text(Kind.START))
        await client.has(1)
    assert client.got == [1013]


async def test_a_client_without_waiting_frames_stays_connected() -> None:
    client = Client()
    client.reads.set()
    async with _served(client, limits=SessionLimits(idle_s=0.05)) as session:
        session.hear(_text(Kind.START))
        await client.has(1)
        await asyncio.sleep(0.3)  # the test is that time alone does not end the session
        session.hear(_text(Kind.PROGRESS))
        await client.has(2)
    assert 1013 not in client.got


async def test_a_client_is_dropped_when_its_frames_cannot_be_written_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    client = Client()
    async with _served(client, limits=SessionLimits(memory_bytes=100_000)) as session:
        session.hear(_text(Kind.START))
        for number in range(20):
            session.hear(_picture(number))
        await client.has(1)
    assert client.got == [1013]


async def test_a_client_is_dropped_when_its_file_is_full() -> None:
    client, limits = Client(), SessionLimits(memory_bytes=200_000, file_bytes=1_000_000)
    with capture_logs() as lines:
        async with _served(client, limits=limits) as session:
            session.hear(_text(Kind.START))
            for number in range(40):
                session.hear(_picture(number))
            await client.has(1)
    assert client.got == [1013]
    (line,) = [one for one in lines if one["event"] == "relay.slow_client"]
    assert line["buffered_bytes"] >= 40 * 50_000


async def test_a_client_is_dropped_when_too_many_small_frames_wait_in_memory() -> None:
    client = Client()
    async with _served(client, limits=SessionLimits(memory_bytes=100_000)) as session:
        session.hear(_text(Kind.START))
        for number in range(3000):
            session.hear(_text(Kind.EXECUTED, number))
        for number in range(10):  # the waiting bytes are checked every 256 KB
            session.hear(_picture(number))
        await client.has(1)
    assert client.got == [1013]


async def test_the_file_of_a_slow_client_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    frames = [_picture(number) for number in range(200)]
    expected, longest = [frame.data for frame in frames], 0
    async with Shelf(max_bytes=500_000) as shelf:
        for number, frame in enumerate(frames):
            assert await shelf.put([frame], frames[max(0, number - 5) : number])
            longest = max(longest, _length_of_files(tmp_path))
            first = max(0, number - 5)
            assert [await shelf.read(one) for one in frames[first : number + 1]] == expected[first : number + 1]
        assert not await shelf.put([_picture(number) for number in range(5)], frames[-6:])
    assert 500_000 < longest <= 1_000_000
    assert _length_of_files(tmp_path) == 0


def _length_of_files(folder: Path) -> int:
    """The bytes of this process's open files in the folder; the files have no names there."""
    return sum(link.stat().st_size for link in Path("/proc/self/fd").iterdir() if _is_in(link, folder))


def _is_in(link: Path, folder: Path) -> bool:
    try:
        return link.readlink().is_relative_to(folder)
    except OSError:  # the descriptor of the listing itself
        return False


async def test_a_client_that_declares_its_features_first_gets_ours() -> None:
    client = Client()
    client.reads.set()
    flags = message(Kind.OTHER, "feature_flags", {"supports_preview_metadata": True})
    preview = b"\0\0\0\4" + len(b'{"image_type": "image/png"}').to_bytes(4, "big") + b'{"image_type": "image/png"}PNG'
    async with _served(client, flags=flags) as session:
        session.hear(_text(Kind.START))
        session.hear(Frame(Kind.PREVIEW, preview, "a", is_text=False))
        session.hear(_text(Kind.PROGRESS))
        await client.has(3)
        assert client.got[2] == b"\0\0\0\1\0\0\0\2PNG", (
            "a client without declared features gets the older form, behind the progress"
        )
        session.hear(Frame(Kind.PREVIEW, preview, "a", is_text=False))
        session.hear(_text(Kind.EXECUTING))
        await client.has(5)
        assert client.got[3] == client.got[2], "a preview goes before later frames"
        client.say("no JSON")
        client.say('{"type": "feature_flags", "data": {"supports_preview_metadata": true}}')
        await client.has(6)
        assert json.loads(client.got[5]) == {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        session.hear(Frame(Kind.PREVIEW, preview, "a", is_text=False))
        await client.has(7)
        assert client.got[6] == preview
        client.say('{"type": "feature_flags", "data": {}}')
        session.hear(Frame(Kind.PREVIEW, preview, "a", is_text=False))
        await client.has(8)
        assert client.got[7] == preview, "only the first message counts"


async def test_files_have_their_merged_names_and_users_see_no_paths() -> None:
    client = Client()
    client.reads.set()
    prompt_id = "00000000-0000-4000-8000-000000000001"
    made = b'{"images": [{"filename": "a.png", "subfolder": ""}]}'
    executed = b'{"type": "executed", "data": {"node": "3", "output": ' + made + b"}}"
    error = b'{"type": "execution_error", "data": {"traceback": ["  File \\"/srv/comfy/nodes.py\\", line 1"]}}'
    rules = KeyRules(name="alice", role="user")
    async with _served(client, viewer=Viewer("alice", Origin("prompt", "alice", rules))) as session:
        session.hear(_text(Kind.START, prompt_id=prompt_id))
        session.hear(Frame(Kind.EXECUTED, executed, prompt_id, "3"))
        session.hear(Frame(Kind.FAILURE, error, prompt_id))
        session.tell(session.narration.ended(prompt_id, done(prompt_id)))
        await client.has(4)
    (file,) = json.loads(client.got[1])["data"]["output"]["images"]
    assert file == {"filename": "a.png", "subfolder": prompt_id}
    assert "/srv" not in client.got[2]
    assert "nodes.py" in client.got[2]
