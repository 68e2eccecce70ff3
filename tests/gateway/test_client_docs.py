"""What the docs show of client.py and of the SDK works as it stands there, against a gateway on another port."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.running import RunningGateway

ROOT = Path(__file__).parents[2]
SERVER = "http://127.0.0.1:18188"
_OURS = ("client.py", "GatewayClient", "comfy_sdk")
# The docs' python is this one, and it calls the test's gateway.
PREAMBLE = """\
set -eu
python() { local script=$1; shift; "$PYTHON" "$ROOT/$script" "$@" --server "$URL"; }
"""


def blocks(page: str, language: str) -> list[str]:
    """The examples of a page that are about the client."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in found if any(name in block for name in _OURS)]


async def run(folder: Path, gateway: RunningGateway, *command: str) -> str:
    """What a command prints in a folder that has the examples."""
    await asyncio.to_thread(shutil.copytree, ROOT / "examples", folder / "examples")
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "ROOT": str(ROOT)}
        | {"URL": gateway.url, "COMFY_BASE_URL": gateway.url},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await process.communicate())[0].decode()
    assert process.returncode == 0, printed
    return printed


@pytest.mark.parametrize("page", ["README.md", "docs/client.md", "docs/jobs.md"])
async def test_the_commands_of_the_docs_work(gateway: RunningGateway, tmp_path: Path, page: str) -> None:
    written = "\n".join(blocks(page, "sh")).replace(".venv-gateway/bin/python", "python")
    assert "client.py submit" in written
    printed = await run(tmp_path, gateway, "bash", "-c", PREAMBLE + written)
    assert "out/txt2img_00001_.png" in printed
    assert (tmp_path / "out/txt2img_00001_.png").stat().st_size > 0
    if page == "docs/client.md":
        assert "order=1234" in printed
        assert "the files are in out/" in printed


@pytest.mark.parametrize("page", ["README.md", "docs/client.md"])
async def test_the_programs_of_the_docs_work(gateway: RunningGateway, tmp_path: Path, page: str) -> None:
    [program] = blocks(page, "python")
    assert SERVER in program
    printed = await run(tmp_path, gateway, sys.executable, "-c", program.replace(SERVER, gateway.url))
    assert "out/txt2img_00001_.png" in printed
    assert (tmp_path / "out/txt2img_00001_.png").stat().st_size > 0


async def test_the_program_for_comfy_orgs_sdk_works(gateway: RunningGateway, tmp_path: Path) -> None:
    [program] = blocks("docs/comfy-api-v2.md", "python")
    await asyncio.to_thread(Image.new("RGB", (8, 8)).save, tmp_path / "photo.png")
    await run(tmp_path, gateway, sys.executable, "-c", program)
    assert (tmp_path / "copy.png").stat().st_size > 0
