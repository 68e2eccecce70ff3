"""The client library and its command line, against a server with prepared answers."""

from __future__ import annotations

import base64
import json
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import client
import comfyui.sdk
from comfyui.sdk import (
    Executing,
    Finished,
    GatewayCancelledError,
    GatewayClient,
    GatewayConnectionError,
    GatewayError,
    GatewayOverloadedError,
    GatewayProtocolError,
    GatewayRefusedError,
    GatewayTaskError,
    GatewayTimeoutError,
    InputFile,
    OutputFile,
    Preview,
    Progress,
    Queued,
    Reconnecting,
    safe_folder,
    safe_name,
)
from comfyui.sdk.command_line import Exit, main
from tests.support.command_line import cli, cli_here, finish, start
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
    half_a_file,
    hang,
    page,
    result_body,
    sse,
)
from tests.support.ports import free_port

ROOT = Path(__file__).parents[3]
TXT2IMG = str(ROOT / "examples/txt2img.json")

# --- the library ----------------------------------------------------------------------------------------------------


async def test_run_posts_its_arguments_and_returns_a_typed_result(fake: FakeGateway) -> None:
    content = base64.b64encode(PICTURE).decode()
    fake.on("POST /prompt_sync", answer(result_body(entry(base64=content), entry("gone.png", error="gone"))))
    async with GatewayClient(f"{fake.url}/", "secret", timeout_s=7) as gateway:
        result = await gateway.run(
            WORKFLOW, images=[InputFile("in.png", b"\x00\xff", "sub")], prompt_id=PROMPT_ID, return_base64=True
        )
        chunks = [chunk async for chunk in gateway.download(result.files[0])]
        with pytest.raises(GatewayError, match="gone"):
            await anext(gateway.download(result.files[1]))

    [asked] = fake.asked
    assert asked.json() == {
        "prompt": WORKFLOW,
        "prompt_id": PROMPT_ID,
        "return_image_base64": True,
        "images": [{"name": "in.png", "image": "AP8=", "subfolder": "sub"}],
    }
    assert float(asked.query["timeout"]) == 7
    assert asked.headers["Authorization"] == "Bearer secret"
    assert (result.prompt_id, result.execution_time_s, result.timings.queued_s) == (PROMPT_ID, 1.5, 0.2)
    assert b"".join(chunks) == PICTURE


@pytest.mark.parametrize(("more", "nodes"), [({}, None), ({"nodes": {"3": 0.8}, "a_later_stage": {}}, {"3": 0.8})])
async def test_timings_of_older_and_newer_gateways_are_read(
    fake: FakeGateway, sdk_client: GatewayClient, more: dict[str, Any], nodes: Any
) -> None:
    body = result_body()
    fake.on("POST /prompt_sync", answer({**body, "timings": body["timings"] | more}))
    timings = (await sdk_client.run(WORKFLOW)).timings
    assert (timings.executing_s, timings.nodes) == (0.9, nodes)


async def test_run_gives_every_prompt_its_own_id(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    fake.on("POST /prompt_sync", answer(result_body()))
    await sdk_client.run(WORKFLOW)
    await sdk_client.run(WORKFLOW)
    first, second = (uuid.UUID(asked.json()["prompt_id"]) for asked in fake.asked)
    assert first != second


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "validation_failed", GatewayRefusedError),
        (404, "not_found", GatewayRefusedError),
        (409, "conflict", GatewayRefusedError),
        (409, "task_cancelled", GatewayCancelledError),
        (413, "too_large", GatewayRefusedError),
        (429, "overloaded", GatewayOverloadedError),
        (500, "task_failed", GatewayTaskError),
        (502, "prompt_lost", GatewayTaskError),
        (503, "connection_failed", GatewayConnectionError),
        (504, "timeout", GatewayTimeoutError),
    ],
)
async def test_an_error_body_becomes_the_exception_of_its_type(
    fake: FakeGateway, sdk_client: GatewayClient, status: int, kind: str, expected: type[GatewayError]
) -> None:
    body = error_body(kind, node_errors={"3": ["bad sampler"]})
    fake.on("POST /prompt_sync", answer(body, status, {"Retry-After": "5"}))
    with pytest.raises(GatewayError) as caught:
        await sdk_client.run(WORKFLOW, prompt_id=PROMPT_ID)
    error = caught.value
    assert type(error) is expected
    assert (error.type, error.status, error.detail, error.request_id) == (kind, status, f"it is {kind}", "r-1")
    assert (error.prompt_id, error.node_errors, error.retry_after_s) == (PROMPT_ID, {"3": ["bad sampler"]}, 5)

    fake.on("POST /prompt_sync", event_stream(b"event: error\ndata: " + json.dumps(body).encode() + b"\n\n"))
    if kind != "too_large":  # refused before a stream begins
        with pytest.raises(expected):
            [event async for event in sdk_client.stream(WORKFLOW)]


async def test_stream_yields_typed_events_and_skips_unknown_and_broken_ones(
    fake: FakeGateway, sdk_client: GatewayClient
) -> None:
    fake.on(
        "POST /prompt_sync",
        event_stream(
            b": keep-alive\n\n",
            sse("queued", position=2),
            sse("something_new", x=1),
            sse("executing", node="3", title="", class_type="KSampler"),
            sse("progress", node="3", value=5, max=20, overall=0.25) + b"event: progress\ndata: broken\n\n",
            sse("preview", content_type="image/jpeg", image=base64.b64encode(b"JPEG").decode()),
            sse("result", **result_body(entry())),
        ),
    )
    *events, last = [event async for event in sdk_client.stream(WORKFLOW, previews=True)]
    assert events == [
        Queued(PROMPT_ID, 2),
        Executing(PROMPT_ID, "3", "KSampler", "KSampler"),
        Progress(PROMPT_ID, "3", 5, 20, 0.25),
        Preview(PROMPT_ID, "image/jpeg", b"JPEG"),
    ]
    assert isinstance(last, Finished)
    assert last.result.files[0].filename == "a_00001_.png"
    assert fake.asked[0].headers["Accept"].startswith("text/event-stream")
    assert fake.asked[0].query["previews"] == "true"


async def test_stream_reads_events_that_are_cut_anywhere_and_larger_than_its_buffers(
    fake: FakeGateway, sdk_client: GatewayClient
) -> None:
    body = result_body(entry(base64=base64.b64encode(PICTURE * 4).decode()), entry("übergröße.png"))
    data = f"event: result\r\ndata: {json.dumps(body, ensure_ascii=False)}\r\n\r\n".encode()
    inside_a_character = data.rindex("ö".encode()) + 1
    fake.on("POST /prompt_sync", event_stream(data[:9], data[9:inside_a_character], data[inside_a_character:]))
    [finished] = [event async for event in sdk_client.stream(WORKFLOW)]
    assert isinstance(finished, Finished)
    assert finished.result.body == body


async def test_stream_accepts_a_plain_json_answer(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    fake.on("POST /prompt_sync", answer(result_body(entry())))
    [finished] = [event async for event in sdk_client.stream(WORKFLOW)]
    assert isinstance(finished, Finished)


@pytest.mark.parametrize(
    "broken",
    [
        cut,
        event_stream(sse("queued", position=1)),
        page(504, "<html><head><title>504 Gateway Time-out</title></head></html>"),
        page(502, "<html>Bad Gateway</html>"),
        answer(error_body("shutting_down", prompt_id=PROMPT_ID), 503),
    ],
    ids=["connection reset", "stream ends early", "proxy timeout", "proxy lost it", "gateway restarts"],
)
async def test_stream_attaches_again_after_a_lost_connection(
    fake: FakeGateway, sdk_client: GatewayClient, broken: Answer
) -> None:
    fake.on("POST /prompt_sync", broken)
    lost = [cut, cut]  # aiohttp itself sends a GET a second time
    fake.on("GET /prompt_sync", *lost, answer(error_body("connection_failed"), 503), answer(result_body(entry())))
    events = [event async for event in sdk_client.stream(WORKFLOW, prompt_id=PROMPT_ID, return_base64=True)]
    assert [event.attempt for event in events if isinstance(event, Reconnecting)] == [1, 2, 3]
    assert isinstance(events[-1], Finished)
    assert len(fake.asked_for("POST")) == 1
    for asked in fake.asked_for("GET"):
        assert asked.path == f"/prompt_sync/{PROMPT_ID}"
        assert asked.query["return_image_base64"] == "true"
        assert 0 < float(asked.query["timeout"]) <= 30


@pytest.mark.parametrize(("status", "kind"), [(404, "not_found"), (409, "task_cancelled")])
async def test_a_prompt_that_a_lost_connection_ended_is_posted_again_under_its_id(
    fake: FakeGateway, sdk_client: GatewayClient, status: int, kind: str
) -> None:
    fake.on("POST /prompt_sync", cut, answer(result_body()))
    fake.on("GET /prompt_sync", answer(error_body(kind), status))
    await sdk_client.run(WORKFLOW)
    first, second = fake.asked_for("POST")
    assert first.body == second.body


async def test_a_prompt_that_is_lost_twice_is_given_up(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    fake.on("POST /prompt_sync", cut)
    fake.on("GET /prompt_sync", answer(error_body("not_found"), 404))
    with pytest.raises(GatewayRefusedError):
        await sdk_client.run(WORKFLOW)
    assert len(fake.asked_for("POST")) == 2


async def test_stream_stops_attaching_again_after_the_set_number_of_attempts(
    fake: FakeGateway, sdk_client: GatewayClient
) -> None:
    fake.on("POST /prompt_sync", cut)
    fake.on("GET /prompt_sync", cut)
    events = sdk_client.stream(WORKFLOW, prompt_id=PROMPT_ID)
    for attempt in (1, 2, 3):
        event = await anext(events)
        assert isinstance(event, Reconnecting)
        assert event.attempt == attempt
    with pytest.raises(GatewayConnectionError) as caught:
        await anext(events)
    assert caught.value.prompt_id == PROMPT_ID
    assert len(fake.asked_for("POST")) == 1


async def test_a_gateway_that_cannot_be_reached_is_not_tried_again() -> None:
    async with GatewayClient(f"127.0.0.1:{free_port()}", reconnect_delays_s=(600,)) as gateway:
        with pytest.raises(GatewayConnectionError, match="Connection refused"):
            await gateway.run(WORKFLOW)


async def test_attach_and_cancel_name_the_prompt_in_their_path(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    fake.on("GET /prompt_sync", answer(result_body()))
    fake.on("DELETE /prompt_sync", answer({"prompt_id": PROMPT_ID, "status": "cancelled"}))
    assert (await sdk_client.attach(PROMPT_ID)).prompt_id == PROMPT_ID
    assert (await sdk_client.cancel(PROMPT_ID))["status"] == "cancelled"
    assert [asked.path for asked in fake.asked] == [f"/prompt_sync/{PROMPT_ID}"] * 2


async def test_health_returns_the_answer_of_an_unhealthy_gateway(fake: FakeGateway, sdk_client: GatewayClient) -> None:
    fake.on("GET /health", answer({"status": "unhealthy", "error": "no ComfyUI", "timestamp": 1}, 503))
    health = await sdk_client.health()
    assert (health.healthy, health.error) == (False, "no ComfyUI")


@pytest.mark.parametrize(
    ("wrong", "expected", "message"),
    [
        (page(404, "<h1>Not Found</h1>"), GatewayProtocolError, "not the gateway.*404 Not Found: Not Found"),
        (page(200, "<p>Log in</p>"), GatewayProtocolError, "not the gateway.*Log in"),
        (answer({"detail": "Not Found"}, 404), GatewayProtocolError, "not the gateway"),
        (answer({"prompt_id": "x"}), GatewayProtocolError, "not a result"),
        (answer(["x"]), GatewayProtocolError, "not the gateway"),
        (page(413, "<h1>Too large</h1>"), GatewayRefusedError, "proxy.*413"),
        (page(429, "<h1>Slow</h1>"), GatewayOverloadedError, "proxy.*429"),
        (page(308, "", {"Location": "https://elsewhere/"}), GatewayProtocolError, "redirects to https://elsewhere/"),
    ],
)
async def test_an_answer_that_is_not_the_gateways_raises_a_readable_error(
    fake: FakeGateway, sdk_client: GatewayClient, wrong: Answer, expected: type[GatewayError], message: str
) -> None:
    fake.on("POST /prompt_sync", wrong)
    with pytest.raises(GatewayError, match=message) as caught:
        await sdk_client.run(WORKFLOW)
    assert type(caught.value) is expected


async def test_a_plain_comfyui_at_the_address_is_named_in_the_error(
    fake: FakeGateway, sdk_client: GatewayClient
) -> None:
    fake.on("GET /system_stats", answer({"system": {"comfyui_version": "0.38.0"}, "devices": []}))
    with pytest.raises(GatewayProtocolError, match="is ComfyUI itself"):
        await sdk_client.run(WORKFLOW)
    with pytest.raises(GatewayProtocolError, match="is ComfyUI itself"):
        await sdk_client.health()


@pytest.mark.parametrize("server", ["ftp://x", "http://", "http://[::1", "http://h:99999"])
def test_an_invalid_address_is_refused(server: str) -> None:
    with pytest.raises(ValueError, match=r"address|IPv6|[Pp]ort"):
        GatewayClient(server)


# --- files ----------------------------------------------------------------------------------------------------------


def output_file(filename: str = "a_00001_.png", subfolder: str = "", **more: Any) -> OutputFile:
    return OutputFile.from_json(entry(filename, subfolder=subfolder) | more)


async def test_save_never_overwrites_a_file(fake: FakeGateway, sdk_client: GatewayClient, tmp_path: Path) -> None:
    fake.on("GET /view", file_answer(PICTURE))
    saved = [await sdk_client.save(output_file(), tmp_path) for _ in range(3)]
    assert [path.name for path in saved] == ["a_00001_.png", "a_00001_ (1).png", "a_00001_ (2).png"]
    assert all(path.read_bytes() == PICTURE for path in saved)


@pytest.mark.parametrize(
    ("subfolder", "place"),
    [
        ("0b0ce1c3-4c9f-4b7e-9d65-2b1a54c1a0f4", ""),
        ("0b0ce1c3-4c9f-4b7e-9d65-2b1a54c1a0f4/deep/er", "deep/er"),
        ("0b0ce1c3-4c9f-4b7e-9d65-2b1a54c1a0f4x", "0b0ce1c3-4c9f-4b7e-9d65-2b1a54c1a0f4x"),
        ("deep", "deep"),
    ],
)
async def test_a_file_is_saved_in_its_subfolder_without_the_id_of_its_server(
    fake: FakeGateway, sdk_client: GatewayClient, tmp_path: Path, subfolder: str, place: str
) -> None:
    fake.on("GET /view", file_answer(PICTURE))
    path = await sdk_client.save(output_file(subfolder=subfolder), tmp_path)
    assert path == tmp_path / place / "a_00001_.png"


async def test_save_tries_a_broken_download_again(fake: FakeGateway, sdk_client: GatewayClient, tmp_path: Path) -> None:
    fake.on("GET /view", half_a_file, cut, file_answer(PICTURE[:999]))
    path = await sdk_client.save(output_file(), tmp_path)
    assert path.read_bytes() == PICTURE[:999]


async def test_save_waits_for_a_gateway_that_is_restarted(fake: FakeGateway, tmp_path: Path) -> None:
    away = [answer(error_body("shutting_down"), 503), page(502, "502 Bad Gateway"), page(503, "starting")]
    fake.on("GET /view", *away, *away, half_a_file, file_answer(PICTURE))
    async with GatewayClient(fake.url, reconnect_delays_s=(0,) * 6) as client:
        path = await client.save(output_file(), tmp_path)
    assert path.read_bytes() == PICTURE


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (half_a_file, GatewayConnectionError),
        (answer(error_body("not_found"), 404), GatewayRefusedError),
        (page(404, "404: Not Found"), GatewayError),
    ],
)
async def test_a_file_that_cannot_be_saved_leaves_nothing_behind(
    fake: FakeGateway, sdk_client: GatewayClient, tmp_path: Path, broken: Answer, expected: type[GatewayError]
) -> None:
    fake.on("GET /view", broken)
    with pytest.raises(expected):
        await sdk_client.save(output_file(), tmp_path)
    assert not list(tmp_path.iterdir())


async def test_a_url_to_another_host_is_not_followed(sdk_client: GatewayClient, tmp_path: Path) -> None:
    with pytest.raises(GatewayProtocolError, match="not an address of the gateway"):
        await sdk_client.save(output_file(url="http://169.254.169.254/latest"), tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a_00001_.png", "a_00001_.png"),
        ("übergröße 1.png", "übergröße 1.png"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("..", "_file"),
        ("", "_file"),
        ("sub/", "_file"),
        (".bashrc", "bashrc"),
        ("a\x1b[2J\n.png", "a_[2J_.png"),
        ("C:evil?.png", "C_evil_.png"),
        ("con.txt", "con_file.txt"),
        ("a.png. .", "a.png"),
        ("ü" * 300 + ".png", "ü" * 98 + ".png"),
    ],
)
def test_a_name_from_the_server_becomes_a_plain_file_name(given: str, expected: str) -> None:
    assert safe_name(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", "."), ("a/b", "a/b"), ("../../x", "x"), ("/etc", "etc"), ("C:\\x\\..\\y", "C_/x/y"), ("./a//b/", "a/b")],
)
def test_a_subfolder_from_the_server_cannot_leave_the_output_folder(given: str, expected: str) -> None:
    assert safe_folder(given) == Path(expected)


# --- the command line -----------------------------------------------------------------------------------------------


async def test_run_saves_every_file_and_prints_its_path_and_size(
    fake: FakeGateway, workflow_file: str, tmp_path: Path
) -> None:
    fake.on(
        "POST /prompt_sync",
        event_stream(
            sse("queued", position=3),
            sse("executing", node="1", title="Save [bold]it", class_type="SaveImage"),
            sse("result", **result_body(entry(), entry("b.png", subfolder="../x"))),
        ),
    )
    fake.on("GET /view", file_answer(PICTURE))
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"\x00\xff")
    out = tmp_path / "out"
    ran = await cli(
        *("run", workflow_file, "--server", fake.url, "--output", str(out), "--timeout", "9"),
        *("--set", '1.filename_prefix={"a": [1, "x"]}', "--input", f"sub/photo.png={photo}"),
    )
    assert ran.code == Exit.OK, ran.err
    posted = fake.asked[0].json()
    assert posted["prompt"]["1"]["inputs"] == {"filename_prefix": {"a": [1, "x"]}}
    assert posted["images"] == [{"name": "photo.png", "image": "AP8=", "subfolder": "sub"}]
    assert float(fake.asked[0].query["timeout"]) == 9
    assert (out / "a_00001_.png").read_bytes() == (out / "x" / "b.png").read_bytes() == PICTURE
    for told in (str(out / "a_00001_.png"), str(out / "x" / "b.png"), "256.0 kB", "1 Save it", "executing 0.90"):
        assert told in ran.out
    assert "queued, position 3\nSave [bold]it (node 1)\n" in ran.err


async def test_run_with_json_prints_one_document_and_nothing_else(
    fake: FakeGateway, workflow_file: str, tmp_path: Path
) -> None:
    fake.on("POST /prompt_sync", answer(result_body(entry())))
    fake.on("GET /view", file_answer(PICTURE))
    ran = await cli("run", workflow_file, "--server", fake.url, "--output", str(tmp_path), "--json")
    path = str(tmp_path / "a_00001_.png")
    assert ran.json() == result_body(entry(path=path, size=len(PICTURE)))
    assert ran.code == Exit.OK


async def test_run_saves_the_available_files_of_a_partial_result_and_exits_as_failed(
    fake: FakeGateway, workflow_file: str, tmp_path: Path
) -> None:
    entries = [entry("gone.png", error="not there any more"), entry("b.png"), entry("c.png")]
    fake.on("POST /prompt_sync", answer(result_body(*entries)))
    fake.on("GET /view", page(404, "404: Not Found"), file_answer(PICTURE))
    ran = await cli("run", workflow_file, "--server", fake.url, "--output", str(tmp_path / "out"), "--json")
    assert ran.code == Exit.FAILED
    first, second, third = ran.json()["images"]
    assert first["error"] == "not there any more"
    assert "error" in second
    assert third["path"].endswith("c.png")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c.png"]


async def test_an_error_says_what_to_do_at_the_command_line(
    fake: FakeGateway, workflow_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.on("POST /prompt_sync", answer(error_body("unauthorized"), 401))
    refused = await cli_here(capsys, "submit", workflow_file, "--server", fake.url)
    assert (refused.code, refused.out) == (Exit.REFUSED, "")
    assert "set COMFYUI_GATEWAY_API_KEY to your key" in refused.err
    silent = await cli_here(capsys, "submit", workflow_file, "--server", f"http://127.0.0.1:{free_port()}")
    assert (silent.code, silent.out) == (Exit.UNREACHABLE, "")
    assert "start the gateway, or name its address with --server" in silent.err


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (answer(error_body("validation_failed", node_errors={"1": ["bad"]}), 400), Exit.REFUSED),
        (answer(error_body("conflict"), 409), Exit.REFUSED),
        (answer(error_body("body_too_large"), 413), Exit.REFUSED),
        (answer(error_body("task_failed"), 500), Exit.FAILED),
        (answer(error_body("task_cancelled"), 409), Exit.FAILED),
        (answer(error_body("timeout"), 504), Exit.TIMED_OUT),
        (answer(error_body("connection_failed"), 503), Exit.UNREACHABLE),
        (answer(error_body("overloaded"), 429), Exit.OVERLOADED),
        (page(404, "<h1>Nothing here</h1>"), Exit.UNEXPECTED),
    ],
)
async def test_every_failure_of_run_has_its_exit_code_and_a_json_document(
    fake: FakeGateway,
    workflow_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: Answer,
    expected: Exit,
) -> None:
    fake.on("POST /prompt_sync", wrong)
    ran = await cli_here(capsys, "run", workflow_file, "--server", fake.url, "--output", str(tmp_path), "--json")
    assert ran.code == expected, ran.err
    document = ran.json()
    assert document["error"]
    assert document["detail"] in ran.err
    assert document["prompt_id"] == str(uuid.UUID(document["prompt_id"]))
    assert all(message in ran.err for messages in document["node_errors"].values() for message in messages)


async def test_a_workflow_file_may_begin_with_a_bom_and_utf_16_is_refused_by_name(
    fake: FakeGateway, tmp_path: Path
) -> None:
    """Windows editors write both."""
    text = json.dumps(WORKFLOW)
    marked, wide = tmp_path / "marked.json", tmp_path / "wide.json"
    marked.write_text(text, encoding="utf-8-sig")
    wide.write_text(text, encoding="utf-16")
    result = json.dumps(result_body()).encode()
    fake.on("POST /prompt_sync", event_stream(b"event: result\ndata: " + result + b"\n\n"))
    assert (await cli("run", str(marked), "--server", fake.url, "--output", str(tmp_path / "out"))).code == Exit.OK
    assert fake.asked[0].json()["prompt"] == WORKFLOW
    refused = await cli("run", str(wide), "--server", fake.url)
    assert refused.code == Exit.USAGE
    assert "is in UTF-16; save it in UTF-8" in refused.err


def test_the_top_level_client_has_the_names_of_the_sdk() -> None:
    assert set(comfyui.sdk.__all__) <= set(vars(client))
    assert client.main is main


async def test_run_exits_as_unreachable_when_no_server_listens(workflow_file: str, tmp_path: Path) -> None:
    ran = await cli(
        "run", workflow_file, "--server", f"http://127.0.0.1:{free_port()}", "--output", str(tmp_path), "--json"
    )
    assert ran.code == Exit.UNREACHABLE
    assert ran.json()["type"] == "unreachable"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", TXT2IMG, "--set", "66.text=x"], "did you mean 6 (Positive prompt)?"),
        (["run", TXT2IMG, "--set", "6.txt=x"], "node 6 (Positive prompt) has no input 'txt'; did you mean text?"),
        (["run", TXT2IMG, "--set", "zz.text=x"], "the choices are 3 (KSampler), 4 (Load Checkpoint), 5"),
        (["run", TXT2IMG, "--set", "nonsense"], "expected NODE.INPUT=VALUE"),
        (["run", TXT2IMG, "--input", "photo.png"], "expected NAME=FILE"),
        (["run", TXT2IMG, "--input", "a.png=nowhere.png"], "No such file"),
        (["run", TXT2IMG, "--timeout", "0"], "not a number of seconds above 0"),
        (["run", TXT2IMG, "--output", TXT2IMG], "File exists"),
        (["run", "nowhere.json"], "No such file"),
        (["run", str(ROOT / "Makefile")], "is not JSON"),
        (["cancel", "nonsense"], "'nonsense' is not a UUID"),
        (["health", "--server", "ftp://x"], "not an http(s) address"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_a_wrong_command_line_is_refused_with_a_hint(
    arguments: Sequence[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == Exit.USAGE
    out, err = capsys.readouterr()
    assert expected in json.loads(out)["detail"]
    assert expected in err


async def test_a_workflow_in_the_editors_format_is_refused_with_the_way_to_export_it(tmp_path: Path) -> None:
    editor_format = tmp_path / "editor.json"
    editor_format.write_text('{"nodes": [], "links": []}')
    ran = await cli("run", str(editor_format))
    assert (ran.code, ran.out) == (Exit.USAGE, "")
    assert "Export (API)" in ran.err


async def test_ctrl_c_cancels_the_prompt(fake: FakeGateway, workflow_file: str, tmp_path: Path) -> None:
    fake.on("POST /prompt_sync", hang)
    fake.on("DELETE /prompt_sync", answer({"prompt_id": PROMPT_ID, "status": "cancelled"}))
    process = await start(
        *(
            "run",
            workflow_file,
            "--server",
            fake.url,
            "--output",
            str(tmp_path),
            "--prompt-id",
            PROMPT_ID.upper(),
            "--json",
        )
    )
    await fake.arrived.wait()
    process.send_signal(signal.SIGINT)
    ran = await finish(process)
    assert ran.code == Exit.INTERRUPTED
    assert [asked.path for asked in fake.asked_for("DELETE")] == [f"/prompt_sync/{PROMPT_ID}"]
    document = ran.json()
    assert (document["type"], document["prompt_id"]) == ("interrupted", PROMPT_ID)
    assert "was cancelled" in document["detail"]


async def test_status_leaves_out_unknown_values(fake: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    timeout = b"event: error\ndata: " + json.dumps(error_body("timeout")).encode() + b"\n\n"
    executing = sse("executing", node="3", title="KSampler", class_type="KSampler")
    fake.on("GET /prompt_sync", event_stream(sse("queued", position=None), executing, timeout))
    said = await cli_here(capsys, "status", PROMPT_ID, "--server", fake.url)
    assert said.out.strip() == "executing  node 3  title KSampler"


async def test_status_reports_the_progress_of_a_prompt(
    fake: FakeGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timeout = b"event: error\ndata: " + json.dumps(error_body("timeout")).encode() + b"\n\n"
    executing = sse("executing", node="3", title="KSampler", class_type="KSampler")
    fake.on(
        "GET /prompt_sync",
        event_stream(sse("queued", position=4), timeout),
        event_stream(executing, sse("progress", node="3", value=1, max=2, overall=0.5), timeout),
        answer(error_body("timeout"), 504),
        answer(error_body("task_failed"), 500),
        answer(error_body("not_found"), 404),
        answer(result_body(entry())),
    )
    fake.on("GET /view", file_answer(PICTURE))
    status = ("status", PROMPT_ID, "--server", fake.url, "--json")
    known = {"prompt_id": PROMPT_ID}
    assert (await cli_here(capsys, *status)).json() == known | {"status": "queued", "position": 4}
    assert (await cli_here(capsys, *status)).json() == known | {
        "status": "executing",
        "node": "3",
        "title": "KSampler",
        "overall": 0.5,
    }
    assert (await cli_here(capsys, *status)).json() == known | {"status": "waiting"}
    assert (await cli_here(capsys, *status)).code == Exit.FAILED
    assert (await cli_here(capsys, *status)).code == Exit.REFUSED
    done = await cli_here(capsys, *status, "--output", str(tmp_path))
    assert done.code == Exit.OK
    assert (tmp_path / "a_00001_.png").read_bytes() == PICTURE


async def test_health_and_status_without_an_id_report_on_the_gateway(
    fake: FakeGateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [{"server": "gpu-1", "reason": None, "drained": False}, {"server": "gpu-2", "state": "starting"}]
    healthy = {"status": "healthy", "simulation": True, "queue_running": 0, "queue_pending": 2, "servers": servers}
    fake.on("GET /health", answer(healthy), answer(healthy), answer({"status": "unhealthy", "error": "none"}, 503))
    monkeypatch.setenv("COMFYUI_GATEWAY_API_KEY", "from the environment")
    ran = await cli_here(capsys, "status", "--server", fake.url)
    assert ran.code == Exit.OK
    assert "simulation: yes\n" in ran.out
    assert ran.out.endswith("servers:\n  server gpu-1, drained no\n  server gpu-2, state starting\n")
    assert fake.asked[0].headers["Authorization"] == "Bearer from the environment"
    assert (await cli_here(capsys, "health", "--server", fake.url, "--json")).json() == healthy
    assert (await cli_here(capsys, "health", "--server", fake.url)).code == Exit.UNREACHABLE


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_options_of_all_commands_may_stand_before_and_behind_the_command(
    place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["workflows", "list"]
    arguments[place:place] = ["--server", f"http://127.0.0.1:{free_port()}"]
    assert main(["--json", *arguments] if place else [*arguments, "--json"]) == Exit.UNREACHABLE
    assert json.loads(capsys.readouterr().out)["type"] == "unreachable"


@pytest.mark.parametrize(
    "command", [[], *([name] for name in ("run", "submit", "list", "wait", "result", "status", "cancel", "health"))]
)
def test_the_help_of_each_command_names_every_exit_code(
    command: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == Exit.OK
    told = capsys.readouterr().out
    assert all(f"\n  {code.value:<4} " in told for code in Exit)
