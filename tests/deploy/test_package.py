"""What a newcomer installs: the package that pip builds, and the environment of `make demo`."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from comfyui.engine import Engine
from tests.support.packaging import ROOT
from tests.support.running import running_gateway


def examples_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "examples/README.md"])
async def test_the_documented_python_example_runs_unchanged(
    installed: Path, engine: Engine, tmp_path: Path, page: str
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    [example] = examples_of(ROOT / page)
    async with running_gateway(engine.url) as gateway:
        assert "http://127.0.0.1:18188" in example
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", example.replace("http://127.0.0.1:18188", gateway.url)),
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(installed)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, failed = await process.communicate()
    assert process.returncode == 0, failed.decode()
    [saved] = said.decode().split()
    assert (tmp_path / saved).read_bytes().startswith(b"\x89PNG")


def test_the_package_contains_all_data_files(installed: Path) -> None:
    kept = {path.relative_to(ROOT) for path in (ROOT / "comfyui").rglob("*") if path.is_file()}
    kept = {path for path in kept if "__pycache__" not in path.parts and path.suffix != ".md"}
    assert not [path for path in sorted(kept) if not (installed / path).exists()]


def test_the_demo_installs_only_the_gateways_requirements() -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    planned = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert planned.returncode == 0, planned.stderr
    assert set(re.findall(r"requirements/[\w-]+\.txt", planned.stdout)) == {"requirements/gateway.txt"}
    assert "/bin/python examples/demo.py" in planned.stdout
    assert re.search(r"--requirement requirements/gateway\.txt\b", planned.stdout)
    assert "getting" in planned.stdout, "the demo prints each package that it downloads"
