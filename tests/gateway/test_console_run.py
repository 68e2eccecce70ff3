"""`/console/run`: forms of named workflows, sent over plain HTTP as a browser without scripts does."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from comfyui.engine import Engine
from tests.support.commands import printed_by
from tests.support.jobs import ASYNC
from tests.support.keys import ALICE, BOB, CAROL, DAVE, ROOT, WATCHER, bearer
from tests.support.named_folder import png
from tests.support.node import NODE
from tests.support.run_forms import LARGEST_SEED, changed, every_folder, form_of, post_form
from tests.support.running import RunningGateway, running_gateway, until


async def _page(gateway: RunningGateway, path: str, **asked: Any) -> str:
    async with gateway.http.get(path, **asked) as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def _used(gateway: RunningGateway, to: str, **asked: Any) -> dict[str, Any]:
    """Returns the parameters of the job whose id ends the path, once it has succeeded."""
    prompt_id = to.rpartition("/")[2]

    async def ask() -> Any:
        async with gateway.http.get(f"/prompt_sync/{prompt_id}?timeout=0", **asked) as response:
            return response.status, await response.json()

    status, body = await until(ask, lambda found: found[0] != 202)
    assert status == 200, body
    used: dict[str, Any] = body["workflow"]["parameters"]
    return used


# The list


async def test_the_list_shows_titles_and_why_a_workflow_cannot_be_used(run_forms: RunningGateway) -> None:
    text = await _page(run_forms, "/console/run")
    assert '<a href="../console/run/every">Every &lt;kind&gt;</a>' in text
    assert "Has a parameter of every kind." in text
    assert "77" in text  # the node that the sidecar of `broken` names
    assert 'href="../console/run/broken"' not in text


async def test_without_workflows_the_page_says_what_to_do(engine: Engine) -> None:
    async with running_gateway(engine.url, workflows_dir=None) as gateway:
        assert "WORKFLOWS_DIR" in await _page(gateway, "/console/run")


async def test_a_key_sees_only_the_workflows_it_may_run(run_keyed: RunningGateway) -> None:
    carol = bearer(CAROL)
    text = await _page(run_keyed, "/console/run", headers=carol)
    assert re.findall(r'href="../console/run/([^"]+)"', text) == ["flat"]
    assert "broken" not in text
    async with run_keyed.http.get("/console/run/every", headers=carol) as response:
        assert response.status == 403
    text = await _page(run_keyed, "/console/run/every", headers=bearer(ROOT))
    assert "Every &lt;kind&gt;" in text


# The form


async def test_each_kind_of_parameter_has_a_fitting_field(run_forms: RunningGateway) -> None:
    text = await _page(run_forms, "/console/run/every")
    assert re.search(r'<textarea id="field-prompt" name="prompt"[^>]*required', text)
    assert "What is &amp; is not &lt;shown&gt;." in text
    assert re.search(r'<input type="range"[^>]*min="1" max="20"[^>]*value="7.5"', text)
    assert re.search(r'<input id="field-steps" name="steps" value="2"[^>]*inputmode="numeric"', text)
    assert re.search(r'<select id="field-sampler"', text)
    assert 'type="checkbox" id="field-lossless" name="lossless" value="true" checked' in text
    assert "A whole number from 1 to 30" in text
    assert text.index("<details>") < text.index('id="field-prefix"')
    # A browser would change numbers in a field of this type.
    assert 'type="number"' not in text


async def test_a_form_with_default_values_runs_and_redirects_to_the_job(run_forms: RunningGateway) -> None:
    fields = changed(await form_of(run_forms, "every"), prompt="a fox")
    status, _, to = await post_form(run_forms, "every", fields)
    assert status == 303
    assert re.fullmatch(r"\.\./\.\./console/jobs/[0-9a-f-]{36}", to)
    used = await _used(run_forms, to)
    assert 0 <= used.pop("seed") < 2**53
    assert used == {
        "prompt": "a fox",
        "cfg": 7.5,
        "steps": 2,
        "sampler": "euler",
        "lossless": True,
        "prefix": "every",
    }


async def test_texts_from_a_browser_become_values_of_the_right_type(run_forms: RunningGateway) -> None:
    fields = changed(
        await form_of(run_forms, "every"),
        prompt="a fox\nin the snow\n",
        seed=str(LARGEST_SEED),
        cfg="3.25",
        lossless=None,
        steps="",
    )
    status, done, _ = await post_form(run_forms, "every", fields, script=True)
    assert (status, done["follow"]) == (200, False)
    used = await _used(run_forms, done["to"])
    assert used["prompt"] == "a fox\nin the snow\n"
    assert used["seed"] == LARGEST_SEED
    assert (used["cfg"], used["lossless"]) == (3.25, False)
    assert "steps" not in used  # an empty field leaves the value of the workflow


async def test_a_file_in_a_form_becomes_the_value_of_its_parameter(run_forms: RunningGateway) -> None:
    fields = await form_of(run_forms, "inverted")
    status, _, to = await post_form(run_forms, "inverted", fields, [("image", "photo.png", png())])
    assert status == 303
    assert (await _used(run_forms, to))["image"].startswith("file:image-sha256-")


async def test_errors_are_shown_at_their_fields_and_typed_values_are_kept(run_forms: RunningGateway) -> None:
    fields = changed(await form_of(run_forms, "every"), prompt="a <fox>", steps="500", cfg="1e", prefix="p")
    status, text, _ = await post_form(run_forms, "every", fields)
    assert status == 422
    said = {
        name: html.unescape(why)
        for name, why in re.findall(r'<p class="why" id="field-([a-z]+)-why">([^<]+)</p>', text)
    }
    assert said == {
        "steps": "must be a whole number from 1 to 30, not 500",
        "cfg": "must be a number from 1.0 to 20.0, not '1e'",
    }
    assert re.search(
        r'name="steps" value="500"[^>]*aria-describedby="[^"]*field-steps-why"[^>]*aria-invalid="true"', text
    )
    assert re.search(r'id="run"[^>]*data-first="field-cfg"', text)
    assert "a &lt;fox&gt;</textarea>" in text
    async with run_forms.http.post("/workflows/every", json={"prompt": "a", "steps": "500", "cfg": "1e"}) as response:
        api = (await response.json())["parameters"]
    assert said == {name: found["message"] for name, found in api.items()}
    status, body, _ = await post_form(run_forms, "every", fields, script=True)
    assert (status, body["parameters"]) == (422, api)


async def test_an_error_without_a_field_stands_above_the_form(run_forms: RunningGateway) -> None:
    fields = [*changed(await form_of(run_forms, "flat"), seed="-1"), ("nonsense", "1")]
    status, text, _ = await post_form(run_forms, "flat", fields)
    assert status == 422
    problem = re.search(r'id="problem">([^<]+)<', text)
    assert problem is not None
    assert "nonsense" in problem[1]
    _, text, _ = await post_form(run_forms, "every", changed(await form_of(run_forms, "every"), prompt=None))
    assert "is required and must be a text" in text


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": ""}])
async def test_a_form_sent_from_a_foreign_page_runs_nothing(run_forms: RunningGateway, headers: dict[str, str]) -> None:
    fields = await form_of(run_forms, "flat")
    status, _, _ = await post_form(run_forms, "flat", fields, headers=headers)
    assert status == 403
    assert run_forms.handler.waiting == 0


async def test_a_read_key_sees_a_form_but_cannot_run_it(run_keyed: RunningGateway) -> None:
    fields = await form_of(run_keyed, "flat", headers=bearer(WATCHER))
    assert "Run</button>" not in await _page(run_keyed, "/console/run/flat", headers=bearer(WATCHER))
    status, _, _ = await post_form(run_keyed, "flat", fields, headers=bearer(WATCHER))
    assert status == 403


async def test_forms_count_as_submissions_of_the_key(run_keyed: RunningGateway) -> None:
    carol = bearer(CAROL)
    fields = await form_of(run_keyed, "flat", headers=carol)
    answers = [await post_form(run_keyed, "flat", fields, script=True, headers=carol) for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 429]
    status, _, _ = await post_form(run_keyed, "every", fields, headers=carol)
    assert status in (403, 429)


# The values of a job, and its run


async def test_a_form_can_start_with_the_values_of_a_job(run_forms: RunningGateway) -> None:
    fields = changed(await form_of(run_forms, "every"), prompt="a <fox>", cfg="3.25", lossless=None)
    _, _, to = await post_form(run_forms, "every", fields)
    used = await _used(run_forms, to)
    again = await form_of(run_forms, "every", f"?from={to.rpartition('/')[2]}")
    assert ("seed", str(used["seed"])) in again
    assert {("prompt", "a <fox>"), ("cfg", "3.25")} <= set(again)
    assert "lossless" not in dict(again)
    _, _, to = await post_form(run_forms, "every", again)
    assert await _used(run_forms, to) == used


async def test_no_key_sees_the_values_or_the_run_of_another_keys_job(run_keyed: RunningGateway) -> None:
    alice, bob = bearer(ALICE), bearer(BOB)
    fields = changed(await form_of(run_keyed, "every", headers=alice), prompt="a secret fox")
    _, _, to = await post_form(run_keyed, "every", fields, headers=alice)
    prompt_id = to.rpartition("/")[2]
    await _used(run_keyed, to, headers=alice)
    for query in (f"?from={prompt_id}", ""):
        assert "secret" not in str(await form_of(run_keyed, "every", query, headers=bob))
        assert prompt_id not in await _page(run_keyed, "/console/run/every", headers=bob)
    assert prompt_id in await _page(run_keyed, "/console/run/every", headers=alice)
    assert "secret" in str(await form_of(run_keyed, "every", f"?from={prompt_id}", headers=bearer(WATCHER)))
    for path in (f"/console/run/every/jobs/{prompt_id}", f"/console/run/every?job={prompt_id}"):
        async with run_keyed.http.get(path, headers=bob) as response:
            assert response.status == 404
        async with run_keyed.http.get(path, headers=alice) as response:
            assert response.status == 200


async def test_a_person_behind_a_shared_key_sees_no_run_of_another_person(run_keyed: RunningGateway) -> None:
    eve, mallory = (bearer(DAVE) | {"X-User": name} for name in ("eve", "mallory"))
    fields = changed(await form_of(run_keyed, "every", headers=eve))
    _, _, to = await post_form(run_keyed, "every", fields, headers=eve)
    prompt_id = to.rpartition("/")[2]
    for path in (f"/console/run/every/jobs/{prompt_id}", f"/console/run/every?job={prompt_id}"):
        assert [await _status(run_keyed, path, headers) for headers in (eve, mallory)] == [200, 404]
    await _used(run_keyed, to, headers=eve)
    for path in (f"/console/run/every/jobs/{prompt_id}", f"/console/run/every?job={prompt_id}"):
        assert [await _status(run_keyed, path, headers) for headers in (eve, mallory)] == [200, 404]


async def _status(gateway: RunningGateway, path: str, headers: Mapping[str, str]) -> int:
    async with gateway.http.get(path, headers=headers) as response:
        return response.status


async def test_the_panel_of_a_run_shows_its_state_and_its_outputs(run_forms: RunningGateway) -> None:
    async with run_forms.http.post("/queue/pause") as response:
        assert response.status == 200
    fields = await form_of(run_forms, "flat")
    _, done, _ = await post_form(run_forms, "flat", fields, script=True)
    prompt_id = done["to"].rpartition("/")[2]
    path = f"/console/run/flat/jobs/{prompt_id}"
    text = await _page(run_forms, path)
    assert f'data-job="{prompt_id}" data-state="queued"' in text
    assert "paused" in text
    async with run_forms.http.post("/queue/resume") as response:
        assert response.status == 200
    await _used(run_forms, done["to"])
    text = await _page(run_forms, path)
    assert "data-ended" in text
    (address,) = re.findall(r'<img src="../../([^"]+)"', text)  # only the named output is shown
    async with run_forms.http.get(f"/{address}") as response:
        assert (response.status, response.content_type) == (200, "image/png")
    # The links are relative to the page that includes the panel.
    assert f'href="../../console/run/flat?from={prompt_id}"' in text


async def test_the_panel_of_a_failed_run_shows_the_reason(run_forms: RunningGateway) -> None:
    fields = changed(await form_of(run_forms, "inverted"))
    _, done, _ = await post_form(run_forms, "inverted", fields, [("image", "photo.png", b"no picture")], script=True)
    path = f"/console/run/inverted/jobs/{done['to'].rpartition('/')[2]}"

    async def ask() -> str:
        return await _page(run_forms, path)

    text = await until(ask, lambda text: "data-ended" in text)
    assert 'class="alert"' in text
    assert "Failed" in text


async def test_code_for_very_long_values_is_refused(run_forms: RunningGateway) -> None:
    headers = {"Origin": run_forms.url, "Accept": "application/json"}
    data = {"prompt": "'" * 100_000}  # %27 each
    async with run_forms.http.post("/console/run/every/code", data=data, headers=headers) as response:
        assert (response.status, response.content_type) == (422, "application/json")
        assert "larger than 0.2 MB" in (await response.json())["message"]


# Kept files of a job


async def test_a_form_made_from_a_job_reuses_the_files_that_the_gateway_keeps(engine: Engine, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"workflows_dir": every_folder(tmp_path / "workflows"), "inputs_keep_days": 1}
    async with running_gateway(engine.url, state_dir=tmp_path / "state", **settings) as gateway:
        _, _, to = await post_form(gateway, "inverted", [], [("image", "photo.png", png())])
        first = await _used(gateway, to)
        body = {"image": base64.b64encode(png("red")).decode()}
        async with gateway.http.post("/workflows/inverted", json=body, headers=ASYNC) as response:
            of_json = (await response.json())["prompt_id"]
        await _used(gateway, of_json)
        for prompt_id, used in ((to.rpartition("/")[2], first), (of_json, None)):
            fields = await form_of(gateway, "inverted", f"?from={prompt_id}")
            assert fields == [("$from", prompt_id), ("$kept", "image")]
            status, _, to = await post_form(gateway, "inverted", fields)
            assert status == 303
            again = await _used(gateway, to)
            assert used is None or again == used
        red = hashlib.sha256(png("red")).hexdigest()
        assert red in again["image"]
        # A chosen file replaces the kept one; without the tick there is no file.
        _, _, to = await post_form(gateway, "inverted", fields, [("image", "photo.png", png("blue"))])
        assert hashlib.sha256(png("blue")).hexdigest() in (await _used(gateway, to))["image"]
        status, body, _ = await post_form(gateway, "inverted", fields[:1], script=True)
        assert (status, list(body["parameters"])) == (422, ["image"])


async def test_the_field_of_a_file_says_when_it_is_no_longer_kept(run_keyed: RunningGateway) -> None:
    alice, bob = bearer(ALICE), bearer(BOB)
    _, _, to = await post_form(run_keyed, "inverted", [], [("image", "photo.png", png())], headers=alice)
    await _used(run_keyed, to, headers=alice)
    fields = [("$from", to.rpartition("/")[2]), ("$kept", "image")]
    for key in (alice, bob):
        status, body, _ = await post_form(run_keyed, "inverted", fields, script=True, headers=key)
        if key is bob or status != 200:  # the files of a job are removed shortly after its end
            assert status == 422
            assert "INPUTS_KEEP_DAYS" in body["parameters"]["image"]["message"]


# The call as code

_NASTY = 'it\'s "a" $HOME `id` \\ <fox> & 100 % – \u2028 é 🦊\nsecond line; rm -rf x # ${1} </script>'


async def _code(gateway: RunningGateway, name: str, fields: list[tuple[str, str]], **asked: Any) -> dict[str, str]:
    """Returns the programs that the form shows for these fields, by language."""
    data = [*fields, ("$base", gateway.url)]
    origin = {"Origin": gateway.url, **asked.pop("headers", {})}
    async with gateway.http.post(f"/console/run/{name}/code", data=data, headers=origin, **asked) as response:
        assert response.status == 200, await response.text()
        text = await response.text()
    found = re.findall(r'data-language="([^"]+)"><code>(.*?)</code>', text, re.DOTALL)
    return {language: html.unescape(code) for language, code in found}


async def _run_code(code: Mapping[str, str], language: str, folder: Path, **env: str) -> str:
    """Runs the program and returns its output."""
    if language == "curl":
        return await printed_by(folder, "sh", "-c", code["curl"], **env)
    if language == "Python":
        (folder / "call.py").write_text(code["Python"])
        return await printed_by(folder, sys.executable, "call.py", **env)
    if NODE is None:
        pytest.skip("no Node here: make tests/contract/openapi/node_modules/.ready")
    (folder / "call.mjs").write_text(code["JavaScript"])
    return await printed_by(folder, NODE, "call.mjs", **env)


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
async def test_the_generated_code_makes_the_same_run_for_any_values(
    run_forms: RunningGateway, tmp_path: Path, language: str
) -> None:
    fields = changed(
        await form_of(run_forms, "every"), prompt=_NASTY, seed=str(LARGEST_SEED), cfg="3.25", lossless=None
    )
    code = await _code(run_forms, "every", fields)
    assert "/view?" in await _run_code(code, language, tmp_path)
    (job,) = (await _jobs(run_forms))["jobs"]
    used = await _used(run_forms, job["prompt_id"])
    assert used == {
        "prompt": _NASTY,
        "seed": LARGEST_SEED,
        "cfg": 3.25,
        "steps": 2,
        "sampler": "euler",
        "lossless": False,
        "prefix": "every",
    }


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
async def test_the_generated_code_sends_the_chosen_file_with_the_key_from_the_environment(
    run_keyed: RunningGateway, tmp_path: Path, language: str
) -> None:
    name = 'my "best", photo; it\'s $1 \\ @é.png'
    (tmp_path / name).write_bytes(png("red"))
    alice = bearer(ALICE)
    code = await _code(run_keyed, "inverted", [("image", name)], headers=alice)
    assert ALICE not in code[language]
    assert "/view?" in await _run_code(code, language, tmp_path, COMFYUI_GATEWAY_API_KEY=ALICE)
    (job,) = (await _jobs(run_keyed, headers=alice))["jobs"]
    assert job["workflow"] == "inverted"


async def test_the_generated_code_omits_a_random_seed_and_names_a_required_file(
    run_forms: RunningGateway,
) -> None:
    code = await _code(run_forms, "every", await form_of(run_forms, "every"))
    assert all("seed" not in one for one in code.values())
    assert '"prompt": "a cat"' not in code["curl"]  # the field was sent empty
    assert '"prompt": "a cat"' in html.unescape(await _page(run_forms, "/console/run/every"))
    page = html.unescape(await _page(run_forms, "/console/run/inverted"))
    assert "-F image=@image.png" in page
    assert f"curl {run_forms.url}/workflows/inverted" in page
    # The address that the browser sends cannot inject code.
    fields = [("$base", "http://x/';alert(1)//")]
    async with run_forms.http.post("/console/run/flat/code", data=fields, headers={"Origin": run_forms.url}) as answer:
        assert "alert" not in await answer.text()


async def _jobs(gateway: RunningGateway, **asked: Any) -> Any:
    async with gateway.http.get("/prompt_sync", **asked) as response:
        return await response.json()


async def test_very_long_texts_run_but_are_not_repeated_on_the_page(run_forms: RunningGateway) -> None:
    long = "fox " * 100_000
    fields = changed(await form_of(run_forms, "every"), prompt=long)
    status, text, _ = await post_form(run_forms, "every", changed(fields, steps="500"))
    assert status == 422
    assert 'value="500"' in text
    assert len(text) < 100_000
    status, _, to = await post_form(run_forms, "every", fields)
    assert (status, (await _used(run_forms, to))["prompt"]) == (303, long)
    again = await _page(run_forms, f"/console/run/every?from={to.rpartition('/')[2]}")
    assert len(again) < 100_000
    data = io.BytesIO(b"prompt=" + b"x" * 5_000_000)
    headers = {"Origin": run_forms.url, "Content-Type": "application/x-www-form-urlencoded"}
    async with run_forms.http.post("/console/run/every/code", data=data, headers=headers) as response:
        assert (response.status, "0.2 MB" in await response.text()) == (422, True)


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}], ids=["none", "another"]
)
async def test_a_form_with_another_content_type_is_refused(run_forms: RunningGateway, headers: dict[str, str]) -> None:
    headers = {"Origin": run_forms.url, "Accept": "application/json", **headers}
    skipped = [] if "Content-Type" in headers else ["Content-Type"]
    async with run_forms.http.post("/console/run/every", headers=headers, skip_auto_headers=skipped) as response:
        answer = await response.json()
    assert (response.status, answer["message"]) == (422, "Content-Type must be multipart/form-data for a form")
