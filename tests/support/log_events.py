"""Finds every line that the gateway and its workers can log, by reading the source.

It leaves out `comfyui/engine/`, which logs ComfyUI's own texts, and the lines of libraries.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "critical": "critical"}
_METHODS = _LEVELS | {"exception": "error", "log": ""}
_NUMBERS = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
# structlog itself uses this argument: it becomes the traceback.
_NOT_FIELDS = {"exc_info"}


@dataclass(slots=True)
class LogLine:
    """One event with its levels, loggers and fields, from all places that log it."""

    levels: set[str] = field(default_factory=set)
    loggers: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


def log_lines(root: Path) -> dict[str, LogLine]:
    """Every event by its name.

    Raises:
        AssertionError: a call's event, level or fields cannot be read from the source, or no call of a logger is found.
    """
    found: dict[str, LogLine] = {}
    for path in [root / "server.py", *sorted((root / "comfyui").rglob("*.py"))]:
        if "engine" not in path.relative_to(root).parts and "get_logger" in (text := path.read_text()):
            _File(path.relative_to(root), text).add_to(found)
    return found


class _File:
    def __init__(self, path: Path, text: str) -> None:
        self._where = str(path)
        self._module = ".".join(path.with_suffix("").parts)
        self._tree = ast.parse(text)
        # The logger's name and its bound fields, by the name of the variable: `_log`, `self._log` or `log`.
        self._loggers: dict[str, tuple[str, set[str]]] = {}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Assign) and (made := self._made(node.value)) is not None:
                self._loggers[ast.unparse(node.targets[0])] = made

    def add_to(self, found: dict[str, LogLine]) -> None:
        calls = 0
        for function in ast.walk(self._tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for call in _own_calls(function):
                    calls += self._add(call, function, found)
        assert calls or not self._loggers, f"{self._where}: found no call of this logger"

    def _add(self, call: ast.Call, function: ast.AST, found: dict[str, LogLine]) -> bool:
        methods = self._methods(call.func, function)
        if not methods:
            return False
        where = f"{self._where}:{call.lineno}"
        first, *rest = call.args
        for logger, method in methods:
            name, bound = self._loggers.get(logger) or self._made(ast.parse(logger, mode="eval").body) or ("", set())
            levels = {_METHODS[method]}
            event = first
            if method == "log":
                levels = {_NUMBERS[int(number)] for number in _constants(first, function, where)}
                event = rest[0]
            for text in _constants(event, function, where):
                line = found.setdefault(str(text), LogLine())
                line.levels |= levels
                line.loggers.add(name)
                line.fields |= bound | {key for word in call.keywords for key in _keys(word, function, where)}
        return True

    def _made(self, value: ast.expr) -> tuple[str, set[str]] | None:
        """The name and the bound fields of the logger that an expression makes, or None if it makes none."""
        if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
            return None
        if value.func.attr == "bind" and (made := self._made(value.func.value)) is not None:
            return made[0], made[1] | {word.arg for word in value.keywords if word.arg}
        if ast.unparse(value.func) != "structlog.get_logger":
            return None
        name = value.args[0]
        return (str(name.value) if isinstance(name, ast.Constant) else self._module), set()

    def _methods(self, called: ast.expr, function: ast.AST) -> set[tuple[str, str]]:
        """Each logger, as it is written, and the method that a call may reach; a local name may have two values."""
        if isinstance(called, ast.Name):
            return {pair for value in _assigned(called.id, function) for pair in self._methods(value, function)}
        if isinstance(called, ast.IfExp):
            return self._methods(called.body, function) | self._methods(called.orelse, function)
        if isinstance(called, ast.Attribute) and called.attr in _METHODS:
            logger = ast.unparse(called.value)
            if logger in self._loggers or self._made(called.value) is not None:
                return {(logger, called.attr)}
        return set()


def _own_calls(function: ast.AST) -> Iterator[ast.Call]:
    """The calls in a function, without those in the functions that it defines."""
    for child in ast.iter_child_nodes(function):
        if isinstance(child, ast.Call):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _own_calls(child)


def _assigned(name: str, function: ast.AST) -> Iterator[ast.expr]:
    """Every expression that a function assigns to a local name."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and target.id == name:
                yield node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
                yield from (value for one, value in pairs if isinstance(one, ast.Name) and one.id == name)


def _constants(node: ast.expr, function: ast.AST, where: str) -> set[str | int]:
    """Each value that an expression can have."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return _constants(node.body, function, where) | _constants(node.orelse, function, where)
    if isinstance(node, ast.Name):
        found = {one for value in _assigned(node.id, function) for one in _constants(value, function, where)}
        assert found, f"{where}: {node.id} is not assigned in this function; write its values where the line is logged"
        return found
    if isinstance(node, ast.JoinedStr):
        texts = {""}
        for part in node.values:
            value = part.value if isinstance(part, ast.FormattedValue) else part
            texts = {text + str(one) for text in texts for one in _constants(value, function, where)}
        return set(texts)
    raise AssertionError(f"{where}: {ast.unparse(node)} cannot be read from the source")


def _keys(word: ast.keyword, function: ast.AST, where: str) -> set[str]:
    if word.arg is not None:
        return {word.arg} - _NOT_FIELDS
    assert isinstance(word.value, ast.Name), f"{where}: fields that cannot be read from the source"
    name = word.value.id
    dicts = [value for value in _assigned(name, function) if isinstance(value, ast.Dict)]
    assert dicts, f"{where}: {name} is no dict of this function"
    keys = {str(key.value) for value in dicts for key in value.keys if isinstance(key, ast.Constant)}
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == name and isinstance(node.ctx, ast.Store):
            keys |= {str(key) for key in _constants(node.slice, function, where)}
    return keys
