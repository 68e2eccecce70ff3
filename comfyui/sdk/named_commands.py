"""``workflows list|show|run``: named workflows on the command line."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from comfyui.sdk.client import GatewayClient
from comfyui.sdk.commands import run_shown
from comfyui.sdk.display import plain
from comfyui.sdk.named import WorkflowDetails, WorkflowSummary
from comfyui.sdk.outcome import Exit, Outcome
from comfyui.sdk.workflow_files import UsageError


async def list_workflows(gateway: GatewayClient, _options: argparse.Namespace) -> Outcome:
    found = await gateway.named.list()
    report: RenderableType = _table_of(found) if found else "There are no named workflows."
    document = {"workflows": [{"name": one.name, "title": one.title, "problem": one.problem} for one in found]}
    return Outcome(Exit.OK, document, [report])


async def show(gateway: GatewayClient, options: argparse.Namespace) -> Outcome:
    found = await gateway.named.show(options.name)
    return Outcome(Exit.OK, found.body, _shown(found))


async def run(gateway: GatewayClient, options: argparse.Namespace) -> Outcome:
    """The same as `run` for a graph: waits, saves the files; Ctrl-C cancels it."""
    parameters = await asyncio.to_thread(_parameters, options.set, options.file)
    return await run_shown(
        gateway,
        options,
        lambda prompt_id: gateway.named.stream(
            options.name, parameters, timeout_s=options.timeout, prompt_id=prompt_id
        ),
    )


def _parameters(values: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """The parameters in `--set` and `--file`. Raises UsageError."""
    found: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        is_json = name.endswith(":")
        name = name.removesuffix(":")
        if not (equals and name):
            raise UsageError(f"--set {text}: expected NAME=TEXT, such as prompt='a red fox', or NAME:=JSON")
        _add(found, name, _json(name, value) if is_json else value)
    for text in files:
        name, equals, path = text.partition("=")
        if not (equals and name and path):
            raise UsageError(f"--file {text}: expected NAME=FILE, such as image=~/photo.png")
        try:
            _add(found, name, Path(path).expanduser().read_bytes())
        except OSError as error:
            raise UsageError(f"--file {name}: {path}: {error.strerror or error}") from error
    return found


def _add(found: dict[str, Any], name: str, value: Any) -> None:
    if name in found:
        raise UsageError(f"{name} must not be given twice")
    found[name] = value


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"--set {name}:= must be followed by JSON: {error}") from error


def _table_of(found: Sequence[WorkflowSummary]) -> Table:
    """A row for each, without borders, so that awk reads it too."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    for name in ("title", "parameters"):
        table.add_column(name, overflow="fold")
    for one in found:
        told = ", ".join(one.parameters) if one.problem is None else f"cannot be called: {one.problem}"
        style = "" if one.problem is None else "red"
        table.add_row(*(Text(plain(cell), style=style) for cell in (one.name, one.title, told)))
    return table


def _shown(found: WorkflowDetails) -> list[RenderableType]:
    report: list[RenderableType] = [Text(plain(f"{found.title} ({found.name}, version {found.version[:12]})"))]
    if found.description:
        report.append(Text(plain(found.description)))
    table = Table("parameter", "type", "default", "what it is")
    required = found.parameters.get("required", ())
    for name, schema in found.parameters["properties"].items():
        default = "required" if name in required else json.dumps(schema["default"]) if "default" in schema else ""
        table.add_row(*(Text(plain(cell)) for cell in (name, _type_of(schema), default, schema.get("description", ""))))
    report.append(table)
    if found.outputs:
        report.append(Text(plain(f"outputs: {', '.join(found.outputs)}")))
    lacking = [f"{server} lacks: {'; '.join(lacks)}" for server, lacks in found.missing.items() if lacks]
    report += [Text(plain(line), style="yellow") for line in lacking]
    return report


def _type_of(schema: Mapping[str, Any]) -> str:
    """The type in words: with its limits, its first choices, or the medium of a file."""
    if "anyOf" in schema:
        return " or ".join(_type_of(one) for one in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        shown = ", ".join(str(choice) for choice in schema["enum"][:5])
        return f"{shown}, …" if len(schema["enum"]) > 5 else shown
    if "x-medium" in schema:
        return f"file ({schema['x-medium']})"
    kind = schema.get("type", "any")
    limits = [f"{word} {schema[key]}" for word, key in (("from", "minimum"), ("to", "maximum")) if key in schema]
    return " ".join([kind if isinstance(kind, str) else "any", *limits])
