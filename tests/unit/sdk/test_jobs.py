"""Jobs in the client library and on its command line, against a server with prepared answers."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from comfyui.sdk import (
    Event,
    GatewayCancelledError,
    GatewayClient,
    GatewayConnectionError,
    GatewayError,
    GatewayNotFinishedError,
    GatewayOverloadedError,
    GatewayProtocolError,
    GatewayRefusedError,
    GatewayTaskError,
    GatewayTimeoutError,
    JobProgress,
    JobStatus,
    Reconnecting,
    Webhook,
)
from comfyui.sdk.command_line import Exit, main
from tests.support.command_line import Ran, cli, cli_here, finish, start
from tests.support.fake_gateway import (
    PICTURE,
    PROMPT_ID,
    WORKFLOW,
    Answer,
    FakeGateway,
    answer,
    cut,
    entry,
    error_body,
    event_stream,
    file_answer,
    hang,
    page,
    result_body,
    sse,
)
from tests.support.ports import free_port

CREATED = "2026-11-29T19:04:12.345Z"


def pending(status: str = "queued", **more: Any) -> Answer:
    body = {"prompt_id": PROMPT_ID, "status": status, "position": 3, "created_at": CREATED}
    return answer(body | more, 202, {"Location": f"/prompt_sync/{PROMPT_ID}", "Retry-After": "5"})


def ended(kind: str, http_status: int, status: str) -> Answer:
    return answer(error_body(kind, prompt_id=PROMPT_ID), http_status, {"X-Prompt-Status": status, "Retry-After": "5"})


def listed_job(number: int, **more: Any) -> dict[str, Any]:
    body = {"prompt_id": str(uuid.UUID(int=number)), "status": "succeeded", "kind": "async", "run": 1, "workflow": None}
    times = {"created_at": CREATED, "started_at": CREATED, "ended_at": CREATED}
    return {**body, "labels": {}, "priority": 0, "server": "gpu-1", **times, "error": None, **more}


async def test_submit_posts_its_arguments_and_returns_a_typed_job(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    fake.on("POST /prompt_sync", pending(stored=False))
    job = await sdk_client.submit(
        WORKFLOW, labels={"order": "7"}, priority=-5, prompt_id=PROMPT_ID, wait_s=20, images=()
    )
    [asked] = fake.asked
    assert asked.json() == {"prompt": WORKFLOW, "prompt_id": PROMPT_ID, "labels": {"order": "7"}, "priority": -5}
    assert asked.headers["Prefer"] == "respond-async, wait=20"
    assert (job.prompt_id, job.status, job.position, job.stored, job.ended) == (PROMPT_ID, "queued", 3, False, False)
    assert job.created_at == datetime(2026, 11, 29, 19, 4, 12, 345_000, UTC)
    assert (job.result, job.error, job.progress) == (None, None, None)


async def test_submit_with_a_key_leaves_the_id_to_the_gateway(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    fake.on("POST /prompt_sync", pending())
    assert (await sdk_client.submit(WORKFLOW, idempotency_key="order 7")).prompt_id == PROMPT_ID
    assert fake.asked[0].json() == {"prompt": WORKFLOW}
    assert fake.asked[0].headers["Idempotency-Key"] == "order 7"
    assert fake.asked[0].headers["Prefer"] == "respond-async"
    await sdk_client.submit(
        WORKFLOW, idempotency_key="order 8", webhook=Webhook("https://a.example/b", ("prompt.lost",))
    )
    assert fake.asked[1].json()["webhook"] == {"url": "https://a.example/b", "events": ["prompt.lost"]}
    with pytest.raises(ValueError, match="not both"):
        await sdk_client.submit(WORKFLOW, idempotency_key="order 7", prompt_id=PROMPT_ID)


@pytest.mark.parametrize(
    "lost",
    [cut, page(502, "<h1>Bad Gateway</h1>"), answer(error_body("shutting_down"), 503)],
    ids=["cut", "502", "503"],
)
async def test_a_submission_whose_reply_is_lost_is_sent_again_under_its_id(
    fake: FakeGateway, sdk_client: GatewayClient, lost: Answer
) -> None:
    fake.on("POST /prompt_sync", lost, answer(error_body("connection_failed"), 503), pending())
    assert (await sdk_client.submit(WORKFLOW)).status == "queued"
    bodies = {asked.body for asked in fake.asked_for("POST")}
    assert (len(fake.asked), len(bodies)) == (3, 1)


async def test_a_submission_that_is_refused_or_cannot_connect_is_not_tried_again(
    fake: FakeGateway, sdk_client: GatewayClient
) -> None:
    for body, status, expected in (
        (error_body("invalid_request"), 422, GatewayRefusedError),
        (error_body("overloaded"), 429, GatewayOverloadedError),
        (error_body("disk_failed"), 503, GatewayConnectionError),
    ):
        fake.on("POST /prompt_sync", answer(body, status))
        with pytest.raises(expected):
            await sdk_client.submit(WORKFLOW)
    assert len(fake.asked) == 3
    async with GatewayClient(f"127.0.0.1:{free_port()}", reconnect_delays_s=(600,)) as nowhere:
        with pytest.raises(GatewayConnectionError, match="Connection refused"):
            await nowhere.submit(WORKFLOW)


async def test_a_job_has_the_progress_that_the_gateway_reports(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    progress = {"overall": 0.25, "node": "3", "title": "KSampler", "value": 5, "max": 20}
    fake.on("GET /prompt_sync", pending("running", position=None, started_at=CREATED, progress=progress))
    job = await sdk_client.job(PROMPT_ID)
    assert (job.status, job.position, job.ended) == ("running", None, False)
    assert job.progress == JobProgress(0.25, "3", "KSampler", 5, 20)
    assert job.started_at == job.created_at
    assert dict(fake.asked[0].query) == {"timeout": "0"}


@pytest.mark.parametrize(
    ("kind", "http_status", "status", "expected"),
    [
        ("task_failed", 500, "failed", GatewayTaskError),
        ("validation_failed", 400, "failed", GatewayRefusedError),
        ("timeout", 504, "failed", GatewayTimeoutError),
        ("connection_failed", 503, "failed", GatewayConnectionError),
        ("task_cancelled", 409, "canceled", GatewayCancelledError),
        ("prompt_lost", 502, "lost", GatewayTaskError),
    ],
)
async def test_the_error_of_a_job_is_distinguished_from_an_error_of_the_request(
    fake: FakeGateway,
    sdk_client: GatewayClient,
    kind: str,
    http_status: int,
    status: JobStatus,
    expected: type[GatewayError],
) -> None:
    fake.on("GET /prompt_sync", ended(kind, http_status, status))
    job = await sdk_client.job(PROMPT_ID)
    assert (job.prompt_id, job.status, job.ended, job.result) == (PROMPT_ID, status, True, None)
    assert type(job.error) is expected
    for call in (sdk_client.result(PROMPT_ID), sdk_client.wait(PROMPT_ID)):
        with pytest.raises(expected) as caught:
            await call
        assert (caught.value.type, caught.value.job_status) == (kind, status)
    fake.on("GET /prompt_sync", answer(error_body(kind), http_status))
    with pytest.raises(expected) as caught:
        await sdk_client.job(PROMPT_ID)
    assert (caught.value.job_status, caught.value.prompt_id) == (None, PROMPT_ID)


async def test_the_result_of_an_unfinished_job_is_refused_with_its_status(
    fake: FakeGateway, sdk_client: GatewayClient
) -> None:
    fake.on("GET /prompt_sync", pending(), answer(result_body(entry())))
    with pytest.raises(GatewayNotFinishedError, match="queued, position 3"):
        await sdk_client.result(PROMPT_ID)
    assert (await sdk_client.result(PROMPT_ID)).files[0].filename == "a_00001_.png"


async def test_jobs_are_read_from_as_many_pages_as_needed(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    failure = {"type": "task_failed", "detail": "no memory"}
    first = answer({"jobs": [listed_job(1), listed_job(2)], "next_cursor": "c"})
    second = answer({"jobs": [listed_job(3, status="failed", error=failure, labels={"a": "b"})]})
    fake.on("GET /prompt_sync", first, second)
    found = [job async for job in sdk_client.jobs(["failed", "succeeded"], labels={"a": "b"}, workflow="w", limit=201)]
    assert [job.prompt_id for job in found] == [str(uuid.UUID(int=number)) for number in (1, 2, 3)]
    last = found[-1]
    assert (last.status, last.labels, last.server, last.ended) == ("failed", {"a": "b"}, "gpu-1", True)
    assert isinstance(last.error, GatewayTaskError)
    assert (last.error.detail, last.error.job_status) == ("no memory", "failed")
    narrowed = {"status": "failed,succeeded", "label.a": "b", "workflow": "w"}
    assert [dict(asked.query) for asked in fake.asked] == [
        {**narrowed, "limit": "200"},
        {**narrowed, "limit": "199", "cursor": "c"},
    ]
    with pytest.raises(ValueError, match="limit must be 1 or more"):
        await anext(sdk_client.jobs(limit=0))


@pytest.mark.parametrize(
    "body",
    [{}, {"jobs": 1}, {"jobs": [{}]}, {"jobs": [listed_job(1, status="done")]}, {"jobs": [], "next_cursor": 4}],
)
async def test_a_malformed_list_of_jobs_raises_a_readable_error(
    fake: FakeGateway, sdk_client: GatewayClient, body: object
) -> None:
    fake.on("GET /prompt_sync", answer(body))
    with pytest.raises(GatewayProtocolError, match="not a job of the gateway"):
        await anext(sdk_client.jobs())


async def test_wait_survives_every_temporary_failure(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    """After each stream that ended without a result, the client asks for the job's state."""
    timeout = b"event: error\ndata: " + json.dumps(error_body("timeout")).encode() + b"\n\n"
    fake.on(
        "GET /prompt_sync",
        *(event_stream(sse("queued", position=1)), pending()),
        *(answer(error_body("overloaded"), 429), pending()),
        *(page(502, "<h1>Bad Gateway</h1>"), page(503, "<h1>Starting</h1>")),
        *(event_stream(timeout), pending("running")),
        answer(result_body(entry())),
    )
    events: list[Event] = []
    result = await sdk_client.wait(PROMPT_ID, show=events.append)
    assert result.files[0].filename == "a_00001_.png"
    # The last stream ended because the gateway's own time limit was reached: no connection was lost.
    assert len([event for event in events if isinstance(event, Reconnecting)]) == 3
    assert [asked.query.get("timeout") for asked in fake.asked] == [None, "0"] * 4 + [None]


async def test_wait_checks_the_job_before_it_believes_an_error_of_a_stream(
    fake: FakeGateway, sdk_client: GatewayClient
) -> None:
    broken = b"event: error\ndata: " + json.dumps(error_body("shutting_down")).encode() + b"\n\n"
    fake.on("GET /prompt_sync", event_stream(broken), answer(result_body(entry())))
    assert (await sdk_client.wait(PROMPT_ID)).prompt_id == PROMPT_ID


async def test_wait_ends_at_once_for_an_unknown_job(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    fake.on("GET /prompt_sync", answer(error_body("not_found"), 404))
    with pytest.raises(GatewayRefusedError) as caught:
        await sdk_client.wait(PROMPT_ID)
    assert (caught.value.type, caught.value.prompt_id) == ("not_found", PROMPT_ID)
    assert len(fake.asked) == 2


async def test_wait_ends_when_its_timeout_is_over(fake: FakeGateway) -> None:
    async def waits(request: web.Request) -> web.StreamResponse:
        return await (pending("running") if "timeout" in request.query else hang)(request)

    fake.on("GET /prompt_sync", waits)
    async with GatewayClient(fake.url) as client:
        with pytest.raises(GatewayTimeoutError, match="goes on") as caught:
            await client.wait(PROMPT_ID, timeout_s=0.2)
    assert (caught.value.type, caught.value.prompt_id, caught.value.job_status) == ("not_finished", PROMPT_ID, None)
    async with GatewayClient(f"127.0.0.1:{free_port()}", reconnect_delays_s=(0.01,)) as nowhere:
        with pytest.raises(GatewayConnectionError, match="Connection refused"):
            await nowhere.wait(PROMPT_ID, timeout_s=0.2)


# --- the command line -----------------------------------------------------------------------------------------------


async def run(capsys: pytest.CaptureFixture[str], fake: FakeGateway, *arguments: str) -> Ran:
    return await cli_here(capsys, *arguments, "--server", fake.url)


async def test_submit_prints_only_the_id(fake: FakeGateway, workflow_file: str, tmp_path: Path) -> None:
    fake.on("POST /prompt_sync", pending())
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"\x00\xff")
    ran = await cli(
        *("submit", workflow_file, "--server", fake.url, "--label", "order=7", "--label", "note=a=b"),
        *("--priority", "3", "--webhook", "https://a.example/b"),
        *("--id", PROMPT_ID.upper(), "--set", "1.filename_prefix=b", "--image", f"photo.png={photo}", "--wait", "9"),
    )
    assert (ran.code, ran.out) == (Exit.OK, f"{PROMPT_ID}\n"), ran.err
    assert ran.err == "queued, position 3\n"
    [asked] = fake.asked
    posted = asked.json()
    assert posted["prompt"]["1"]["inputs"] == {"filename_prefix": "b"}
    assert (posted["prompt_id"], posted["labels"], posted["priority"]) == (PROMPT_ID, {"order": "7", "note": "a=b"}, 3)
    assert posted["images"] == [{"name": "photo.png", "image": "AP8=", "subfolder": ""}]
    assert posted["webhook"] == {"url": "https://a.example/b"}
    assert asked.headers["Prefer"] == "respond-async, wait=9"


@pytest.mark.parametrize(
    ("answered", "expected", "out", "told"),
    [
        (pending(stored=False), Exit.OK, f"{PROMPT_ID}\n", "STATE_DIR"),
        (answer(result_body(), headers={"X-Prompt-Status": "succeeded"}), Exit.OK, f"{PROMPT_ID}\n", "succeeded"),
        (ended("task_failed", 500, "failed"), Exit.FAILED, f"{PROMPT_ID}\n", "it is task_failed"),
        (ended("task_cancelled", 409, "canceled"), Exit.CANCELLED, f"{PROMPT_ID}\n", "it is task_cancelled"),
        (answer(error_body("invalid_request"), 422), Exit.REFUSED, "", "it is invalid_request"),
        (answer(error_body("overloaded"), 429), Exit.OVERLOADED, "", "it is overloaded"),
    ],
)
async def test_submit_prints_an_id_only_if_the_job_exists(
    fake: FakeGateway,
    workflow_file: str,
    capsys: pytest.CaptureFixture[str],
    answered: Answer,
    expected: Exit,
    out: str,
    told: str,
) -> None:
    fake.on("POST /prompt_sync", answered)
    ran = await run(capsys, fake, "submit", workflow_file)
    assert (ran.code, ran.out) == (expected, out)
    assert told in ran.err


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        (pending(), Exit.NOT_FINISHED),
        (ended("task_failed", 500, "failed"), Exit.FAILED),
        (ended("validation_failed", 400, "failed"), Exit.FAILED),
        (ended("connection_failed", 503, "failed"), Exit.FAILED),
        (ended("timeout", 504, "failed"), Exit.FAILED),
        (ended("prompt_lost", 502, "lost"), Exit.FAILED),
        (ended("task_cancelled", 409, "canceled"), Exit.CANCELLED),
        (answer(error_body("not_found"), 404), Exit.UNKNOWN),
        (answer(error_body("unauthorized"), 401), Exit.REFUSED),
        (answer(error_body("connection_failed"), 503), Exit.UNREACHABLE),
        (page(404, "<h1>Nothing here</h1>"), Exit.UNEXPECTED),
    ],
)
async def test_the_exit_code_of_result_tells_the_status_of_the_job(
    fake: FakeGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str], answered: Answer, expected: Exit
) -> None:
    fake.on("GET /prompt_sync", answered)
    ran = await run(capsys, fake, "result", PROMPT_ID, "--output", str(tmp_path), "--json")
    assert ran.code == expected, ran.err
    assert ran.json()["prompt_id"] == PROMPT_ID
    assert ran.json()["detail"] in ran.err


@pytest.mark.parametrize("command", ["wait", "result"])
async def test_wait_and_result_save_the_files_of_a_job(
    fake: FakeGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    streamed = event_stream(
        sse("queued", position=3), sse("executing", node="1", title="Save it"), sse("result", **result_body(entry()))
    )
    fake.on("GET /prompt_sync", streamed if command == "wait" else answer(result_body(entry())))
    fake.on("GET /view", file_answer(PICTURE))
    ran = await run(capsys, fake, command, PROMPT_ID, "--output", str(tmp_path))
    assert ran.code == Exit.OK, ran.err
    assert str(tmp_path / "a_00001_.png") in ran.out
    assert (tmp_path / "a_00001_.png").read_bytes() == PICTURE


async def test_wait_exits_as_timed_out_when_its_timeout_is_over(
    fake: FakeGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.on("GET /prompt_sync", answer(error_body("timeout"), 504), pending("running"))
    ran = await run(capsys, fake, "wait", PROMPT_ID, "--timeout", "0.1", "--output", str(tmp_path))
    assert ran.code == Exit.TIMED_OUT
    assert "it goes on" in ran.err


@pytest.mark.parametrize("command", ["wait", "submit"])
async def test_ctrl_c_cancels_no_job(fake: FakeGateway, workflow_file: str, tmp_path: Path, command: str) -> None:
    fake.on("GET /prompt_sync", hang)
    fake.on("POST /prompt_sync", hang)
    options = (
        ("wait", PROMPT_ID, "--output", str(tmp_path))
        if command == "wait"
        else ("submit", workflow_file, "--id", PROMPT_ID)
    )
    process = await start(*options, "--server", fake.url)
    await fake.arrived.wait()
    process.send_signal(signal.SIGINT)
    ran = await finish(process)
    assert (ran.code, ran.out) == (Exit.INTERRUPTED, "")
    assert PROMPT_ID in ran.err
    assert "goes on" in ran.err or "may have accepted the job" in ran.err
    assert fake.asked_for("DELETE") == []


async def test_list_prints_a_table_or_a_json_document(fake: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    failure = {"type": "task_failed", "detail": "no memory\n\x1b[2J " + "x" * 500}
    entries = [listed_job(1, labels={"order": "7"}), listed_job(2, status="failed", error=failure), listed_job(3)]
    fake.on("GET /prompt_sync", answer({"jobs": entries}))
    ran = await run(capsys, fake, "list", "--limit", "2", "--status", "failed, succeeded", "--label", "order=7")
    assert ran.code == Exit.OK, ran.err
    rows = [line for line in ran.out.splitlines() if "00000000" in line]
    assert len(rows) == 2
    for told in ("succeeded", "0.0 s", "order=7"):
        assert told in rows[0]
    assert "task_failed: no memory" in rows[1]
    assert "\x1b[2J" not in ran.out
    assert "more than 2" in ran.err
    assert dict(fake.asked[0].query) == {"limit": "3", "status": "failed,succeeded", "label.order": "7"}
    assert (await run(capsys, fake, "list", "--json")).json() == {"jobs": entries}
    fake.on("GET /prompt_sync", answer({"jobs": []}))
    assert "no such jobs" in (await run(capsys, fake, "list")).out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["submit"], "WORKFLOW"),
        (["submit", "w.json", "--label", "order"], "'order': expected KEY=VALUE"),
        (["submit", "w.json", "--id", "7"], "'7' is not a UUID"),
        (["submit", "w.json", "--priority", "high"], "--priority"),
        (["submit", "w.json", "--wait", "-1"], "not a number of seconds above 0"),
        (["list", "--status", "done"], "there is no status 'done'; the statuses are queued, running"),
        (["list", "--limit", "0"], "'0' is not a whole number of at least 1"),
        (["list", "--label", "a=1", "--label", "a=2"], "--label a must not be given twice"),
        (["wait", "nonsense"], "'nonsense' is not a UUID"),
        (["wait", PROMPT_ID, "--timeout", "0"], "not a number of seconds above 0"),
        (["result"], "PROMPT_ID"),
    ],
)
def test_a_wrong_command_line_for_jobs_is_refused_with_a_hint(
    arguments: Sequence[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == Exit.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err
