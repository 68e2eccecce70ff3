"""Reads server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Sent:
    """One event or comment; comments have no name."""

    name: str
    data: Any


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[Sent]:
    """Every event and comment of an answer, as they come."""
    assert response.status == 200, await response.text()
    assert response.content_type == "text/event-stream"
    pending = b""
    async for chunk in response.content.iter_any():
        *messages, pending = (pending + chunk).split(b"\n\n")
        for message in messages:
            if message.startswith(b":"):
                yield Sent("", message[1:].strip().decode())
                continue
            name, data = message.split(b"\n")
            yield Sent(name.removeprefix(b"event: ").decode(), json.loads(data.removeprefix(b"data: ")))
    assert not pending


def data_of(events: list[Sent], name: str) -> list[Any]:
    """The data of the events with this name."""
    return [event.data for event in events if event.name == name]
