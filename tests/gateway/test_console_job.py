"""The console's page of one job: in every state, for each visitor, with hostile texts; and its new jobs."""

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
    """As a module of the page sends a form."""
    headers = {"Origin": gateway.url, "Accept": "application/json", **(bearer(key) if key else {})}
    async with gateway.http.post(path, data=fields or {}, headers=headers) as answer:
        told = await answer.json()
        assert answer.status == status, told
        return told


async def submit(gateway: RunningGateway, prompt: dict[str, Any], *, key: str = "", **fields: Any) -> str:
    """An async job; its id."""
    headers = {"Prefer": "respond-async", **(bearer(key) if key else {})}
    async with gateway.http.post("/prompt_sync", json={"prompt": prompt, **fields}, headers=headers) as answer:
        told = await answer.json()
        assert answer.status == 202, told
        return str(told["prompt_id"])


async def ended(gateway: RunningGateway, prompt_id: str) -> str:
    """How the job ended."""

    async def state() -> str:
        record = await gateway.handler.journal.get(prompt_id)
        return "" if record is None or not record.state.is_end else record.state.value

    return await until(state, bool)


async def body_of(gateway: RunningGateway, prompt_id: str) -> str:
    return ((await gateway.handler.journal.body_of(prompt_id)) or b"").decode()


def text_of(page: str) -> str:
    """What a person reads."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def new_id(told: Any) -> str:
    return str(told["to"].rpartition("/")[2])


async def test_a_job_that_succeeded_has_files_values_and_times(gateway: RunningGateway) -> None:
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
    # In the order in which they run: the sampler comes before what it feeds, and behind what feeds it.
    values = text[text.index("Values by node") :]
    order = [values.index(title) for title in ("ckpt_name", "My sampler", "filename_prefix")]
    assert order == sorted(order)
    assert len(re.findall(r"<rect width=\"[\d.]+\"", page)) == len(prompt)


@pytest.mark.parametrize("path", ["", "/workflow", "/editor"])
async def test_no_job_is_404(gateway: RunningGateway, path: str) -> None:
    for prompt_id in (str(uuid4()), "x", "%00", "<b>", "9" * 5000):
        async with gateway.http.get(f"/console/jobs/{prompt_id}{path}") as answer:
            assert answer.status == 404
            assert "no such job" in await answer.text()


async def test_a_job_of_another_is_404_for_a_user_and_no_form_is_there_for_who_only_reads(
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


async def test_what_callers_wrote_is_text_on_the_page(gateway: RunningGateway) -> None:
    prompt = invert_workflow()
    prompt["1"]["_meta"] = {"title": EVIL}
    prompt["4"] = node("SimulatedError", exception_type="RuntimeError", message=EVIL, value=["2", 0])
    prompt["3"]["inputs"] = {"images": ["4", 0], "filename_prefix": EVIL}
    prompt_id = await submit(gateway, prompt, labels={"evil": EVIL})
    assert await ended(gateway, prompt_id) == "failed"
    page = await page_of(gateway, prompt_id)
    assert "<script>" not in page
    assert text_of(page).count(EVIL) >= 4


async def test_lone_surrogates_of_a_workflow_break_no_page(gateway: RunningGateway) -> None:
    prompt = invert_workflow()
    prompt["3"]["_meta"] = {"title": "a \ud800 b"}
    prompt_id = await submit(gateway, prompt)
    await ended(gateway, prompt_id)
    assert "a \ufffd b" in text_of(await page_of(gateway, prompt_id))


async def test_an_error_has_its_node_and_the_end_of_its_traceback(gateway: RunningGateway) -> None:
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


async def test_a_job_that_runs_and_one_that_waits_say_how_far_they_are(gateway: RunningGateway) -> None:
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


async def test_a_sync_call_is_shown_while_it_runs_and_after(gateway: RunningGateway, engine: Engine) -> None:
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
    assert "workflow of this job is not kept" in text
    told = await send(gateway, f"/console/jobs/{prompt_id}/again", status=409)
    assert "does not keep the request" in told["message"]


async def test_a_prompt_that_only_comfyui_knows_has_a_page(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway, aiohttp.ClientSession(engine.url) as comfyui:
        async with comfyui.post("/prompt", json={"prompt": sleeping()}) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        text = text_of(await page_of(gateway, prompt_id))
        assert "did not take this prompt" in text
        assert "SimulatedSleep" in text
        engine.wake(prompt_id)
        text = await until(lambda: page_of(gateway, prompt_id), lambda page: 'data-state="succeeded"' in page)
        failing = {"1": node("SimulatedError", exception_type="OSError", message="gone", value=None)}
        failing["2"] = node("PreviewAny", source=["1", 0])
        async with comfyui.post("/prompt", json={"prompt": failing}) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        page = await until(lambda: page_of(gateway, prompt_id), lambda page: 'data-state="failed"' in page)
        assert "OSError in SimulatedError (node 1)" in text_of(page)


async def test_run_again_makes_a_new_job_with_the_same_request(gateway: RunningGateway) -> None:
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


async def test_new_seeds_are_other_ones_and_all_else_stays(gateway: RunningGateway) -> None:
    prompt_id = await submit(gateway, txt2img(seed=5))
    await ended(gateway, prompt_id)
    assert "Run with new seeds" in await page_of(gateway, prompt_id)
    again = new_id(await send(gateway, f"/console/jobs/{prompt_id}/again", {"seeds": "new"}))
    before, after = await body_of(gateway, prompt_id), await body_of(gateway, again)
    assert '"seed":5,' not in after
    assert re.sub(r'"seed":\d+', "", before) == re.sub(r'"seed":\d+', "", after)


async def test_only_the_values_that_a_form_changes_change(gateway: RunningGateway) -> None:
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
    assert told["message"] == "KSampler (node 3), steps: a number is wanted"


def form_of(page: str) -> dict[str, tuple[str, str]]:
    """By the label of each field, the last of those with one label: its name and what a browser has in it."""
    found = {}
    for name, label in re.findall(r'<label for="(v[\d-]+)">([^<]+)</label>', page):
        field = re.search(rf'<input id="{name}"[^>]* value="([^"]*)"', page)
        area = re.search(rf'<textarea id="{name}"[^>]*>\n?([^<]*)</textarea>', page)
        chosen = field or area
        if chosen is not None:
            found[html.unescape(label)] = (name, html.unescape(chosen[1]))
    return found


async def test_inputs_that_came_with_a_job_come_with_the_new_one(engine: Engine, tmp_path: Path) -> None:
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


async def test_inputs_that_are_gone_are_named(engine: Engine) -> None:
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
        assert "does not keep" in found["message"]
        assert "in.png" in found["message"]


async def test_a_key_for_named_workflows_runs_no_graph_here_either(engine: Engine, keys_path: Path) -> None:
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
        # It counts as a submission.
        for _ in range(2):
            await send(gateway, f"/console/jobs/{prompt_id}/again", key=ALICE, status=403)
        await send(gateway, f"/console/jobs/{prompt_id}/again", key=ALICE, status=429)


async def test_a_change_that_no_page_of_ours_sends_is_refused(gateway: RunningGateway) -> None:
    prompt_id = await submit(gateway, txt2img())
    await ended(gateway, prompt_id)
    for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        for path in ("again", "changed", "webhook"):
            async with gateway.http.post(f"/console/jobs/{prompt_id}/{path}", headers=headers) as answer:
                assert answer.status == 403


async def test_webhooks_are_shown_and_sent_again(engine: Engine) -> None:
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


async def test_downloads_have_the_graph_and_the_editor_s_workflow(gateway: RunningGateway) -> None:
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


async def test_each_form_and_link_of_the_page_is_relative(gateway: RunningGateway) -> None:
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


async def test_a_named_workflow_s_job_has_its_parameters_and_runs_again(engine: Engine, tmp_path: Path) -> None:
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


async def test_a_key_for_named_workflows_runs_those_again_as_they_are_now(
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
        # Seeds are put into a graph, which this key may not send.
        told = await send(gateway, f"/console/jobs/{prompt_id}/again", {"seeds": "new"}, key=ALICE, status=403)
        assert "named workflows only" in told["message"]
        write(folder, "flat", FLAT, FLAT_PARAMETERS.replace('title = "Flat"', 'title = "Another"'))

        async def version() -> str:
            await gateway.app.running.named.renew()
            return gateway.app.running.named.get("flat").title

        await until(version, lambda title: title == "Another")
        told = await send(gateway, f"/console/jobs/{prompt_id}/again", key=ALICE, status=409)
        assert "has changed since" in told["message"]


async def test_earlier_runs_are_listed_and_a_job_that_was_deleted_says_so(engine: Engine) -> None:
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


async def test_a_job_of_runpod_has_a_page(
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


async def test_secrets_in_the_addresses_of_inputs_are_on_no_page(gateway: RunningGateway) -> None:
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
