"""Invalid fields, headers and parameters of jobs: each error names the invalid one, and no job is created."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from comfyui.engine import Engine
from comfyui.jobs.queue_options import QueueOptions
from tests.support.jobs import ASYNC, fetch, listed, submit
from tests.support.running import (
    RunningGateway,
    executions,
    handler_options,
    invert_workflow,
    running_gateway,
    sleep_workflow,
)

ID = "7d0b5c39-0000-4000-8000-00000000000a"
SECONDS = "must be a number of seconds, 0 or more, such as wait=20"
WRITTEN = "write 'respond-async', or 'respond-async, wait=20'"
KEY_RULE = "must be 1 to 40 characters of A-Z a-z 0-9 _ - ."
UNFIT = "must have no control characters and no marks of text direction"
STATES = "the states are queued, running, canceling, succeeded, failed, canceled, lost"

PREFERRED = [
    ["respond-async"],
    ["RESPOND-ASYNC"],
    ["Respond-Async ; a=b"],
    ['respond-async;foo="x, y"'],
    [" , respond-async ,, "],
    ['respond-async=""'],
    ['foo="a, b", respond-async'],
    ['foo="a\\", b", respond-async'],
    ["handling=lenient, respond-async, return=minimal; x"],
    ["respond-async, wait=0"],
    ['respond-async, wait="0"'],
    ["respond-async, WAIT = 0.0"],
    ["wait=0, respond-async, wait=99999"],
    ["foo=bar", "respond-async", "wait=0"],
    ["respond-async", "respond-async"],
]
NOT_PREFERRED = [
    ["respond-async=false"],
    ['"respond-async"'],
    ['foo="a, respond-async"'],
    ['foo="a\\", respond-async"'],
    ['foo="not closed, respond-async'],
    ["foo; respond-async"],
    ["respond_async"],
    ["wait=soon"],
    ["wait=99999"],
    ['return=representation, wait=3; foo="bar"'],
]


@pytest.mark.parametrize("headers", PREFERRED, ids=", ".join)
async def test_the_prefer_header_follows_the_grammar_of_the_rfc(engine: Engine, headers: Sequence[str]) -> None:
    async with running_gateway(engine.url, changed=handler_options(queue=QueueOptions(ahead=0))) as gateway:
        given = [("Prefer", header) for header in headers]
        async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow()}, headers=given) as response:
            assert (response.status, response.headers["Preference-Applied"]) == (202, "respond-async")


@pytest.mark.parametrize("headers", NOT_PREFERRED, ids=", ".join)
async def test_unknown_preferences_are_ignored(gateway: RunningGateway, headers: Sequence[str]) -> None:
    given = [("Prefer", header) for header in headers]
    async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow()}, headers=given) as response:
        assert response.status == 200, await response.text()
        assert "Preference-Applied" not in response.headers


@pytest.mark.parametrize(
    ("headers", "status", "detail"),
    [
        ("respond-async, wait", 422, f"Prefer: 'wait' {SECONDS}"),
        ("respond-async, wait=", 422, f"Prefer: 'wait' {SECONDS}"),
        ("respond-async, wait=-1", 422, f"Prefer: 'wait=-1' {SECONDS}"),
        ("respond-async, wait=soon", 422, f"Prefer: 'wait=soon' {SECONDS}"),
        ('respond-async, wait="1, 2"', 422, f"Prefer: 'wait=1, 2' {SECONDS}"),
        ("respond-async, wait=10s", 422, f"Prefer: 'wait=10s' {SECONDS}"),
        ("respond-async, wait=nan", 422, f"Prefer: 'wait=nan' {SECONDS}"),
        ("respond-async, wait=inf", 422, f"Prefer: 'wait=inf' {SECONDS}"),
        ("respond-async, wait=1_0", 422, f"Prefer: 'wait=1_0' {SECONDS}"),
        ("respond-async, wait=0x1", 422, f"Prefer: 'wait=0x1' {SECONDS}"),
        ("wait=soon, respond-async, wait=1", 422, f"Prefer: 'wait=soon' {SECONDS}"),
        ("respond-async, wait=3601", 422, "Prefer: wait must be at most 3600 seconds (MAX_TIMEOUT)"),
        ("respond-async, wait=1e999", 422, "Prefer: wait must be at most 3600 seconds (MAX_TIMEOUT)"),
        (f"respond-async, wait={'9' * 400}", 422, "Prefer: wait must be at most 3600 seconds (MAX_TIMEOUT)"),
        (f"respond-async, x={'x' * 2000}", 422, "Prefer: String should have at most 1024 characters"),
    ],
)
async def test_the_error_names_an_invalid_preference(
    gateway: RunningGateway, headers: str, status: int, detail: str
) -> None:
    body = {"prompt": invert_workflow()}
    async with gateway.http.post("/prompt_sync", json=body, headers={"Prefer": headers}) as response:
        assert (response.status, (await response.json())["detail"]) == (status, detail)
    async with gateway.http.get(f"/prompt_sync/{ID}", headers={"Prefer": headers}) as response:
        assert (response.status, (await response.json())["detail"]) == (status, detail)
    assert (await listed(gateway.http))["jobs"] == []


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ("prefer=async", 400, f"prefer: there is no preference 'async'; {WRITTEN}"),
        ("prefer=respond_async", 400, f"prefer: there is no preference 'respond_async'; {WRITTEN}"),
        ("prefer=respond-async%3Dtrue", 400, f"prefer: there is no preference 'respond-async=true'; {WRITTEN}"),
        ("prefer=respond-async,x%3D1", 400, f"prefer: there is no preference 'x=1'; {WRITTEN}"),
        ("prefer=wait%3D3", 400, f"prefer: respond-async is missing; {WRITTEN}"),
        ("prefer=,", 400, f"prefer: respond-async is missing; {WRITTEN}"),
        ("prefer=", 422, "prefer must not be empty; give a value, or leave prefer out"),
        ("prefer=respond-async,wait%3Dsoon", 422, f"prefer: 'wait=soon' {SECONDS}"),
        ("prefer=respond-async,wait%3D9999", 422, "prefer: wait must be at most 3600 seconds (MAX_TIMEOUT)"),
        ("prefer=respond-async&prefer=respond-async", 400, "prefer: this parameter must be given only once"),
        (f"prefer={'x' * 300}", 422, "prefer: String should have at most 256 characters"),
        ("Prefer=respond-async", 400, "Prefer: there is no such query parameter; did you mean prefer?"),
        ("prefer=respond-async&wait=3", 400, "wait: there is no such query parameter; the parameters are timeout"),
        ("prefer=respond-async&timeout=0", 422, "timeout: Input should be greater than 0"),
        ("prefer=respond-async&timeout=9999", 422, "timeout must be at most 3600 seconds (MAX_TIMEOUT)"),
        (
            "prefer=respond-async&labels=a",
            400,
            "labels: there is no such query parameter; send it as a field of the body",
        ),
        ("prefer=respond-async&priority=1", 400, "priority: there is no such query parameter; send it as a field of"),
    ],
)
async def test_the_error_names_an_invalid_query_parameter_of_a_submission(
    gateway: RunningGateway, query: str, status: int, detail: str
) -> None:
    async with gateway.http.post(f"/prompt_sync?{query}", json={"prompt": invert_workflow()}) as response:
        body = await response.json()
        assert (response.status, body["detail"][: len(detail)]) == (status, detail)
    assert (await listed(gateway.http))["jobs"] == []


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"labels": {"a b": "1"}}, f"labels: the key 'a b' {KEY_RULE}"),
        ({"labels": {"": "1"}}, f"labels: the key '' {KEY_RULE}"),
        ({"labels": {"é": "1"}}, f"labels: the key '\\xe9' {KEY_RULE}"),
        ({"labels": {"k" * 41: "1"}}, f"labels: the key '{'k' * 40}\\u2026' {KEY_RULE}"),
        ({"labels": {"a": 1}}, "labels.a: Input should be a valid string"),
        ({"labels": {"a": None}}, "labels.a: Input should be a valid string"),
        ({"labels": {"a": ["b"]}}, "labels.a: Input should be a valid string"),
        ({"labels": {"a": "é" * 129}}, "labels: the value of 'a' must have at most 256 bytes in UTF-8"),
        ({"labels": {"a": "b\nc"}}, f"labels: the value of 'a' {UNFIT}"),
        ({"labels": {"a": "\x00"}}, f"labels: the value of 'a' {UNFIT}"),
        ({"labels": {"a": "b\u202ec"}}, f"labels: the value of 'a' {UNFIT}"),
        ({"labels": {"a": "\ud800"}}, f"labels: the value of 'a' {UNFIT}"),
        ({"labels": {f"k{n}": "" for n in range(17)}}, "labels: at most 16 labels are allowed, but 17 are given"),
        ({"labels": ["a"]}, "labels: Input should be an object"),
        ({"labels": "a=b"}, "labels: Input should be an object"),
        ({"label": {"a": "b"}}, "label: there is no such field; did you mean labels?"),
        ({"priority": 1_000_001}, "priority: Input should be less than or equal to 1000000"),
        ({"priority": -1_000_001}, "priority: Input should be greater than or equal to -1000000"),
        ({"priority": 10**30}, "priority: Input should be less than or equal to 1000000"),
        ({"priority": True}, "priority: must be a whole number, not true or false"),
        ({"priority": 1.5}, "priority: Input should be a valid integer, got a number with a fractional part"),
        ({"priority": "high"}, "priority: Input should be a valid integer, unable to parse string as an integer"),
        ({"priority": []}, "priority: Input should be a valid integer"),
        ({"priorty": 1}, "priorty: there is no such field"),
        (
            {"webhook": {"url": "https://a.example"}},
            "webhook: the gateway sends no webhooks, because WEBHOOK_SECRET and",
        ),
        ({"prompt_id": "7"}, "prompt_id: Input should be a valid UUID"),
        ({"prompt_id": 7}, "prompt_id: UUID input should be a string, bytes or UUID object"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("headers", [{}, ASYNC], ids=["sync", "async"])
async def test_the_error_names_an_invalid_field_of_the_body(
    gateway: RunningGateway, engine: Engine, fields: dict[str, Any], detail: str, headers: dict[str, str]
) -> None:
    body = {"prompt": invert_workflow(), **fields}
    async with gateway.http.post("/prompt_sync", json=body, headers=headers) as response:
        answer = await response.json()
        assert (response.status, answer["detail"][: len(detail)]) == (422, detail)
        assert len(answer["detail"]) < 200
    assert (await listed(gateway.http))["jobs"] == []
    assert executions(engine) == {}


@pytest.mark.parametrize(
    ("webhook", "detail"),
    [
        ("https://a.example", "webhook: Input should be an object"),
        ([], "webhook: Input should be an object"),
        ({}, "webhook.url: Field required"),
        ({"url": 7}, "webhook.url: Input should be a valid string"),
        ({"url": ""}, "webhook.url: the URL must begin with http:// or https://"),
        ({"url": "ftp://a.example/"}, "webhook.url: the URL must begin with http:// or https://"),
        ({"url": "/hook"}, "webhook.url: the URL must begin with http:// or https://"),
        ({"url": "http://127.0.0.1/"}, "webhook.url must have a public address; WEBHOOK_URL_ALLOW lists exceptions"),
        ({"url": "http://0x7f.1/"}, "webhook.url must have a public address; WEBHOOK_URL_ALLOW lists exceptions"),
        ({"url": "http://a:b@a.example/"}, "webhook.url: the URL must not have a user or password"),
        ({"url": "https://a.example/\n"}, "webhook.url must be a valid URL"),
        ({"url": "http:///hook"}, "webhook.url: the URL has no host"),
        ({"url": "http://a.example:0/"}, "webhook.url: the URL must not have port 0"),
        ({"url": f"https://a.example/{'x' * 2048}"}, "webhook.url: String should have at most 2048 characters"),
        ({"url": "https://a.example/", "events": "prompt.lost"}, "webhook.events: Input should be a list"),
        (
            {"url": "https://a.example/", "events": ["prompt.done"]},
            "webhook.events[0]: Input should be 'prompt.started'",
        ),
        ({"url": "https://a.example/", "event": []}, "webhook.event: there is no such field"),
        ({"url": "https://a.example/", "secret": "x"}, "webhook.secret: there is no such field"),
    ],
    ids=str,
)
async def test_the_error_names_an_invalid_field_of_a_webhook(
    webhook_gateway: RunningGateway, webhook: object, detail: str
) -> None:
    body = {"prompt": invert_workflow(), "webhook": webhook}
    async with webhook_gateway.http.post("/prompt_sync", json=body, headers=ASYNC) as response:
        said = (await response.json())["detail"]
    assert (response.status, said[: len(detail)]) == (422, detail)
    assert "after validation" not in said, "the follow-up error of pydantic about the length of a list is left out"
    assert (await listed(webhook_gateway.http))["jobs"] == []


@pytest.mark.parametrize(
    ("headers", "status", "detail"),
    [
        ([("Idempotency-Key", "a")], 422, "give either prompt_id or the Idempotency-Key header, not both"),
        ([("Idempotency-Key", "")], 422, "Idempotency-Key: String should have at least 1 character"),
        ([("Idempotency-Key", "k" * 256)], 422, "Idempotency-Key: String should have at most 255 characters"),
        ([("Idempotency-Key", "a"), ("Idempotency-Key", "a")], 400, "Idempotency-Key: this header must be given"),
    ],
)
async def test_a_prompt_id_and_an_idempotency_key_together_are_refused(
    gateway: RunningGateway, headers: list[tuple[str, str]], status: int, detail: str
) -> None:
    body = {"prompt": invert_workflow(), "prompt_id": ID}
    async with gateway.http.post("/prompt_sync", json=body, headers=[*headers, *ASYNC.items()]) as response:
        assert (response.status, (await response.json())["detail"][: len(detail)]) == (status, detail)
    assert (await listed(gateway.http))["jobs"] == []


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ("status=done", 422, f"status: there is no state 'done'; {STATES}"),
        ("status=cancelled", 422, f"status: there is no state 'cancelled'; {STATES}"),
        ("status=Queued", 422, f"status: there is no state 'Queued'; {STATES}"),
        ("status=queued,,lost", 422, f"status: there is no state ''; {STATES}"),
        ("status=", 422, "status must not be empty; give a value, or leave status out"),
        ("status=queued&status=lost", 400, "status: this parameter must be given only once"),
        (f"status={'queued,' * 20}", 422, "status: String should have at most 100 characters"),
        ("limit=0", 422, "limit: Input should be greater than or equal to 1"),
        ("limit=-1", 422, "limit: Input should be greater than or equal to 1"),
        ("limit=201", 422, "limit: Input should be less than or equal to 200"),
        ("limit=ten", 422, "limit: Input should be a valid integer"),
        ("limit=1.5", 422, "limit: Input should be a valid integer"),
        ("limit=", 422, "limit must not be empty; give a value, or leave limit out"),
        ("cursor=abc", 400, "cursor must be the unchanged next_cursor of the previous page, or be left out"),
        ("cursor=%C3%A9%00", 400, "cursor must be the unchanged next_cursor"),
        ("cursor=", 422, "cursor must not be empty; give a value, or leave cursor out"),
        (f"cursor={'A' * 513}", 422, "cursor: String should have at most 512 characters"),
        ("label.a/b=1", 422, f"label.a/b: the key 'a/b' {KEY_RULE}"),
        ("label.=1", 422, f"label.: the key '' {KEY_RULE}"),
        (f"label.{'k' * 41}=1", 422, f"label.{'k' * 41}: the key '{'k' * 40}\\u2026' {KEY_RULE}"),
        (f"label.a={'x' * 257}", 422, "label.a: the value of 'a' must have at most 256 bytes in UTF-8"),
        ("label.a=%00", 422, f"label.a: the value of 'a' {UNFIT}"),
        ("label.a=1&label.a=2", 400, "label.a: this parameter must be given only once"),
        ("&".join(f"label.k{n}=1" for n in range(17)), 422, "at most 16 parameters label.<key> are allowed"),
        ("label=a", 400, "label: there is no such query parameter; the parameters are status, workflow, limit, cursor"),
        ("labels.a=1", 400, "labels.a: there is no such query parameter"),
        ("workflow=", 422, "workflow must not be empty; give a value, or leave workflow out"),
        (f"workflow={'w' * 257}", 422, "workflow: String should have at most 256 characters"),
        ("state=lost", 400, "state: there is no such query parameter; did you mean status?"),
        ("page=2", 400, "page: there is no such query parameter"),
        ("timeout=0", 400, "timeout: there is no such query parameter"),
    ],
)
async def test_the_error_names_an_invalid_query_parameter_of_a_list(
    gateway: RunningGateway, query: str, status: int, detail: str
) -> None:
    async with gateway.http.get(f"/prompt_sync?{query}") as response:
        answer = await response.json()
        assert (response.status, answer["detail"][: len(detail)]) == (status, detail)
        assert len(answer["detail"]) < 250


async def test_a_cursor_is_valid_only_for_its_own_list(engine: Engine) -> None:
    async with running_gateway(engine.url, changed=handler_options(queue=QueueOptions(ahead=0))) as gateway:
        ids = [await submit(gateway.http, invert_workflow(tag), labels={"a": "1", "none": ""}) for tag in range(3)]
        cursor = (await listed(gateway.http, "?limit=1"))["next_cursor"]
        assert [job["prompt_id"] for job in (await listed(gateway.http, f"?cursor={cursor}"))["jobs"]] == ids[1::-1]
        for query, detail in (
            (f"cursor={cursor}&status=queued", "cursor belongs to a list with other filters"),
            (f"cursor={cursor}&label.a=1", "cursor belongs to a list with other filters"),
            (f"cursor={cursor[:-1]}", "cursor must be the unchanged next_cursor"),
            (f"cursor={cursor}x", "cursor must be the unchanged next_cursor"),
        ):
            async with gateway.http.get(f"/prompt_sync?{query}") as response:
                assert (response.status, (await response.json())["detail"][: len(detail)]) == (400, detail)
        # A label may be empty, and a filter finds it.
        assert len((await listed(gateway.http, "?label.none=&label.a=1"))["jobs"]) == 3
        assert (await listed(gateway.http, "?label.a="))["jobs"] == []


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ("timeout=-1", 422, "timeout: Input should be greater than or equal to 0"),
        ("timeout=nan", 422, "timeout: Input should be greater than or equal to 0"),
        ("timeout=inf", 422, "timeout must be at most 3600 seconds (MAX_TIMEOUT)"),
        ("timeout=soon", 422, "timeout: Input should be a valid number"),
        ("timeout=", 422, "timeout must not be empty; give a value, or leave timeout out"),
        ("timeout=0&timeout=1", 400, "timeout: this parameter must be given only once"),
        ("timeout=0&prefer=async", 400, f"prefer: there is no preference 'async'; {WRITTEN}"),
        ("timeout=0&convert=bmp", 422, "convert: Input should be 'webp', 'jpeg', 'png' or 'avif'"),
        ("timeout=0&label.a=1", 400, "label.a: there is no such query parameter"),
    ],
)
async def test_the_error_names_an_invalid_query_parameter_of_a_status_request(
    gateway: RunningGateway, query: str, status: int, detail: str
) -> None:
    async with gateway.http.get(f"/prompt_sync/{ID}?{query}") as response:
        assert (response.status, (await response.json())["detail"][: len(detail)]) == (status, detail)


async def test_the_shorter_of_timeout_and_wait_counts(gateway: RunningGateway) -> None:
    wanted = {"Prefer": "respond-async, wait=60"}
    body = {"prompt": sleep_workflow(20)}
    async with gateway.http.post("/prompt_sync?timeout=0.2", json=body, headers=wanted) as response:
        prompt_id = (await response.json())["prompt_id"]
        assert (response.status, response.headers["Preference-Applied"]) == (202, "respond-async, wait=0.2")
    for query, applied in (("timeout=0", "respond-async"), ("timeout=0.1", "respond-async, wait=0.1")):
        async with gateway.http.get(f"/prompt_sync/{prompt_id}?{query}", headers=wanted) as response:
            assert (response.status, response.headers["Preference-Applied"]) == (202, applied)
    async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
        assert response.status == 200
    assert (await fetch(gateway.http, prompt_id))[0] == 409
