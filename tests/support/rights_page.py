"""Writes docs/rights.md: a running gateway's answers to each role, for each row of the table of rights.

python -m tests.support.rights_page > docs/rights.md
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from comfyui.engine import NEW_VERSION, Engine, EngineOptions
from comfyui.web.front.paths import PROBES
from comfyui.web.front.rights import TABLE, WEBSOCKET, Row
from tests.support.keys import ALICE, BOB, KEYS, ROOT, WATCHER, bearer
from tests.support.named_folder import named_folder
from tests.support.running import RunningGateway, invert_workflow, running_gateway
from tests.support.url_server import PNG

_HEAD = """\
# Rights: the answers to each role

`make rights` writes this page. It starts a gateway with a `KEYS_FILE` and keys of each role, sends an example of each
row of the table of rights (`comfyui/web/front/rights.py`), and records the statuses; a test does the same and compares.
[keys.md](keys.md) explains the roles.

`{job}` is an ended job of the first `user` key, and `{file}` is its file. For these, another user gets the same answers
as for a job and a file that do not exist; on some paths ComfyUI answers that with 200. A `–` in this column means that
the request names neither. 404 for an admin means that the ComfyUI of this test does not have this resource.

| request | no key | `user` | another `user` | `read` | `admin` |
| --- | --- | --- | --- | --- | --- |
"""

_NOWHERE = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True, slots=True)
class Example:
    """One request for a row. `{job}` and `{file}` in it stand for the first user's job and file.

    Attributes:
        form: whether the body is a form with a picture.
    """

    method: str
    target: str
    body: Any = None
    form: bool = False

    @property
    def is_of_a_job(self) -> bool:
        text = self.target + json.dumps(self.body)
        return "{job}" in text or "{file}" in text

    @property
    def name(self) -> str:
        """The request's name on the page."""
        if self.body is None:
            return f"{self.method} `{self.target}`"
        sent = "a workflow" if "prompt" in self.body or "workflow" in self.body else f"`{json.dumps(self.body)}`"
        return f"{self.method} `{self.target}` with {sent}"


_WORKFLOW = {"prompt": invert_workflow()}
_DRAWN = {
    "workflow": {
        "nodes": [
            {"id": 1, "type": "EmptyImage", "mode": 0, "widgets_values": [16, 12, 1, 0], "outputs": [{"links": [1]}]},
            {"id": 2, "type": "PreviewImage", "mode": 0, "inputs": [{"name": "images", "link": 1}], "outputs": []},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
        "version": 0.4,
    }
}
_TARGETS: Mapping[tuple[str, str], tuple[str, Any]] = {
    ("POST", "/prompt_sync"): ("/prompt_sync", _WORKFLOW),
    ("GET", "/prompt_sync/*"): ("/prompt_sync/{job}", None),
    ("DELETE", "/prompt_sync/*"): ("/prompt_sync/{job}", None),
    ("POST", "/prompt_sync/*/webhook"): ("/prompt_sync/{job}/webhook", None),
    ("POST", "/validate"): ("/validate", _WORKFLOW),
    ("POST", "/convert"): ("/convert", _DRAWN),
    ("GET", "/workflows/*"): ("/workflows/flat", None),
    ("POST", "/workflows/*"): ("/workflows/flat", {"width": 9}),
    ("POST", "/mcp"): ("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}),
    ("POST", "/tickets"): ("/tickets", {"url": "/view?{file}"}),
    ("POST", "/api/v2/jobs"): ("/api/v2/jobs", {"workflow": invert_workflow()}),
    ("GET", "/api/v2/jobs/*"): ("/api/v2/jobs/{job}", None),
    ("GET", "/api/v2/jobs/*/workflow"): ("/api/v2/jobs/{job}/workflow", None),
    ("GET", "/api/v2/jobs/*/events"): ("/api/v2/jobs/{job}/events", None),
    ("GET", "/api/v2/jobs/*/logs"): ("/api/v2/jobs/{job}/logs", None),
    ("POST", "/api/v2/jobs/*/cancel"): ("/api/v2/jobs/{job}/cancel", None),
    ("POST", "/console/jobs/*/cancel"): ("/console/jobs/{job}/cancel", None),
    ("POST", "/console/jobs/*/first"): ("/console/jobs/{job}/first", None),
    ("POST", "/console/jobs/*/priority"): ("/console/jobs/{job}/priority", None),
    ("POST", "/console/jobs/*/again"): ("/console/jobs/{job}/again", None),
    ("POST", "/console/jobs/*/changed"): ("/console/jobs/{job}/changed", None),
    ("POST", "/console/jobs/*/webhook"): ("/console/jobs/{job}/webhook", None),
    ("GET", "/models/*"): ("/models/checkpoints", None),
    ("GET", "/view_metadata/*"): ("/view_metadata/loras?filename=x.safetensors", None),
    ("GET", "/object_info/*"): ("/object_info/KSampler", None),
    ("GET", "/experiment/models/*"): ("/experiment/models/checkpoints", None),
    ("GET", "/experiment/models/preview/**"): ("/experiment/models/preview/loras/0/x.png", None),
    ("GET", "/view"): ("/view?{file}", None),
    ("GET", "/internal/files/*"): ("/internal/files/input", None),
    ("POST", "/prompt"): ("/prompt", _WORKFLOW),
    ("GET", "/history/*"): ("/history/{job}", None),
    ("GET", "/history_v2/*"): ("/history_v2/{job}", None),
    ("GET", "/jobs"): ("/api/jobs", None),
    ("GET", "/jobs/*"): ("/api/jobs/{job}", None),
    ("POST", "/queue"): ("/queue", {"delete": ["{job}"]}),
    ("POST", "/history"): ("/history", {"delete": [_NOWHERE]}),
    ("POST", "/interrupt"): ("/interrupt", {"prompt_id": "{job}"}),
    ("POST", "/jobs/*/cancel"): ("/api/jobs/{job}/cancel", None),
    ("POST", "/jobs/cancel"): ("/api/jobs/cancel", {"job_ids": ["{job}"]}),
    ("POST", "/settings"): ("/settings", {"Comfy.Locale": "en"}),
    ("POST", "/settings/*"): ("/settings/Comfy.Locale", "en"),
    ("GET", "/settings/*"): ("/settings/Comfy.Locale", None),
    ("GET", "/userdata"): ("/userdata?dir=workflows", None),
    ("POST", "/userdata/**"): ("/userdata/a.json", {"a": 1}),
    ("GET", "/userdata/**"): ("/userdata/a.json", None),
    ("DELETE", "/userdata/**"): ("/userdata/a.json", None),
}
_FORMS = {("POST", "/upload/image"), ("POST", "/upload/mask")}
# Requests that are in no row.
_ELSE = (
    *(
        Example("POST", "/queue/pause"),
        Example("POST", "/queue/resume"),
        Example("POST", "/free", {"free_memory": True}),
    ),
    *(
        Example("GET", "/internal/logs"),
        Example("GET", "/internal/folder_paths"),
        Example("POST", "/users", {"username": "default"}),
    ),
    *(Example("POST", "/servers/gpu-1/drain"), Example("POST", "/servers/gpu-1/resume")),
    *(Example("GET", "/servers/gpu-1/queue"), Example("POST", "/servers/gpu-1/prompt", _WORKFLOW)),
    *(Example("POST", "/servers/gpu-1/free", {"free_memory": True}), Example("GET", "/servers/gpu-1/internal/logs")),
    *(Example("websocket", "/servers/gpu-1/ws"), Example("GET", "/servers/another/queue")),
    *(Example("GET", "/manager/reboot"), Example("GET", "/route-of-a-custom-node")),
)


def example_of(row: Row) -> Example:
    """The request that stands for the row."""
    asked = (row.method, row.path)
    target, body = _TARGETS.get(asked, (row.path.replace("**", "x").replace("*", "x"), None))
    return Example("websocket" if row.method == WEBSOCKET else row.method, target, body, form=asked in _FORMS)


@dataclass(frozen=True, slots=True)
class Line:
    """The answers to one request. `row` is None for a request that the table does not have."""

    example: Example
    row: Row | None
    no_key: int
    user: int
    another: int
    read: int
    admin: int

    def __str__(self) -> str:
        another = self.another if self.example.is_of_a_job else "–"
        return f"| {self.example.name} | {self.no_key} | {self.user} | {another} | {self.read} | {self.admin} |"


@dataclass(slots=True)
class _Asking:
    """Sends the examples. `job` and `file` are the first user's."""

    gateway: RunningGateway
    http: aiohttp.ClientSession
    job: str = ""
    file: str = ""
    lines: list[Line] = field(default_factory=list)

    async def begin(self) -> None:
        # Another color than in all other keys' prompts, so that ComfyUI's cache gives the file to no other key.
        workflow = invert_workflow(7, prefix="alice")
        async with self.http.post("/prompt_sync", json={"prompt": workflow}, headers=bearer(ALICE)) as response:
            answer = await response.json()
        self.job, self.file = answer["prompt_id"], answer["images"][0]["url"].partition("?")[2]

    async def each(self, row: Row | None, example: Example) -> None:
        # The roles with fewer rights come first, because a file that the admin deletes is gone.
        no_key, read, another, user, admin = [
            await self._status(example, key) for key in ("", WATCHER, BOB, ALICE, ROOT)
        ]
        self.lines.append(Line(example, row, no_key, user, another, read, admin))

    async def _status(self, example: Example, key: str) -> int:
        headers = bearer(key) if key else {}
        target = self._filled(example.target)
        if target.startswith("/console"):
            # The console accepts changes only from its own pages.
            headers["Origin"] = self.gateway.url
        if example.method == "websocket":
            try:
                async with self.http.ws_connect(target, headers=headers):
                    return 101
            except aiohttp.WSServerHandshakeError as error:
                return error.status
        data: Any = None
        if example.form:
            data = aiohttp.FormData()
            data.add_field("image", PNG, filename="a.png", content_type="image/png")
        elif example.body is not None:
            data = self._filled(json.dumps(example.body))
            headers |= {"Content-Type": "application/json"}
        async with self.http.request(
            example.method, target, data=data, headers=headers, allow_redirects=False
        ) as response:
            await response.read()
            return response.status

    def _filled(self, text: str) -> str:
        return text.replace("{job}", self.job).replace("{file}", self.file)


async def asked() -> list[Line]:
    """A new gateway's answers for each row, and for requests that are in none."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.toml"
        keys.write_text(KEYS)
        async with (
            Engine(EngineOptions(comfyui_version=NEW_VERSION)) as engine,
            running_gateway(
                f"gpu-1={engine.url}", keys_file=keys, workflows_dir=named_folder(Path(folder) / "workflows"), mcp=True
            ) as gateway,
            aiohttp.ClientSession(gateway.url) as http,
        ):
            asking = _Asking(gateway, http)
            await asking.begin()
            for row in TABLE:
                await asking.each(row, example_of(row))
            for example in (*_ELSE, *(Example("GET", path) for path in sorted(PROBES))):
                await asking.each(None, example)
            return asking.lines


def page_of(lines: Iterable[Line]) -> str:
    """The text of docs/rights.md."""
    return _HEAD + "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page_of(asyncio.run(asked())))
