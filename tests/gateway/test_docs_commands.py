"""Every command and program in the docs is run as written, or a comment above it says why it is not.

The commands of a page run in order in one shell, in a folder with the examples and the files that the page names,
against a gateway with two servers. A block that is not run here has the comment ``<!-- not run: why -->``, or
``<!-- run by tests/… -->`` if another test runs it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.support.editor_files import UI
from tests.support.receivers import SECRET
from tests.support.running import RunningGateway, engines, running_gateway, sleep_workflow

ROOT = Path(__file__).parents[2]
KEY = "the-key-of-the-docs"
INVERT = json.loads((ROOT / "examples/invert.json").read_text())
PAGES = [
    *(ROOT / name for name in ("README.md", "deploy/README.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>sh|python|js|sql)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"not run: \S.{5,}|run by (?P<test>tests/[\w/]+\.py)")
_ADDRESS = re.compile(r"(?:http://)?(?:localhost|127\.0\.0\.1):18188")
# These commands start or configure the gateway; the test starts its own.
_STARTS = re.compile(r"^(?:\w+=\S+ )*(?:make run|python server\.py)\b.*\n(?: +#.*\n)?", re.MULTILINE)
_PREAMBLE = """\
set -eu
python() {
  case $1 in
    client.py) shift; "$PYTHON" "$ROOT/client.py" "$@" --server "$URL" ;;
    server.py) shift; "$PYTHON" "$ROOT/server.py" "$@" ;;
    *) "$PYTHON" "$@" ;;
  esac
}
# This retries, because a named workflow appears shortly after its file.
curl() {
  command curl --silent --show-error --fail-with-body --retry 10 --retry-delay 1 --retry-all-errors \\
    --header "X-API-Key: $KEY" "$@"
}
make() { "$PYTHON" "$ROOT/examples/$1.py"; }
jq() { "$PYTHON" -c 'import json, sys; [print(one["path"]) for one in json.load(sys.stdin)["images"]]'; }
"""


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: Path
    line: int
    language: str
    text: str
    mark: str | None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, one.start("text")), one["language"], one["text"], one["mark"])
        for one in _BLOCK.finditer(text)
    ]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@asynccontextmanager
async def gateway_for(page: Path, folder: Path) -> AsyncIterator[RunningGateway]:
    """Runs a gateway; it has a key or a public address if the page uses them."""
    text = page.read_text()
    workflows = folder / "my-workflows"
    await asyncio.to_thread(shutil.copytree, ROOT / "examples/workflows", workflows)
    for suffix in (".json", ".toml"):  # docs/workflows.md writes a portrait with the same parameters
        shutil.copyfile(workflows / f"text-to-image{suffix}", workflows / f"portrait{suffix}")
    async with (
        engines(2) as (one, other),
        running_gateway(
            f"gpu-1={one.url}",
            f"gpu-2={other.url}",
            workflows_dir=str(workflows),
            api_keys=KEY if "Bearer KEY" in text else "",
            webhook_secret=SECRET,
            public_url="https://comfy.example" if '"webhook"' in text else "",
        ) as gateway,
    ):
        yield gateway


async def run(folder: Path, gateway: RunningGateway, *command: str) -> str:
    """Runs a command in the folder with the examples and returns its output."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "ROOT": str(ROOT)}
        | {"URL": gateway.url, "COMFY_BASE_URL": gateway.url, "KEY": KEY},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await process.communicate())[0].decode(errors="replace")
    assert process.returncode == 0, printed[-4000:]
    return printed


async def folder_of(folder: Path) -> Path:
    """Fills the folder with the examples and with the files that pages expect from the reader."""

    def make() -> None:
        shutil.copytree(ROOT / "examples", folder / "examples")
        shutil.copy(ROOT / "examples/txt2img.json", folder / "workflow.json")
        graph = json.loads((ROOT / "examples/txt2img.json").read_text())
        (folder / "body.json").write_text(json.dumps({"prompt": graph}))
        (folder / "exported-from-the-editor.json").write_text(json.dumps(UI))
        Image.new("RGB", (8, 8), "red").save(folder / "photo.png")

    await asyncio.to_thread(make)
    return folder


@dataclass(frozen=True)
class Jobs:
    """The jobs that pages call ``0b1c…``: one has ended, and one runs until it is cancelled."""

    ended: str
    running: str


async def jobs_on(gateway: RunningGateway) -> Jobs:
    ids = []
    for graph, prefer in ((INVERT, "wait"), (sleep_workflow(60), "respond-async")):
        headers = {"Prefer": prefer, "X-API-Key": KEY}
        async with gateway.http.post("/prompt_sync", json={"prompt": graph}, headers=headers) as answer:
            ids.append((await answer.json())["prompt_id"])
    return Jobs(*ids)


def as_run(block: Block, gateway: RunningGateway, jobs: Jobs) -> str:
    """Returns the block with the address of the test gateway and with real values for what the page leaves out."""
    text = _STARTS.sub("", block.text) if block.language == "sh" else block.text
    text = _ADDRESS.sub(gateway.url, text).replace(".venv-gateway/bin/python", "python")
    text = text.replace("{…}", json.dumps(INVERT)).replace("Bearer KEY", f"Bearer {KEY}")
    return re.sub(r"(DELETE .*)0b1c…", rf"\g<1>{jobs.running}", text).replace("0b1c…", jobs.ended)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_in_the_docs_that_is_not_run_says_why(page: Path) -> None:
    for block in blocks_of(page):
        if block.mark is None:
            assert block.language in {"sh", "python"}, (
                f"{name_of(page)}:{block.line}: nothing runs {block.language} here"
            )
            continue
        found = _MARK.fullmatch(block.mark)
        assert found, f"{name_of(page)}:{block.line}: {block.mark!r} is neither a reason nor a test"
        if found["test"]:
            assert page.stem in (ROOT / found["test"]).read_text(), f"{found['test']} does not name {page.stem}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(one.mark is None for one in blocks_of(page))], ids=name_of
)
async def test_the_commands_and_programs_of_the_docs_work(tmp_path: Path, page: Path) -> None:
    folder = await folder_of(tmp_path)
    blocks = [one for one in blocks_of(page) if one.mark is None]
    async with gateway_for(page, folder) as gateway:
        jobs = await jobs_on(gateway)
        commands = [as_run(one, gateway, jobs) for one in blocks if one.language == "sh"]
        await run(folder, gateway, "bash", "-c", _PREAMBLE + "\n".join(commands))
        for one in blocks:
            if one.language == "python":
                await run(folder, gateway, sys.executable, "-c", as_run(one, gateway, jobs))
    for name in re.findall(r"(?:-o|--output) (\S+\.png)", "".join(commands)):
        assert (folder / name).stat().st_size > 0
