"""`BoundedResponse`: an answer of a caller-chosen server, with only few interim answers before it.

aiohttp reads any number of interim responses (1xx) before the answer, and does not pause while some have arrived: a
server that sends nothing else would block the event loop, and fill memory, until the time limit of the request.
"""

from __future__ import annotations

from typing import Any, Self

import aiohttp

_MOST_INTERIM = 20


class BoundedResponse(aiohttp.ClientResponse):
    """For `response_class`. Raises `aiohttp.ClientResponseError` if more than `_MOST_INTERIM` came."""

    async def start(self, connection: Any) -> Self:
        protocol: Any = connection.protocol
        read = protocol.read
        left = _MOST_INTERIM

        async def bounded_read() -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise aiohttp.ClientResponseError(self.request_info, (), message="too many interim responses")
            return await read()

        protocol.read = bounded_read
        try:
            await super().start(connection)
        finally:
            del protocol.read  # the method of its class
        return self
