"""Fixtures that the tests of this folder share."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.containers import engine_command, environment
from tests.support.packaging import ROOT, SOURCES
from tests.support.ports import free_port


@pytest.fixture
def bare_container(tmp_path: Path) -> dict[str, str]:
    """Variables of a container with the role `gateway`, whose ComfyUI is an empty program."""
    comfyui = tmp_path / "comfyui"
    comfyui.mkdir()
    (comfyui / "main.py").write_text("")
    return environment(tmp_path, START_RETRIES="0", RUN_DIR=str(tmp_path / "run"))


@pytest.fixture
def engine_container(tmp_path: Path) -> dict[str, str]:
    """Variables of a container with the role `gateway`, whose ComfyUI is the embedded engine on the port COMFY_PORT."""
    (tmp_path / "comfyui").mkdir()
    port = free_port()
    return environment(
        tmp_path,
        COMFY_PORT=str(port),
        COMFYUI_COMMAND=engine_command(port),
        START_SECONDS="1",
        SERVER_HOST="127.0.0.1",
        SERVER_PORT=str(free_port()),
        PYTHONPATH=str(ROOT),
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as `pip install .` installs it; its dependencies come from this interpreter."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools cannot build the package: it is older than pyproject.toml asks for")
    sources = tmp_path_factory.mktemp("sources")
    for name in SOURCES:  # a copy, since a build writes beside its sources
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources)
    built = tmp_path_factory.mktemp("built")
    # pip makes the same call; pip itself would look for a package index.
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
