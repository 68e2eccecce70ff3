"""Compares every answer of the gateway's own endpoints that a test gets with ``/openapi.json``."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import aiohttp
import jsonschema_rs

from config import Settings
from server import create_app

Response = dict[str, Any]

_JSON = "application/json"
# ComfyUI's own answers, which may have more members than the gateway knows.
_OPEN = {"ComfyUIRefusal", "Queued"}


class Description:
    """The gateway's OpenAPI document, which describes each answer."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        schemas = document["components"]["schemas"]
        self._components = {"schemas": {name: _closed(name, schema) for name, schema in schemas.items()}}
        self._operations = [
            (method.upper(), re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operation["responses"])
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        ]
        self.headers = frozenset(document["components"]["headers"])
        self._validator = functools.cache(self._made)

    def response(self, method: str, path: str, status: int) -> Response | None:
        """The description of this status, or None if the document does not have the endpoint.

        Raises:
            AssertionError: the document has the endpoint but not the status.
        """
        for known, paths, responses in self._operations:
            if known == method and paths.fullmatch(path):
                response: Response | None = responses.get(str(status), responses.get("default"))
                assert response is not None, f"{method} {path}: {status} is not among {', '.join(responses)}"
                return response
        return None

    def check(self, response: Response, body: bytes) -> None:
        """Raises `AssertionError` if the JSON body does not have the described form."""
        errors = list(self._validator(json.dumps(response["content"][_JSON]["schema"])).iter_errors(json.loads(body)))
        assert not errors, f"{body[:2000]!r}: {errors[0]}"

    def _made(self, schema: str) -> jsonschema_rs.Validator:
        return jsonschema_rs.Draft202012Validator({**json.loads(schema), "components": self._components})


def _closed(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without unknown members: a member that the document lacks is a fault of the code or the document."""
    return schema if name in _OPEN or "properties" not in schema else {"additionalProperties": False, **schema}


@functools.cache
def described(*, with_keys: bool) -> type[aiohttp.ClientResponse]:
    """A class of answers that compare themselves with the document of a gateway with, or without, API_KEYS."""
    description = Description(create_app(Settings(api_keys=("key",) if with_keys else ())).openapi())  # type: ignore[arg-type]

    class DescribedResponse(aiohttp.ClientResponse):
        _said: Response | None = None

        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            handshake = "Upgrade" in self.request_info.headers  # a websocket's handshake is no call of the endpoint
            said = None if handshake else description.response(self.method, self.url.path, self.status)
            if said is not None:
                content = said.get("content", {})
                kind = self.content_type if "Content-Type" in self.headers else ""
                known = next((known for known in content if fnmatchcase(kind, known)), "")
                assert known or not (kind or content), f"{self.method} {self.url}: {kind} is not among {list(content)}"
                unsaid = [name for name in description.headers if name in self.headers and name not in said["headers"]]
                assert not unsaid, (
                    f"{self.method} {self.url}: {self.status} has {unsaid}, which the document does not have"
                )
                self._said = said if known == _JSON else None
            return self

        async def read(self) -> bytes:
            body = await super().read()
            if self._said is not None:
                description.check(self._said, body)
            return body

    return DescribedResponse


KEY = "a-key-for-clients"


Document = dict[str, Any]
