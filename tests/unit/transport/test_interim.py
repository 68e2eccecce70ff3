"""A server that sends endless interim responses is given up; a few interim responses are skipped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from comfyui.jobs.webhooks.sending import SenderOptions, WebhookSender
from comfyui.transport.interim import BoundedResponse

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


@asynccontextmanager
async def answering(first: bytes, again: bytes = b"") -> AsyncIterator[str]:
    """The URL of a server that sends `first` for each request, and then repeats `again` as long as the client reads."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(first)
                while again:
                    writer.write(again)
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def test_a_few_interim_responses_are_skipped_for_each_request_of_a_connection() -> None:
    async with (
        answering(_CONTINUE * 10 + _ANSWER) as url,
        aiohttp.ClientSession(response_class=BoundedResponse) as session,
    ):
        for _ in range(3):
            async with session.get(url) as response:
                assert response.status == 204


async def test_a_receiver_with_endless_interim_responses_is_given_up_at_once() -> None:
    async with answering(b"", _CONTINUE * 100) as url, WebhookSender(SenderOptions(allow=["127.0.0.1"])) as sender:
        async with asyncio.timeout(30):
            answer = await sender.post(url, {}, b"{}", guarded=True)
    assert (answer.text, answer.delivered) == ("the answer is not valid HTTP", False)


@pytest.mark.parametrize("first", [_CONTINUE * 21 + _ANSWER])
async def test_more_interim_responses_than_the_limit_are_an_error(first: bytes) -> None:
    async with answering(first) as url, aiohttp.ClientSession(response_class=BoundedResponse) as session:
        with pytest.raises(aiohttp.ClientResponseError, match="too many interim responses"):
            await session.get(url)
