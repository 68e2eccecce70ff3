"""A setting that nobody reads does nothing, however well it is declared, checked and documented."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pytest

from comfyui.limits import Limits
from tests.support.settings import PROCESSES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "comfyui"
# Where a process reads its settings; below that there are options.
READERS = {
    "gateway": (ROOT / "config.py", ROOT / "server.py"),
    **{
        process: (*(PACKAGE / "workers").glob("*.py"), *(PACKAGE / "workers" / process.lower()).rglob("*.py"))
        for process in PROCESSES
        if process != "gateway"
    },
}
SHARED = (PACKAGE / "settings.py", *(PACKAGE / "outputs" / "stores").glob("*.py"))
# `Settings.limits` reads all of these by the names of the fields.
BY_NAME = {field.name for field in dataclasses.fields(Limits)}
# What is made of settings.
OPTIONS = ("Options", "Limits", "Settings")


def is_check(node: ast.AST) -> bool:
    """A validator reads a setting and does nothing with it."""
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


def test_reading_and_options_are_found() -> None:
    tree = ast.parse(
        "@dataclass(frozen=True)\nclass JobOptions:\n    used: int\n    unused: int = 1\n"
        "class Fields:\n    checked: int\n    @field_validator('checked')\n    def f(self): return self.checked\n"
        "    def g(self):\n        self.written = 1\n        return JobOptions(self.used)\n"
    )
    assert options_in(tree) == {"JobOptions": {"used", "unused"}}
    assert read_in(tree) == {"used"}


@pytest.mark.parametrize("process", PROCESSES)
def test_each_setting_is_read(process: str) -> None:
    read = read_in_files((*SHARED, *READERS[process])) | BY_NAME
    assert set(PROCESSES[process].model_fields) - read == set()


def test_each_option_that_is_made_of_settings_is_read() -> None:
    files = [ROOT / "config.py", ROOT / "server.py", *PACKAGE.rglob("*.py")]
    trees = [ast.parse(file.read_text()) for file in files if not {"engine", "sdk"} & set(file.parts)]
    read = {name for tree in trees for name in read_in(tree)}
    options = {name: fields for tree in trees for name, fields in options_in(tree).items()}
    assert len(options) > 20
    assert {name: fields - read for name, fields in options.items() if fields - read} == {}
