"""A stub of Supabase: PostgREST's function calls on a real Postgres, and the storage API in memory.

The storage answers as measured on the real storage-api: most refusals are HTTP 400 with the status as text in the
body, signed URLs are relative and not percent-encoded, and keys may have only a few ASCII characters.
"""

from __future__ import annotations

import json
import re
import secrets
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import asyncpg
from aiohttp import web

SERVICE_ROLE_KEY = "header.service-role.s3cret-word"
_KEY = re.compile(r"[\w/!\-.*'() &$@=;:+,?]+", re.ASCII)
_MAX_BYTES = 50 * 1024


@dataclass
class SupabaseStub:
    """`failures`: HTTP answers to give once each, by a part of the path."""

    url: str = ""
    buckets: dict[str, dict[str, tuple[bytes, str]]] = field(default_factory=lambda: {"outputs": {}})
    failures: list[tuple[str, int, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    keys: set[str] = field(default_factory=lambda: {SERVICE_ROLE_KEY})
    _tokens: dict[str, str] = field(default_factory=dict)

    def routes(self, sql: asyncpg.Pool[asyncpg.Record]) -> list[web.RouteDef]:
        async def rpc(request: web.Request) -> web.Response:
            return await self._rpc(request, sql)

        return [
            web.post("/rest/v1/rpc/{function}", rpc),
            web.post("/storage/v1/object/sign/{bucket}/{key:.+}", self._sign),
            web.get("/storage/v1/object/sign/{bucket}/{key:.+}", self._get_signed),
            web.get("/storage/v1/object/public/{bucket}/{key:.+}", self._get_public),
            web.post("/storage/v1/object/{bucket}/{key:.+}", self._upload),
            web.delete("/storage/v1/object/{bucket}/{key:.+}", self._delete),
        ]

    @web.middleware
    async def middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        for failure in self.failures:
            if failure[0] in request.path:
                self.failures.remove(failure)
                return web.json_response(failure[2], status=failure[1])
        response: web.StreamResponse = await handler(request)
        return response

    # PostgREST

    async def _rpc(self, request: web.Request, sql: asyncpg.Pool[asyncpg.Record]) -> web.Response:
        if request.headers.get("apikey") not in self.keys:
            return web.json_response({"message": "Invalid API key"}, status=401)
        arguments = await request.json()
        name = request.match_info["function"]
        found = await sql.fetchrow(
            "select proretset, proargnames, (select array_agg(t::regtype::text) from unnest(proargtypes) t) as types"
            " from pg_proc where proname = $1",
            name,
        )
        types = dict(zip(found["proargnames"] or (), found["types"] or (), strict=False)) if found else {}
        if found is None or not set(arguments) <= set(types):
            message = f"Could not find the function public.{name}({', '.join(arguments)}) in the schema cache"
            return web.json_response({"code": "PGRST202", "message": message}, status=404)
        passed = ", ".join(
            f"{argument} => ($1::jsonb -> '{argument}')"
            if types[argument] == "jsonb"
            else f"{argument} => ($1::jsonb ->> '{argument}')::{types[argument]}"
            for argument in arguments
        )
        parameters = [json.dumps(arguments)] if arguments else []
        try:
            rows = await sql.fetch(f"select to_jsonb(r) as r from {name}({passed}) r", *parameters)  # noqa: S608
        except asyncpg.PostgresError as error:
            return web.json_response({"code": error.sqlstate, "message": str(error)}, status=400)
        answers = [json.loads(row["r"]) for row in rows]
        return web.json_response(answers if found["proretset"] else answers[0])

    # storage-api

    async def _upload(self, request: web.Request) -> web.Response:
        bucket, key = self._place(request)
        if refusal := self._refusal(request, bucket, key):
            return refusal
        body = await request.read()
        if len(body) > _MAX_BYTES:
            return _refused("413", "Payload too large", "The object exceeded the maximum allowed size")
        if key in self.buckets[bucket] and request.headers.get("x-upsert") != "true":
            return _refused("409", "Duplicate", "The resource already exists")
        self.buckets[bucket][key] = (body, request.content_type)
        return web.json_response({"Key": f"{bucket}/{key}", "Id": str(uuid.uuid4())})

    async def _delete(self, request: web.Request) -> web.Response:
        bucket, key = self._place(request)
        if refusal := self._refusal(request, bucket, key):
            return refusal
        if self.buckets[bucket].pop(key, None) is None:
            return _refused("404", "not_found", "Object not found")
        return web.json_response({"message": "Successfully deleted"})

    async def _sign(self, request: web.Request) -> web.Response:
        bucket, key = self._place(request)
        if refusal := self._refusal(request, bucket, key):
            return refusal
        if key not in self.buckets[bucket]:
            return _refused("404", "not_found", "Object not found")
        assert isinstance((await request.json())["expiresIn"], int)
        token = secrets.token_urlsafe(8)
        self._tokens[token] = f"{bucket}/{key}"
        return web.json_response({"signedURL": f"/object/sign/{bucket}/{key}?token={token}"})

    async def _get_signed(self, request: web.Request) -> web.Response:
        bucket, key = self._place(request)
        if self._tokens.get(request.query.get("token", "")) != f"{bucket}/{key}":
            return _refused("400", "InvalidJWT", "jwt malformed")
        return self._file(bucket, key)

    async def _get_public(self, request: web.Request) -> web.Response:
        return self._file(*self._place(request))

    def _file(self, bucket: str, key: str) -> web.Response:
        body, content_type = self.buckets[bucket][key]
        return web.Response(body=body, content_type=content_type)

    def _place(self, request: web.Request) -> tuple[str, str]:
        return request.match_info["bucket"], unquote(request.match_info["key"])

    def _refusal(self, request: web.Request, bucket: str, key: str) -> web.Response | None:
        if request.headers.get("apikey") not in self.keys:
            return _refused("403", "Unauthorized", "Invalid Compact JWS")
        if bucket not in self.buckets:
            return _refused("404", "Bucket not found", "Bucket not found")
        if not _KEY.fullmatch(key) or ".." in key:
            return _refused("400", "InvalidKey", f"Invalid key: {key}")
        return None


def _refused(status_code: str, error: str, message: str) -> web.Response:
    return web.json_response({"statusCode": status_code, "error": error, "message": message}, status=400)


@asynccontextmanager
async def running_supabase(database_url: str) -> AsyncIterator[SupabaseStub]:
    """The stub in front of a database that has the migrations."""
    stub = SupabaseStub()
    async with asyncpg.create_pool(database_url, min_size=1, max_size=3) as sql:
        app = web.Application(middlewares=[stub.middleware])
        app.add_routes(stub.routes(sql))
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield stub
        finally:
            await runner.cleanup()
