"""Named workflows with parameters of every kind, and their forms as browsers without scripts send them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.support.named import node, write
from tests.support.named_folder import named_folder
from tests.support.running import RunningGateway

NO_HEADERS: Final[Mapping[str, str]] = {}
LARGEST_SEED: Final = 2**64 - 1
EVERY: Final = {
    "1": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "2": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors"),
    "3": node("CLIPTextEncode", "$prompt", text="a cat", clip=["2", 1]),
    "4": node("CLIPTextEncode", text="", clip=["2", 1]),
    "5": node(
        "KSampler",
        "$seed",
        seed=7,
        steps=2,
        cfg=7.5,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
        model=["2", 0],
        positive=["3", 0],
        negative=["4", 0],
        latent_image=["1", 0],
    ),
    "6": node("VAEDecode", samples=["5", 0], vae=["2", 2]),
    "7": node(
        "SaveAnimatedWEBP",
        images=["6", 0],
        filename_prefix="every",
        fps=6.0,
        lossless=True,
        quality=80,
        method="default",
    ),
}
"""A workflow with a parameter of each kind except files."""
EVERY_PARAMETERS: Final = """
title = "Every <kind>"
description = "Has a parameter of every kind."
[parameters.prompt]
required = true
description = "What is & is not <shown>."
[parameters.cfg]
node = "5"
input = "cfg"
minimum = 1.0
maximum = 20.0
[parameters.steps]
node = "5"
input = "steps"
minimum = 1
maximum = 30
[parameters.sampler]
node = "5"
input = "sampler_name"
[parameters.lossless]
node = "7"
input = "lossless"
[parameters.prefix]
node = "7"
input = "filename_prefix"
advanced = true
"""


def every_folder(folder: Path) -> Path:
    """Writes `every` and the workflows of `named_folder`; returns the folder."""
    write(folder, "every", EVERY, EVERY_PARAMETERS)
    return named_folder(folder)


def fields_in(text: str) -> list[tuple[str, str]]:
    """The names and values that a browser sends for the form `run`, without files and unticked boxes."""
    form = re.search(r'<form[^>]*id="run".*?</form>', text, re.DOTALL)
    assert form is not None
    found: list[tuple[int, str, str]] = []
    for one in re.finditer(r"<input([^>]*)>", form[0]):
        said = dict(re.findall(r'([a-z-]+)="([^"]*)"', one[1]))
        if "name" not in said or said.get("type") == "file":
            continue
        if said.get("type") == "checkbox" and not re.search(r"\schecked", one[1]):
            continue
        found.append((one.start(), said["name"], said.get("value", "")))
    texts = re.finditer(r'<textarea[^>]* name="([^"]+)"[^>]*>\n?(.*?)</textarea>', form[0], re.DOTALL)
    found += [(one.start(), one[1], one[2]) for one in texts]
    for one in re.finditer(r'<select[^>]* name="([^"]+)"[^>]*>(.*?)</select>', form[0], re.DOTALL):
        options = re.findall(r'<option value="([^"]*)"( selected)?', one[2])
        chosen = [value for value, selected in options if selected]
        if "multiple" not in one[0].partition(">")[0]:
            chosen = chosen or [options[0][0]]
        found += [(one.start(), one[1], value) for value in chosen]
    return [(name, html.unescape(value)) for _, name, value in sorted(found)]


async def form_of(gateway: RunningGateway, name: str, query: str = "", **asked: Any) -> list[tuple[str, str]]:
    """The fields of this workflow's form with their initial values."""
    async with gateway.http.get(f"/console/run/{name}{query}", **asked) as response:
        assert response.status == 200, await response.text()
        return fields_in(await response.text())


def changed(fields: Sequence[tuple[str, str]], **values: str | None) -> list[tuple[str, str]]:
    """The fields with other values; None removes a field, as if the browser did not send it."""
    kept = [(name, value) for name, value in fields if name not in values]
    return kept + [(name, value) for name, value in values.items() if value is not None]


def form_data(fields: Sequence[tuple[str, str]], files: Sequence[tuple[str, str, bytes]] = ()) -> aiohttp.FormData:
    """A form as multipart/form-data; `files` are triples of field, file name and content."""
    data = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields:
        # Browsers end lines with CRLF.
        data.add_field(name, value.replace("\n", "\r\n"))
    for name, filename, content in files:
        data.add_field(name, content, filename=filename, content_type="application/octet-stream")
    return data


async def post_form(
    gateway: RunningGateway,
    name: str,
    fields: Sequence[tuple[str, str]],
    files: Sequence[tuple[str, str, bytes]] = (),
    *,
    script: bool = False,
    headers: Mapping[str, str] = NO_HEADERS,
) -> tuple[int, Any, str]:
    """Status, body (JSON for a `script`, otherwise the page), and the target of a 303."""
    sent = {"Origin": gateway.url, **({"Accept": "application/json"} if script else {}), **headers}
    async with gateway.http.post(
        f"/console/run/{name}", data=form_data(fields, files), headers=sent, allow_redirects=False
    ) as response:
        body = await response.json() if script else await response.text()
        return response.status, body, response.headers.get("Location", "")
