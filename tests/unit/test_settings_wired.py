"""Every setting is read: otherwise it would do nothing, however well it is declared and documented."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.settings import PROCESSES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "comfyui"
# The files in which a process reads its settings. The modules below them get options.
READERS = {
    "gateway": (ROOT / "config.py", ROOT / "server.py"),
    **{
        process: (*(PACKAGE / "workers").glob("*.py"), *(PACKAGE / "workers" / process.lower()).rglob("*.py"))
        for process in PROCESSES
        if process != "gateway"
    },
}
SHARED = (PACKAGE / "settings.py", *(PACKAGE / "outputs" / "stores").glob("*.py"))
# The endings of the names of classes that are made of settings.
OPTIONS = ("Options", "Limits", "Settings")


def is_check(node: ast.AST) -> bool:
    """Whether the function is a validator, which reads a setting without using it."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any("validator" in ast.unparse(decorator) for decorator in decorators)


def read_in(tree: ast.AST) -> set[str]:
    """The attributes that are read, outside checks."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if is_check(node):
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def read_in_files(files: Iterable[Path]) -> set[str]:
    return {name for file in files for name in read_in(ast.parse(file.read_text()))}


def options_in(tree: ast.AST) -> dict[str, set[str]]:
    """The fields of each dataclass of options."""
    return {
        node.name: {
            field.target.id
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and node.name.endswith(OPTIONS)
        and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    }


def test_reads_and_options_are_found_in_source_code() -> None:
    tree = ast.parse(
        "@dataclass(frozen=True)\nclass JobOptions:\n    used: int\n    unused: int = 1\n"
        "class Fields:\n    checked: int\n    @field_validator('checked')\n    def f(self): return self.checked\n"
        "    def g(self):\n        self.written = 1\n        return JobOptions(self.used)\n"
    )
    assert options_in(tree) == {"JobOptions": {"used", "unused"}}
    assert read_in(tree) == {"used"}


@pytest.mark.parametrize("process", PROCESSES)
def test_each_setting_is_read(process: str) -> None:
    read = read_in_files((*SHARED, *READERS[process]))
    assert set(PROCESSES[process].model_fields) - read == set()


def test_each_option_that_is_made_from_settings_is_read() -> None:
    files = [ROOT / "config.py", ROOT / "server.py", *PACKAGE.rglob("*.py")]
    trees = [ast.parse(file.read_text()) for file in files if not {"engine", "sdk"} & set(file.parts)]
    read = {name for tree in trees for name in read_in(tree)}
    options = {name: fields for tree in trees for name, fields in options_in(tree).items()}
    assert len(options) > 20
    assert {name: fields - read for name, fields in options.items() if fields - read} == {}
