"""The house of docs/architecture.md, drawn from the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = sorted([ROOT / "server.py", ROOT / "config.py", ROOT / "client.py", *(ROOT / "comfyui").rglob("*.py")])

# From the bottom up: a module may import those of its own floor and of the floors before it.
FLOORS: tuple[set[str], ...] = (
    {"access", "exceptions", "jsonio", "offload", "pictures"},
    {"limits"},
    {"big_json"},
    {"events", "models", "metrics", "logs", "nodedefs", "formnames", "inflate", "replies", "promptworker"}
    | {"guard", "ports", "quarantine"},
    {
        "client",
        "transport",
        "http1",
        "connection",
        "framing",
        "splice",
        "storage",
        "storage_s3",
        "content",
        "decoding",
        "fetch",
        "addresses",
    },
    {"workflow", "preflight", "convert", "process", "positions"},
    {"watcher", "inputs", "outputs", "images", "zipping", "progress"},
    {"delivery"},
    {"backends"},
    {"checking", "runpod", "idle"},
    {"runner"},
    {"handler"},
    {"web", "workers", "warmup"},
)

# What imports nothing else of ours.
ISLANDS = {"engine", "sdk"}

# A library, and the only files that may import it.
ONLY_IN = {
    "fastapi": ("comfyui/web/", "server.py"),
    "starlette": ("comfyui/web/", "server.py"),
    "uvicorn": ("comfyui/web/", "server.py"),
    "runpod": ("comfyui/workers/runpod",),
    "littlehorse": ("comfyui/workers/littlehorse",),
    "asyncpg": ("comfyui/workers/postgres",),
    "aiobotocore": ("comfyui/storage_s3.py",),
    "botocore": ("comfyui/storage_s3.py",),
    "supervisor": (),
    # One reader and two writers for all that comes from ComfyUI or a caller: nothing else reads as ComfyUI writes.
    "orjson": ("comfyui/jsonio.py",),
    # Islands; a setting; and EXIF's ASCII form of a letter, which is no JSON text of a caller.
    "json": ("comfyui/jsonio.py", "comfyui/engine/", "comfyui/sdk/", "comfyui/pictures.py", "comfyui/access.py"),
}


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(name: str) -> str | None:
    """The part of our package that a dotted name leads to."""
    parts = name.split(".")
    return parts[1] if parts[0] == "comfyui" and len(parts) > 1 else None


def floor(name: str) -> int:
    return next(index for index, rooms in enumerate(FLOORS) if name in rooms)


def core() -> list[Path]:
    return [path for path in PRODUCT if relative(path).startswith("comfyui/") and path.name != "__init__.py"]


@pytest.mark.parametrize("path", core(), ids=relative)
def test_imports_go_down_only(path: Path) -> None:
    here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert here is not None
    if here in ISLANDS:
        return
    known = set().union(*FLOORS)
    assert here in known, f"put comfyui/{here} on its floor in this test and in docs/architecture.md"
    for name in imports(path):
        there = room(name)
        if there in known and there != here:
            assert floor(there) <= floor(here), f"{here} imports {there}, which is above it"


@pytest.mark.parametrize("path", core(), ids=relative)
def test_the_core_knows_neither_settings_nor_server(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"config", "server", "client"}


@pytest.mark.parametrize("path", core(), ids=relative)
def test_an_island_imports_nothing_of_ours_and_only_the_face_of_the_sdk_imports_it(path: Path) -> None:
    """The engine and the SDK would test themselves with what they are held against."""
    here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    foreign = {name for name in imports(path) if (there := room(name)) and there != here}
    if here in ISLANDS:
        assert not foreign
    assert "sdk" not in {room(name) for name in foreign}


@pytest.mark.parametrize("path", PRODUCT, ids=relative)
def test_each_library_stays_in_the_files_named_for_it(path: Path) -> None:
    for name in imports(path):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or relative(path).startswith(allowed), f"{relative(path)} imports {name}"


def test_the_client_is_the_face_of_the_sdk() -> None:
    assert {name.partition(".")[0] for name in imports(ROOT / "client.py")} == {"sys", "comfyui"}
    assert {room(name) for name in imports(ROOT / "client.py")} == {None, "sdk"}


@pytest.mark.parametrize("path", core(), ids=relative)
def test_nobody_reads_the_environment_at_import(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        text = ast.unparse(node)
        assert "os.environ" not in text
        assert "getenv" not in text
