"""Checks that the code has the structure that docs/architecture.md describes."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from comfyui import exceptions
from comfyui.exceptions import ComfyUIError

ROOT = Path(__file__).parents[1]
PRODUCT = sorted([ROOT / "server.py", ROOT / "config.py", ROOT / "client.py", *(ROOT / "comfyui").rglob("*.py")])

# The floors, lowest first. A folder may import itself and the folders of lower floors.
# A folder's name means its own files and not its subfolders; `client`, `handler`, `warmup`, `fallback`, `web.app`
# and the entry points of the workers are single files. "ground" is every other file of comfyui/ itself.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("ground",),
    ("transport", "workflows", "jobs.journal"),
    ("workflows.convert", "jobs.webhooks"),
    ("client",),
    ("servers", "outputs.stores"),
    ("inputs", "outputs", "named"),
    ("executors",),
    ("executors.runpod",),
    ("jobs",),
    ("assets",),
    ("handler",),
    ("warmup", "fallback", "web.server", "workers"),
    ("web.front", "workers.runpod", "workers.littlehorse", "workers.postgres"),
    ("web.api", "web.comfyui", "workers.runpod_worker", "workers.littlehorse_worker", "workers.postgres_worker"),
    ("web.comfyui.hub", "web.v2", "web.openai", "web.mcp"),
    ("web.console",),
    ("web.app",),
)
_NAMED = {name for names in FLOORS for name in names}

# Modules that are longer than 400 lines, each with the reason why it is not split.
LONG = {
    "config.py": "every setting of the gateway, one after the other",
    "comfyui/exceptions.py": "every error of ours, one class after the other",
    "comfyui/client.py": "all verbs of ComfyUI in one place",
    "comfyui/models.py": "every value that crosses our boundary, with the description of each field",
    "comfyui/jobs/job.py": "one prompt from its first request to its end, with one writer",
    "comfyui/jobs/journal/memory.py": "the whole of the journal over dictionaries",
    "comfyui/servers/backend.py": "one ComfyUI server, whose health has one writer",
    "comfyui/servers/watcher.py": "a websocket and a poller that share one state",
    "comfyui/workflows/convert/widgets.py": "the editor's widgets, kind by kind",
    "comfyui/workflows/preflight.py": "ComfyUI's checks, in ComfyUI's order",
}

# Errors that are not in `comfyui/exceptions.py`, each with its reason.
OWN_ERRORS = {
    "comfyui/big_json.py": ("_NotJsonError", "raised and caught there"),
    "comfyui/inputs/fetch.py": ("_PassingError", "raised and caught there"),
    "comfyui/outputs/pictures.py": ("NotConvertedError", "runs as a program by itself, and imports nothing of ours"),
    "comfyui/outputs/zipping.py": ("_BrokenOffError", "raised and caught there"),
}

# Packages that import nothing else of ours.
ISLANDS = {"engine", "sdk"}

# A library, and the only files that may import it.
ONLY_IN = {
    "fastapi": ("comfyui/web/",),
    "starlette": ("comfyui/web/",),
    "uvicorn": ("comfyui/web/",),
    "runpod": ("comfyui/workers/runpod",),
    "littlehorse": ("comfyui/workers/littlehorse",),
    "asyncpg": ("comfyui/workers/postgres",),
    "aiobotocore": ("comfyui/outputs/stores/s3.py",),
    "botocore": ("comfyui/outputs/stores/s3.py",),
    "supervisor": (),
    "mcp": ("comfyui/web/mcp/",),
    "mcp_types": ("comfyui/web/mcp/",),
    "sse_starlette": ("comfyui/web/mcp/",),
    "jinja2": ("comfyui/web/console/pages.py",),
    # The one writer keeps comments; readers use the standard library.
    "tomlkit": ("comfyui/web/front/keys_command.py",),
    "tomllib": ("comfyui/web/front/keys_file.py", "comfyui/named/sidecar.py"),
    # All JSON of ComfyUI and of callers goes through one reader and two writers, which accept what ComfyUI writes.
    "orjson": ("comfyui/jsonio.py",),
    # The islands, a setting, and the ASCII form of letters in EXIF: none of these is JSON of a caller.
    "json": (
        "comfyui/jsonio.py",
        "comfyui/engine/",
        "comfyui/sdk/",
        "comfyui/outputs/pictures.py",
        "comfyui/address.py",
    ),
}

# Our own HTTP and its splices, and the only rooms that may import them. Others use `transport.body`, `drivers` and
# `relay`.
FENCED = {f"comfyui.transport.{name}" for name in ("connection", "framing", "http1", "splice")}
WITHIN_THE_FENCE = ("comfyui/transport/", "comfyui/web/server/")

# Modules whose classes have attributes that other modules write: which modules may, and why.
WRITTEN_BY_OTHERS = {
    "comfyui/exceptions.py": ("comfyui/", "each layer adds what it knows to an error that passes it"),
    "comfyui/sdk/errors.py": ("comfyui/sdk/", "each layer adds what it knows to an error that passes it"),
    "comfyui/workflows/convert/graph.py": ("comfyui/workflows/convert/", "the graph that the steps change in turn"),
    "comfyui/transport/connection.py": ("comfyui/transport/", "the pool keeps its notes on each connection"),
    "comfyui/web/front/request_state.py": ("comfyui/web/", "each layer adds what it found out about the request"),
}

# Objects of other packages with an attribute that one of our classes has too, by the file that writes it.
FOREIGN = {
    ("comfyui/exceptions.py", "error.args"),
    ("comfyui/transport/interim.py", "protocol.read"),
    ("comfyui/web/server/client_side.py", "cycle.expected_content_length"),
    ("comfyui/workers/littlehorse/worker.py", "result.error.message"),
}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of the modules that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(name: str) -> str | None:
    """The part of our package that a dotted name belongs to: an island, the longest match in `FLOORS`, or "ground"."""
    parts = name.split(".")
    if parts[0] != "comfyui" or len(parts) == 1:
        return None
    if parts[1] in ISLANDS:
        return parts[1]
    fits = (".".join(parts[1:end]) for end in range(len(parts), 1, -1))
    return next((fit for fit in fits if fit in _NAMED), "ground")


def floor(name: str) -> int:
    return next(index for index, names in enumerate(FLOORS) if name in names)


def core() -> list[Path]:
    return [path for path in PRODUCT if relative(path).startswith("comfyui/") and path.name != "__init__.py"]


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_imports_go_strictly_down() -> None:
    for path in core():
        here = room(dotted(path))
        assert here is not None
        if here in ISLANDS:
            continue
        assert dotted(path) in {f"comfyui.{here}", f"comfyui.{here}.{path.stem}"} or (
            here == "ground" and path.parent == ROOT / "comfyui"
        ), f"give the folder of {relative(path)} a floor of its own"
        for name in imports(path):
            there = room(name)
            if there is not None and there != here and there not in ISLANDS:
                assert floor(there) < floor(here), f"{relative(path)}: {here} imports {there}, which is not below it"


def test_no_floor_is_empty() -> None:
    assert {room(dotted(path)) for path in core()} - ISLANDS == _NAMED


def test_no_modules_import_each_other_in_a_cycle() -> None:
    known = {dotted(path): path for path in PRODUCT}
    below: dict[str, frozenset[str]] = {name: (imports(path) & known.keys()) - {name} for name, path in known.items()}
    while free := {name for name, names in below.items() if not names}:
        below = {name: names - free for name, names in below.items() if name not in free}
    assert not below


def test_every_long_module_gives_its_reason() -> None:
    long = {relative(path) for path in PRODUCT if len(path.read_text().splitlines()) > 400}
    assert long - LONG.keys() == set(), "split it, or give the reason in LONG"
    assert LONG.keys() - long == set(), "take it out of LONG"


def errors_of(path: Path) -> set[str]:
    """Names of the exception classes: their own names, or those of their bases, end in Error or Exception."""
    classes = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]
    named = {node.name: [node.name, *map(ast.unparse, node.bases)] for node in classes}
    return {name for name, names in named.items() if any(one.endswith(("Error", "Exception")) for one in names)}


def test_every_error_class_is_in_the_one_error_tree() -> None:
    paths = [path for path in PRODUCT if room(dotted(path)) not in ISLANDS and path.name != "exceptions.py"]
    found = {relative(path): errors for path in paths if (errors := errors_of(path))}
    assert found == {path: {name} for path, (name, _) in OWN_ERRORS.items()}


def test_the_drawn_error_tree_matches_the_classes() -> None:
    """Compares the parent, status, code and retryability of `ComfyUIError` and all its subclasses."""
    drawn: dict[str, tuple[str, int, str, bool]] = {}
    above: list[str] = []
    for match in re.finditer(
        r"^    ([│├└─ ]*)(\w+Error) +(\d+)  (\w+)( +retryable)?$", exceptions.__doc__ or "", re.MULTILINE
    ):
        depth = len(match[1]) // 4
        above[depth:] = [match[2]]
        drawn[match[2]] = (above[depth - 1] if depth else "Exception", int(match[3]), match[4], bool(match[5]))
    classes = [one for one in vars(exceptions).values() if isinstance(one, type) and issubclass(one, ComfyUIError)]
    assert {
        error.__name__: ((error.__base__ or error).__name__, error.status, error.code, error.retryable)
        for error in classes
    } == drawn


def test_the_core_imports_neither_settings_nor_server() -> None:
    for path in core():
        assert not {name.split(".")[0] for name in imports(path)} & {"config", "server", "client"}, relative(path)


def test_islands_import_nothing_of_ours_and_only_client_py_imports_the_sdk() -> None:
    """The engine and the SDK are what our code is tested against, so they must not share code with it."""
    for path in core():
        here = room(dotted(path))
        foreign = {name for name in imports(path) if (there := room(name)) and there != here}
        if here in ISLANDS:
            assert not foreign, relative(path)
        assert "sdk" not in {room(name) for name in foreign}, relative(path)


def test_each_library_stays_in_the_files_named_for_it() -> None:
    for path in PRODUCT:
        for name in imports(path):
            allowed = ONLY_IN.get(name.split(".")[0])
            assert allowed is None or relative(path).startswith(allowed), f"{relative(path)} imports {name}"


def test_only_transport_and_the_web_server_import_our_http() -> None:
    knowing = {relative(path) for path in PRODUCT if imports(path) & FENCED}
    assert {path for path in knowing if not path.startswith(WITHIN_THE_FENCE)} == set()


def test_every_fenced_module_exists() -> None:
    assert {dotted(path) for path in core()} >= FENCED


def test_client_py_imports_only_the_sdk() -> None:
    assert {name.partition(".")[0] for name in imports(ROOT / "client.py")} == {"sys", "comfyui"}
    assert {room(name) for name in imports(ROOT / "client.py")} == {None, "sdk"}


def test_no_module_reads_the_environment_at_import() -> None:
    for path in core():
        for node in parsed(path).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            text = ast.unparse(node)
            assert "os.environ" not in text, relative(path)
            assert "getenv" not in text, relative(path)


# Tests that patch a private name of a module, each with the reason why no option does the same.
PATCHES_OF_OURS = {
    ("tests/gateway/test_framing.py", "where"): "breaks our HTTP on purpose, to show that the suite sees it",
    (
        "tests/gateway/test_storage.py",
        "s3_store._client",
    ): "the S3 driver's client; cancels at a moment of its choosing",
}


def patched_in(path: Path) -> set[tuple[str, str]]:
    """Targets that a test file patches although they are private, or without a literal name."""
    found = set()
    for call in ast.walk(parsed(path)):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "setattr"):
            continue
        target, *rest = call.args
        attribute = str(rest[0].value) if len(rest) == 2 and isinstance(rest[0], ast.Constant) else ""
        shown = str(target.value) if isinstance(target, ast.Constant) else ast.unparse(target)
        is_unnamed = len(rest) == 1 and not isinstance(target, ast.Constant)
        if is_unnamed or any(re.match(r"_(?!_)", part) for part in f"{shown}.{attribute}".split(".")):
            found.add((relative(path), shown))
    return found


def test_tests_patch_no_private_name() -> None:
    """A patch of a private name does nothing after the name moves, or breaks unrelated tests. Tests use options."""
    found = {patched for path in sorted((ROOT / "tests").rglob("*.py")) for patched in patched_in(path)}
    assert found == set(PATCHES_OF_OURS)


def test_tests_do_not_use_unittest_mock() -> None:
    tests = (ROOT / "tests").rglob("*.py")
    assert [relative(path) for path in tests if "unittest.mock" in imports(path)] == []


def fixtures_in(tree: ast.AST) -> list[str]:
    """Names of the fixtures that a module defines itself."""
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(ast.unparse(mark).partition("(")[0].endswith("fixture") for mark in node.decorator_list)
    ]


def test_fixtures_are_defined_in_conftest_files() -> None:
    modules = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert {relative(path): names for path in modules if (names := fixtures_in(parsed(path)))} == {}


def test_the_fixture_check_finds_every_form_of_fixture() -> None:
    marks = ("@pytest.fixture(scope='module')", "@pytest_asyncio.fixture", "@pytest.mark.usefixtures('a')")
    written = "\n".join(f"{mark}\nasync def f{number}(): ..." for number, mark in enumerate(marks))
    assert fixtures_in(ast.parse(written)) == ["f0", "f1"]


def lambda_slots(tree: ast.AST) -> Iterator[int]:
    """Lines where a lambda is the value of an attribute or a default: a placeholder for a later callback."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Attribute) for target in targets) or isinstance(node, ast.AnnAssign):
                yield node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            defaults = [*node.args.defaults, *node.args.kw_defaults]
            yield from (default.lineno for default in defaults if isinstance(default, ast.Lambda))


def written(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Object, attribute and line of each assignment to an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield ast.unparse(node.value), node.attr, node.lineno


def attributes(tree: ast.AST) -> set[str]:
    """Names of the attributes of the module's classes: assigned to `self`, or declared in the class."""
    declared = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
        if isinstance(target, ast.Name)
    }
    return declared | {attribute for owner, attribute, _ in written(tree) if owner == "self"}


def written_from_outside(path: Path, tree: ast.AST, owners: Mapping[str, set[str]]) -> list[str]:
    """Assignments to attributes that only classes of other modules have; `owners` maps an attribute to its modules."""
    here = relative(path)
    found: list[str] = []
    for owner, attribute, line in written(tree):
        modules = owners.get(attribute, set())
        if owner in {"self", "cls"} or not modules or here in modules or (here, f"{owner}.{attribute}") in FOREIGN:
            continue
        if not any(here.startswith(WRITTEN_BY_OTHERS[name][0]) for name in modules & WRITTEN_BY_OTHERS.keys()):
            found.append(f"{here}:{line}: {owner}.{attribute} belongs to {', '.join(sorted(modules))}")
    return found


OURS = [path for path in PRODUCT if "engine" not in path.parts]


@functools.cache
def owners() -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for path in OURS:
        for attribute in attributes(parsed(path)):
            known.setdefault(attribute, set()).add(relative(path))
    return known


def test_no_callback_is_a_lambda_that_is_replaced_later() -> None:
    slots = {relative(path): lines for path in OURS if (lines := list(lambda_slots(parsed(path))))}
    assert slots == {}, "pass it to the constructor, as a protocol"


def test_only_a_class_itself_writes_its_attributes() -> None:
    assert [line for path in OURS for line in written_from_outside(path, parsed(path), owners())] == []


@pytest.mark.parametrize("name", WRITTEN_BY_OTHERS)
def test_every_exception_for_outside_writers_is_used(name: str) -> None:
    attributes_there = {attribute for attribute, modules in owners().items() if name in modules}
    foreign = (
        attribute
        for path in OURS
        if relative(path) != name and relative(path).startswith(WRITTEN_BY_OTHERS[name][0])
        for owner, attribute, _ in written(parsed(path))
        if owner != "self"
    )
    assert attributes_there.intersection(foreign), "take it out of WRITTEN_BY_OTHERS"


def test_the_checks_find_a_callback_slot_and_a_second_writer() -> None:
    slots = """
class Queue:
    on_taken: Callable[[], None] = lambda: None

    def __init__(self, lost=lambda: None) -> None:
        self.on_added = lambda: None
        local = lambda: None
"""
    assert sorted(lambda_slots(ast.parse(slots))) == [3, 5, 6]
    second = """
job.state = State.LOST
backend.watcher.queue_remaining, error.prompt_id = 1, None
self.state = archive.compression = 2
"""
    handler = ROOT / "comfyui/handler.py"
    assert [line.split(" belongs")[0] for line in written_from_outside(handler, ast.parse(second), owners())] == [
        "comfyui/handler.py:2: job.state",
        "comfyui/handler.py:3: backend.watcher.queue_remaining",
    ]
