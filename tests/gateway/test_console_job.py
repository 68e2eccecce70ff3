"""The page of one job in the console: each state, each visitor, hostile texts, and new jobs made from it."""

from __future__ import annotations

import asyncio
import base64
import html
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.engine_workflows import sleeping, txt2img
from tests.support.keys import ALICE, BOB, ROOT, WATCHER, bearer, table
from tests.support.named import write
from tests.support.named_folder import FLAT, FLAT_PARAMETERS, named_folder
from tests.support.receivers import SECRET, receiver
from tests.support.running import RunningGateway, invert_workflow, running_gateway, until
from tests.support.target import node
from tests.support.url_server import PNG

PNG_TEXT = base64.b64encode(PNG).decode()
EVIL = "<script>alert(1)</script>&\"'"


async def page_of(gateway: RunningGateway, prompt_id: str, key: str = "", *, status: int = 200) -> str:
    async with gateway.http.get(f"/console/jobs/{prompt_id}", headers=bearer(key) if key else {}) as answer:
        text = await answer.text()
        assert answer.status == status, text
        return text


async def send(
    gateway: RunningGateway, path: str, fields: dict[str, str] | None = None, *, key: str = "", status: int = 200
) -> Any:
    """Sends a form as a script of the page does."""
    headers = {"Origin": gateway.url, "Accept": "application/json", **(bearer(key) if key else {})}
    async with gateway.http.post(path, data=fields or {}, headers=headers) as answer:
        told = await answer.json()
        assert answer.status == status, told
        return told


async def submit(gateway: RunningGateway, prompt: dict[str, Any], *, key: str = "", **fields: Any) -> str:
    """Submits an async job and returns its id."""
    headers = {"Prefer": "respond-async", **(bearer(key) if key else {})}
    async with gateway.http.post("/prompt_sync", json={"prompt": prompt, **fields}, headers=headers) as answer:
        told = await answer.json()
        assert answer.status == 202, told
        return str(told["prompt_id"])


async def ended(gateway: RunningGateway, prompt_id: str) -> str:
    """Waits until the job has ended and returns its state."""

    async def state() -> str:
        record = await gateway.handler.journal.get(prompt_id)
        return "" if record is None or not record.state.is_end else record.state.value

    return await until(state, bool)


async def body_of(gateway: RunningGateway, prompt_id: str) -> str:
    return ((await gateway.handler.journal.body_of(prompt_id)) or b"").decode()


def text_of(page: str) -> str:
    """Returns the visible text of a page."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def new_id(told: Any) -> str:
    return str(told["to"].rpartition("/")[2])


async def test_the_page_of_a_succeeded_job_has_files_values_and_times(gateway: RunningGateway) -> None:
    prompt = txt2img(seed=77)
    prompt["3"]["_meta"] = {"title": "My sampler"}
    prompt_id = await submit(gateway, prompt, labels={"order": "1234"}, priority=3)
    assert await ended(gateway, prompt_id) == "succeeded"
    page = await page_of(gateway, prompt_id)
    text = text_of(page)
    for part in ("Succeeded", "Label order 1234", "Priority 3", "My sampler KSampler · 3", "seed 77", "a red fox"):
        assert part in text, part
    for part in ("files", "thumbs"):
        async with gateway.http.get(f"/console/{part}/{prompt_id}/0") as answer:
            assert answer.status == 200
            assert answer.content_type.startswith("image/")
        assert f'="../../console/{part}/{prompt_id}/0"' in page
    # Nodes are listed in the order in which they run: the sampler after its sources and before its consumers.
    values = text[text.index("Values by node") :]
    order = [values.index(title) for title in ("ckpt_name", "My sampler", "filename_prefix")]
    assert order == sorted(order)
    assert len(re.findall(r"<rect width=\"[\d.]+\"", page)) == len(prompt)


@pytest.mark.parametrize("path", ["", "/workflow", "/editor"])
async def test_the_page_of_an_unknown_job_is_404(gateway: RunningGateway, path: str) -> None:
    for prompt_id in (str(uuid4()), "x", "%00", "<b>", "9" * 5000):
        async with gateway.http.get(f"/console/jobs/{prompt_id}{path}") as answer:
            assert answer.status == 404
            assert "no such job" in await answer.text()


async def test_a_users_job_is_404_for_another_user_and_has_no_forms_for_a_read_key(
    engine: Engine, keys_path: Path
) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        prompt_id = await submit(gateway, txt2img(), key=ALICE)
        await ended(gateway, prompt_id)
        own = await page_of(gateway, prompt_id, ALICE)
        assert "Run again" in own
        assert "Owner" not in text_of(own)
        server = gateway.handler.pool.backends[0].name
        assert server not in text_of(own)
        assert server in text_of(await page_of(gateway, prompt_id, WATCHER))
        await page_of(gateway, prompt_id, BOB, status=404)
        for path in ("workflow", "editor"):
            async with gateway.http.get(f"/console/jobs/{prompt_id}/{path}", headers=bearer(BOB)) as answer:
                assert answer.status == 404
        for path in ("again", "changed", "webhook"):
            await send(gateway, f"/console/jobs/{prompt_id}/{path}", key=BOB, status=404)
            await send(gateway, f"/console/jobs/{prompt_id}/{path}", key=WATCHER, status=403)
        read = await page_of(gateway, prompt_id, WATCHER)
        assert "Owner alice" in text_of(read)
        assert "<form" not in read
        assert "belongs to you" in await page_of(gateway, prompt_id, ROOT)


async def test_texts_of_callers_are_escaped_on_the_page(gateway: RunningGateway) -> None:
    prompt = invert_workflow()
    prompt["1"]["_meta"] = {"title": EVIL}
    prompt["4"] = node("SimulatedError", exception_type="RuntimeError", message=EVIL, value=["2", 0])
    prompt["3"]["inputs"] = {"images": ["4", 0], "filename_prefix": EVIL}
    prompt_id = await submit(gateway, prompt, labels={"evil": EVIL})
    assert await ended(gateway, prompt_id) == "failed"
    page = await page_of(gateway, prompt_id)
    assert "<script>" not in page
    assert text_of(page).count(EVIL) >= 4


async def test_lone_surrogates_in_a_workflow_do_not_break_the_page(gateway: RunningGateway) -> None:
    prompt = invert_workflow()
    prompt["3"]["_meta"] = {"title": "a \ud800 b"}
    prompt_id = await submit(gateway, prompt)
    await ended(gateway, prompt_id)
    assert "a \ufffd b" in text_of(await page_of(gateway, prompt_id))


async def test_the_page_shows_the_node_and_the_end_of_the_traceback_of_an_error(gateway: RunningGateway) -> None:
    prompt = invert_workflow()
    prompt["4"] = node("SimulatedError", exception_type="ValueError", message="no such thing", value=["2", 0])
    prompt["3"]["inputs"]["images"] = ["4", 0]
    prompt_id = await submit(gateway, prompt)
    assert await ended(gateway, prompt_id) == "failed"
    text = text_of(await page_of(gateway, prompt_id))
    assert "ValueError in SimulatedError (node 4)" in text
    assert "no such thing" in text
    assert "End of the traceback" in text
    assert "task_failed" in text


async def test_pages_of_a_running_and_a_waiting_job_show_their_progress(gateway: RunningGateway) -> None:
    running = await submit(gateway, sleeping())
    await until(lambda: page_of(gateway, running), lambda page: 'data-state="running"' in page)
    waiting = await submit(gateway, sleeping(59))
    page = await until(lambda: page_of(gateway, waiting), lambda found: "Jobs before it: 1" in found)
    assert 'data-state="queued"' in page
    page = await page_of(gateway, running)
    assert "<progress" in page
    assert "Run again" not in page
    for prompt_id in (waiting, running):
        await gateway.handler.cancel(prompt_id)
        assert await ended(gateway, prompt_id) == "canceled"
        page = await page_of(gateway, prompt_id)
        assert 'data-state="canceled"' in page
        assert "Run again" in page


async def test_a_sync_call_has_a_page_while_it_runs_and_afterwards(gateway: RunningGateway, engine: Engine) -> None:
    chosen = str(uuid4())
    call = asyncio.create_task(gateway.prompt_sync(sleeping(), prompt_id=chosen))
    page = await until(lambda: page_or_none(gateway, chosen), lambda found: found is not None)
    assert page is not None
    assert "A caller waits for it" in text_of(page)
    assert "SimulatedSleep" in text_of(page)
    engine.wake(chosen)
    assert (await call)[0] == 200
    assert 'data-state="succeeded"' in await page_of(gateway, chosen)


async def page_or_none(gateway: RunningGateway, prompt_id: str) -> str | None:
    async with gateway.http.get(f"/console/jobs/{prompt_id}") as answer:
        text = await answer.text()
        return text if answer.status == 200 and "SimulatedSleep" in text else None


async def test_a_sync_call_whose_request_is_not_kept_cannot_run_again(gateway: RunningGateway) -> None:
    _, told = await gateway.prompt_sync(invert_workflow())
    prompt_id = told["prompt_id"]
    text = text_of(await page_of(gateway, prompt_id))
    assert "does not keep the request" in text
    assert "does not keep the workflow of this job" in text
    told = await send(gateway, f"/console/jobs/{prompt_id}/again", status=409)
    assert "does not keep the request" in told["message"]


async def test_a_prompt_that_only_comfyui_knows_has_a_page(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway, aiohttp.ClientSession(engine.url) as comfyui:
        async with comfyui.post("/prompt", json={"prompt": sleeping()}) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        text = text_of(await page_of(gateway, prompt_id))
        assert "was not sent through the gateway" in text
        assert "SimulatedSleep" in text
        engine.wake(prompt_id)
        text = await until(lambda: page_of(gateway, prompt_id), lambda page: 'data-state="succeeded"' in page)
        failing = {"1": node("SimulatedError", exception_type="OSError", message="gone", value=None)}
        failing["2"] = node("PreviewAny", source=["1", 0])
        async with comfyui.post("/prompt", json={"prompt": failing}) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        page = await until(lambda: page_of(gateway, prompt_id), lambda page: 'data-state="failed"' in page)
        assert "OSError in SimulatedError (node 1)" in text_of(page)


async def test_run_again_creates_a_new_job_with_the_same_request(gateway: RunningGateway) -> None:
    prompt_id = await submit(gateway, txt2img(seed=5), labels={"order": "7"}, priority=2, client_id="tab")
    await ended(gateway, prompt_id)
    told = await send(gateway, f"/console/jobs/{prompt_id}/again")
    assert told["follow"] is True
    again = new_id(told)
    assert again != prompt_id
    assert await ended(gateway, again) == "succeeded"
    record = await gateway.handler.journal.get(again)
    assert record is not None
    assert (record.labels, record.priority, record.client_id, record.face) == ({"order": "7"}, 2, None, "console")
    assert '"seed":5,' in await body_of(gateway, again)


async def test_run_with_new_seeds_changes_only_the_seeds(gateway: RunningGateway) -> None:
    prompt_id = await submit(gateway, txt2img(seed=5))
    await ended(gateway, prompt_id)
    assert "Run with new seeds" in await page_of(gateway, prompt_id)
    again = new_id(await send(gateway, f"/console/jobs/{prompt_id}/again", {"seeds": "new"}))
    before, after = await body_of(gateway, prompt_id), await body_of(gateway, again)
    assert '"seed":5,' not in after
    assert re.sub(r'"seed":\d+', "", before) == re.sub(r'"seed":\d+', "", after)


async def test_a_changed_run_differs_only_in_the_values_changed_in_the_form(gateway: RunningGateway) -> None:
    prompt = txt2img(text="one\r\ntwo", seed=2**64 - 1)
    prompt["3"]["inputs"]["denoise"] = 1e-07
    prompt_id = await submit(gateway, prompt)
    await ended(gateway, prompt_id)
    fields = form_of(await page_of(gateway, prompt_id))
    assert fields["steps"][1] == "3"
    sent = {name: value.replace("\n", "\r\n") for name, value in fields.values()}
    told = await send(gateway, f"/console/jobs/{prompt_id}/changed", sent, status=422)
    assert "Change at least one value" in told["message"]
    again = new_id(await send(gateway, f"/console/jobs/{prompt_id}/changed", {**sent, fields["steps"][0]: "4"}))
    before, after = await body_of(gateway, prompt_id), await body_of(gateway, again)
    assert after == before.replace('"steps":3', '"steps":4')
    told = await send(gateway, f"/console/jobs/{prompt_id}/changed", {**sent, fields["steps"][0]: "x"}, status=422)
    assert told["message"] == "KSampler (node 3), steps must be a number"


def form_of(page: str) -> dict[str, tuple[str, str]]:
    """Returns the name and the value of each field by its label; of equal labels the last one counts."""
    found = {}
    for name, label in re.findall(r'<label for="(v[\d-]+)">([^<]+)</label>', page):
        field = re.search(rf'<input id="{name}"[^>]* value="([^"]*)"', page)
        area = re.search(rf'<textarea id="{name}"[^>]*>\n?([^<]*)</textarea>', page)
        chosen = field or area
        if chosen is not None:
            found[html.unescape(label)] = (name, html.unescape(chosen[1]))
    return found


async def test_a_new_run_has_the_inputs_that_came_with_the_job(engine: Engine, tmp_path: Path) -> None:
    prompt = {"1": node("LoadImage", image="in.png"), "2": node("SaveImage", images=["1", 0], filename_prefix="x")}
    async with running_gateway(engine.url, state_dir=str(tmp_path), inputs_keep_days=1) as gateway:
        image = {"name": "in.png", "image": f"data:image/png;base64,{PNG_TEXT}"}
        prompt_id = await submit(gateway, prompt, images=[image])
        assert await ended(gateway, prompt_id) == "succeeded"
        inline = {**prompt, "1": node("LoadImage", image=image["image"])}
        other = await submit(gateway, inline)
        assert await ended(gateway, other) == "succeeded"
        for one in (prompt_id, other):
            again = new_id(await send(gateway, f"/console/jobs/{one}/again"))
            assert await ended(gateway, again) == "succeeded"


async def test_the_error_of_a_new_run_names_inputs_that_are_no_longer_kept(engine: Engine) -> None:
    prompt = {"1": node("LoadImage", image="in.png"), "2": node("SaveImage", images=["1", 0], filename_prefix="x")}
    async with running_gateway(engine.url) as gateway:
        prompt_id = await submit(gateway, prompt, images=[{"name": "in.png", "image": PNG_TEXT}])
        await ended(gateway, prompt_id)

        record = await gateway.handler.journal.get(prompt_id)
        assert record is not None

        async def kept() -> int:
            stored = gateway.handler.queue.files_of(record)
            assert stored is not None
            return sum(one.size for one in stored.kept.values())

        await until(kept, lambda size: not size)
        found = await send(gateway, f"/console/jobs/{prompt_id}/again", status=409)
        assert "no longer keeps" in found["message"]
        assert "in.png" in found["message"]


async def test_a_key_for_named_workflows_cannot_run_a_graph_again(engine: Engine, keys_path: Path) -> None:
    limited = table("alice", ALICE, workflows=["flat"], per_minute=3)
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        prompt_id = await submit(gateway, txt2img(), key=ALICE)
        await ended(gateway, prompt_id)
        keys_path.write_text(limited)
        page = await until(lambda: page_of(gateway, prompt_id, ALICE), lambda found: "/changed" not in found)
        assert 'data-state="succeeded"' in page
        told = await send(gateway, f"/console/jobs/{prompt_id}/again", key=ALICE, status=403)
        assert "named workflows only" in told["message"]
        await send(gateway, f"/console/jobs/{prompt_id}/changed", key=ALICE, status=403)
        # A refused run counts as a submission.
        for _ in range(2):
            await send(gateway, f"/console/jobs/{prompt_id}/again", key=ALICE, status=403)
        await send(gateway, f"/console/jobs/{prompt_id}/again", key=ALICE, status=429)


async def test_forms_sent_from_a_foreign_page_are_refused(gateway: RunningGateway) -> None:
    prompt_id = await submit(gateway, txt2img())
    await ended(gateway, prompt_id)
    for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        for path in ("again", "changed", "webhook"):
            async with gateway.http.post(f"/console/jobs/{prompt_id}/{path}", headers=headers) as answer:
                assert answer.status == 403


async def test_webhooks_are_shown_and_can_be_sent_again(engine: Engine) -> None:
    settings: dict[str, Any] = {
        "webhook_secret": SECRET,
        "public_url": "https://gw.example",
        "webhook_url_allow": ["127.0.0.0/8"],
    }
    async with receiver() as hook, running_gateway(engine.url, **settings) as gateway:
        url = hook.url("/hook?token=secret")
        prompt_id = await submit(gateway, invert_workflow(), webhook={"url": url})
        await hook.got(1)
        page = await until(lambda: page_of(gateway, prompt_id), lambda found: "Delivered" in found)
        assert "/hook" in page
        assert "token" not in page
        assert "The new job sends nothing" in page
        await send(gateway, f"/console/jobs/{prompt_id}/webhook")
        first, second = await hook.got(2)
        assert first.headers["webhook-id"] == second.headers["webhook-id"]


async def test_downloads_have_the_graph_and_the_workflow_of_the_editor(gateway: RunningGateway) -> None:
    drawn = {"id": "w", "nodes": [], "links": [], "version": 0.4}
    extra_data = {"extra_pnginfo": {"workflow": drawn}, "api_key_comfy_org": "secret-of-alice"}
    prompt = txt2img()
    prompt_id = await submit(gateway, prompt, extra_data=extra_data)
    await ended(gateway, prompt_id)
    async with gateway.http.get(f"/console/jobs/{prompt_id}/workflow") as answer:
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert await answer.json() == prompt
    async with gateway.http.get(f"/console/jobs/{prompt_id}/editor") as answer:
        assert await answer.json() == drawn
    page = await page_of(gateway, prompt_id)
    assert "secret-of-alice" not in page
    assert "key of comfy.org" in page


async def test_every_form_and_link_on_the_page_is_relative(gateway: RunningGateway) -> None:
    prompt_id = await submit(gateway, txt2img())
    await ended(gateway, prompt_id)
    page = await page_of(gateway, prompt_id)
    for target in re.findall(r'(?:href|action|src|data-workflow)="([^"]+)"', page):
        assert target.startswith(("../../", "#")), target
    assert not re.search(r"\sstyle=|\son\w+=", page)


async def test_a_graph_of_hundreds_of_nodes_is_shown_in_part(gateway: RunningGateway) -> None:
    prompt: dict[str, Any] = {"0": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}
    for number in range(1, 600):
        prompt[str(number)] = node("ImageInvert", image=[str(number - 1), 0])
    prompt["600"] = node("SaveImage", images=["599", 0], filename_prefix="long " * 5000)
    prompt_id = await submit(gateway, prompt)
    await ended(gateway, prompt_id)
    assert "Further nodes that are not shown: 101" in text_of(await page_of(gateway, prompt_id))


async def named_job(gateway: RunningGateway, **values: Any) -> str:
    async with gateway.http.post("/workflows/flat", json=values, headers={"Prefer": "respond-async"}) as answer:
        prompt_id = str((await answer.json())["prompt_id"])
    assert await ended(gateway, prompt_id) == "succeeded"
    return prompt_id


async def test_a_job_of_a_named_workflow_shows_its_parameters_and_runs_again(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, workflows_dir=named_folder(tmp_path)) as gateway:
        prompt_id = await named_job(gateway, width=9, prompt="named")
        page = await page_of(gateway, prompt_id)
        text = text_of(page)
        assert "Parameters seed" in text
        assert "width 9" in text
        assert f'href="../../console/run/flat?from={prompt_id}"' in page
        assert "/changed" not in page
        again = new_id(await send(gateway, f"/console/jobs/{prompt_id}/again"))
        assert await ended(gateway, again) == "succeeded"
        before, after = [await gateway.handler.journal.get(one) for one in (prompt_id, again)]
        assert before is not None
        assert after is not None
        assert (after.workflow_name, after.call) == ("flat", before.call)


async def test_a_key_for_named_workflows_runs_one_again_until_it_changes(
    engine: Engine, keys_path: Path, tmp_path: Path
) -> None:
    keys_path.write_text(table("alice", ALICE, workflows=["flat"]))
    folder = named_folder(tmp_path / "workflows")
    async with running_gateway(engine.url, keys_file=keys_path, workflows_dir=folder) as gateway:
        headers = {"Prefer": "respond-async", **bearer(ALICE)}
        async with gateway.http.post("/workflows/flat", json={"width": 9}, headers=headers) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        await ended(gateway, prompt_id)
        again = new_id(await send(gateway, f"/console/jobs/{prompt_id}/again", key=ALICE))
        assert await ended(gateway, again) == "succeeded"
        # New seeds need a graph, which this key may not send.
        told = await send(gateway, f"/console/jobs/{prompt_id}/again", {"seeds": "new"}, key=ALICE, status=403)
        assert "named workflows only" in told["message"]
        write(folder, "flat", FLAT, FLAT_PARAMETERS.replace('title = "Flat"', 'title = "Another"'))

        async def version() -> str:
            await gateway.app.running.named.renew()
            return gateway.app.running.named.get("flat").title

        await until(version, lambda title: title == "Another")
        told = await send(gateway, f"/console/jobs/{prompt_id}/again", key=ALICE, status=409)
        assert "has changed since" in told["message"]


async def test_the_page_lists_earlier_runs_and_says_when_the_job_was_deleted(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        prompt_id = str(uuid4())
        await submit(gateway, sleeping(61.0), prompt_id=prompt_id)
        await until(lambda: page_of(gateway, prompt_id), lambda page: 'data-state="running"' in page)
        await gateway.handler.cancel(prompt_id)
        assert await ended(gateway, prompt_id) == "canceled"
        await submit(gateway, sleeping(61.0), prompt_id=prompt_id)
        page = await until(lambda: page_of(gateway, prompt_id), lambda page: 'data-state="running"' in page)
        runs = text_of(page[page.index('id="runs"') :])
        assert "1 Cancelled" in runs
        engine.wake(prompt_id)
        await ended(gateway, prompt_id)
        async with gateway.http.post("/history", json={"delete": [prompt_id]}) as answer:
            assert answer.status == 200
        assert "deleted from ComfyUI" in await page_of(gateway, prompt_id)


async def test_a_runpod_job_has_a_page(
    comfyui_and_runpod: tuple[RunningGateway, RunningGateway, Engine],
) -> None:
    _, runpod_gateway, _ = comfyui_and_runpod
    prompt_id = await submit(runpod_gateway, invert_workflow())
    assert await ended(runpod_gateway, prompt_id) == "succeeded"
    page = await page_of(runpod_gateway, prompt_id)
    assert "Server runpod" in text_of(page)
    async with runpod_gateway.http.get(f"/console/files/{prompt_id}/0") as answer:
        assert answer.status == 200
        assert answer.content_type == "image/png"
    again = new_id(await send(runpod_gateway, f"/console/jobs/{prompt_id}/again"))
    assert await ended(runpod_gateway, again) == "succeeded"


async def test_no_page_shows_secrets_from_the_addresses_of_inputs(gateway: RunningGateway) -> None:
    address = "http://user:pass-word@127.0.0.1:9/in.png?token=sec-ret#frag"
    prompt = {"1": node("LoadImage", image=address), "2": node("SaveImage", images=["1", 0], filename_prefix="x")}
    prompt_id = await submit(gateway, prompt)
    assert await ended(gateway, prompt_id) == "failed"
    page = await page_of(gateway, prompt_id)
    async with gateway.http.get(f"/console/jobs/{prompt_id}/workflow") as answer:
        page += await answer.text()
    assert "/in.png" in page
    for secret in ("pass-word", "sec-ret", "frag"):
        assert secret not in page
