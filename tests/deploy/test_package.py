"""What a newcomer installs: the package that pip builds, and the environment of `make demo`."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from comfyui.engine import Engine
from tests.support.running import running_gateway

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("server.py", "config.py", "client.py", "comfyui", "pyproject.toml", "README.md", "LICENSE")

QUIETLY: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 50}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as `pip install .` puts it there. Its dependencies are those of this interpreter."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools cannot build the package: it is older than pyproject.toml asks for")
    sources = tmp_path_factory.mktemp("sources")
    for name in SOURCES:  # a copy, since a build writes beside its sources
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources)
    built = tmp_path_factory.mktemp("built")
    # What pip itself calls; pip would look for an index.
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(built)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=sources, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    [wheel] = built.glob("*.whl")
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def examples_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "examples/README.md"])
async def test_the_python_example_runs_as_it_stands(installed: Path, engine: Engine, tmp_path: Path, page: str) -> None:
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


def test_the_package_has_all_that_it_needs_beside_the_code(installed: Path) -> None:
    kept = {path.relative_to(ROOT) for path in (ROOT / "comfyui").rglob("*") if path.is_file()}
    kept = {path for path in kept if "__pycache__" not in path.parts and path.suffix != ".md"}
    assert not [path for path in sorted(kept) if not (installed / path).exists()]


def test_the_demo_needs_only_what_the_gateway_does() -> None:
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
    assert "getting" in planned.stdout, "each package is told"
