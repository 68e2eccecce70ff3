"""Bodies that are made while they are sent, and the names of files in headers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from contextlib import AsyncExitStack
from urllib.parse import quote

import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from comfyui.exceptions import ClientGoneError, ComfyUIError
from comfyui.transport.body import OpenBody
from comfyui.web.server.client_side import ClientSide
from comfyui.web.server.disconnect import ClientWatch

_log = structlog.get_logger(__name__)
_NOT_QUOTABLE = re.compile(r"[^ !#$&-.0-\[\]-~]")
# Control characters, and the two that end a line or a paragraph.
_UNSEEN = frozenset({"Cc", "Zl", "Zp"})
_NO_NAME = "file"


class BodyStream(Response):
    """Sends `body` as it comes, at the speed of the client, and stops as soon as the client goes away.

    A `ComfyUIError` on the way cuts the connection: the sent bytes cannot be taken back, and every client notices a
    body that ends early.

    Args:
        stack: what `body` needs open; closed at the end, however it comes.
        status: 206 for a part.
    """

    def __init__(
        self,
        body: OpenBody,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        stack: AsyncExitStack | None = None,
        status: int = 200,
    ) -> None:
        self.status_code = status
        self.media_type = media_type
        self.background = None
        self._content = body
        self._stack = stack or AsyncExitStack()
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            try:
                with ClientWatch(receive):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    await self._content.send_to(ClientSide(scope, send))
            except ClientGoneError:
                _log.info("response.client_gone")
            except ComfyUIError as error:
                # The server closes the connection of an answer that was not completed.
                _log.warning("response.cut", type=error.code, detail=error.detail)


def content_disposition(filename: str) -> str:
    """The base name of the file for a download: RFC 6266, plain ASCII for old clients and UTF-8 for the others.

    The part before a slash or a backslash is left out, and each control character becomes ``_``: a client that saves
    the file under this name writes into the folder that it chose. ``attachment``, because a node's file may be a page
    or an SVG with scripts, which must not run as the gateway's.
    """
    filename = re.split(r"[/\\]", filename)[-1]
    filename = "".join("_" if unicodedata.category(character) in _UNSEEN else character for character in filename)
    filename = _NO_NAME if filename.strip() in {"", ".", ".."} else filename
    plain = unicodedata.normalize("NFKD", filename).encode("ascii", "replace").decode()
    plain = _NOT_QUOTABLE.sub("_", plain).replace("?", "_")
    if plain == filename:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='', errors='replace')}"
