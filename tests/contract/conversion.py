"""Counts how many of ComfyUI's own templates and blueprints we convert as its editor exports them.

    COMFYUI_TEST_URL=http://127.0.0.1:8188 python -m tests.contract.conversion

Needs a ComfyUI that serves its web frontend (``--front-end-root`` names the ``static`` folder of another
comfyui-frontend-package), chromium (``apt-get install --no-install-recommends chromium``, or CHROMIUM) and playwright.
The files are read from two packages where they are installed: comfyui-workflow-templates-json (4 MB, 31 MB unpacked)
and comfyui-subgraph-blueprints (1 MB, 6 MB unpacked). Each file whose node classes are known is loaded into the editor
(``app.loadGraphData``), exported (``app.graphToPrompt``), and converted by `to_api_format`.

``--definitions FILE`` adds node definitions, in the form of ``/object_info``, for the editor and for us, so that newer
nodes can be measured with an older ComfyUI. ``--bench`` only converts, and prints the slowest files.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp

from comfyui.exceptions import ComfyUIValidationError
from comfyui.workflows.convert import to_api_format
from comfyui.workflows.convert.virtual import VIRTUAL_TYPES

Json = dict[str, Any]

PACKAGES = ("comfyui_workflow_templates_json", "comfyui_subgraph_blueprints")
INSTALL = "pip install comfyui-workflow-templates-json comfyui-subgraph-blueprints"
CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
LOAD = """
    await app.loadGraphData(file, true, false, null, {showMissingNodesDialog: false, showMissingModelsDialog: false});
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
"""
EXPORT = f"""async (file) => {{
    {LOAD}
    return JSON.stringify((await app.graphToPrompt()).output)
}}"""
_REASONS = (
    ("only a browser can make", "the value is made by a browser"),
    ("does not offer", "an option that this ComfyUI does not have"),
    ("is not installed", "a node class that is not installed"),
    ("exists only in the editor", "a node that exists only in the editor"),
    ("a script of its node pack", "a widget of a node pack's script"),
    ("straight to an output", "a subgraph that the editor cannot export either"),
    ("Nothing is left to run", "nothing to run"),
)


def installed_files() -> dict[str, Json]:
    """All workflows of the installed packages, by file name; empty if no package is installed."""
    found: dict[str, Json] = {}
    for package in PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).rglob("*.json")):
                content = json.loads(path.read_text())
                if isinstance(content, dict) and isinstance(content.get("nodes"), list):
                    found[f"{package}/{path.stem}"] = content
    return found


def graphs(file: Json) -> list[Json]:
    return [file, *(file.get("definitions") or {}).get("subgraphs", [])]


def classes(file: Json) -> set[str]:
    subgraphs = {str(graph["id"]) for graph in graphs(file)[1:]}
    return {str(node["type"]) for graph in graphs(file) for node in graph["nodes"]} - subgraphs - VIRTUAL_TYPES


class Editor:
    """ComfyUI's web frontend in a browser page, with the node definitions that it has."""

    def __init__(self, page: Any, info: Json) -> None:
        self.page = page
        self.info = info

    async def export(self, file: Json) -> Json:
        exported: Json = json.loads(await self.page.evaluate(EXPORT, file))
        return exported


def chromium() -> str | None:
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


async def object_info(url: str) -> Json:
    async with aiohttp.ClientSession(url) as session, session.get("/object_info") as response:
        info: Json = await response.json()
    return info


@asynccontextmanager
async def open_editor(url: str, more_definitions: Mapping[str, Any] | None = None) -> AsyncIterator[Editor]:
    from playwright.async_api import async_playwright

    info = {**await object_info(url), **(more_definitions or {})}
    async with async_playwright() as running:
        browser = await running.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = await browser.new_page(viewport={"width": 320, "height": 200})
        if more_definitions:
            await page.route("**/object_info", lambda route: route.fulfill(json=info))
        # A template's pictures and films do not exist here, and drawing takes most of the time.
        await page.route(re.compile(r"/view\?"), lambda route: route.abort())
        await page.goto(url)
        # The editor registers the node classes some time after it makes the graph.
        await page.wait_for_function("window.LiteGraph?.registered_node_types?.SaveImage && window.app?.graph")
        await page.wait_for_timeout(2000)
        await page.evaluate("app.canvas.draw = () => {}")
        yield Editor(page, info)
        await browser.close()


def differences(theirs: Json, ours: Json) -> Iterator[str]:
    """Every node and input in which two workflows in API format differ; titles are not compared."""
    ours = json.loads(json.dumps(ours))
    for node_id in sorted(theirs.keys() | ours.keys()):
        if node_id not in theirs or node_id not in ours:
            yield f"node {node_id} is only in {'ours' if node_id in ours else 'theirs'}"
            continue
        one, other = theirs[node_id], ours[node_id]
        if one["class_type"] != other["class_type"]:
            yield f"node {node_id}: class {one['class_type']} is {other['class_type']} in ours"
            continue
        for name in sorted(one["inputs"].keys() | other["inputs"].keys()):
            expected, value = one["inputs"].get(name, "nothing"), other["inputs"].get(name, "nothing")
            if expected != value:
                yield f"node {node_id} ({one['class_type']}): {name} is {expected!r:.120}, {value!r:.120} in ours"


@dataclass(slots=True)
class Shares:
    """The result for each file. Files in `told` differ only in nodes that a warning names."""

    equal: list[str] = field(default_factory=list)
    nulls: list[str] = field(default_factory=list)
    """Files that differ only where the editor sends null for a subgraph's widget, which ComfyUI refuses."""
    told: dict[str, list[str]] = field(default_factory=dict)
    silent: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str | None] = field(default_factory=dict)
    """Files with unknown node classes: why they are refused, or None if these nodes do not run."""
    not_exported: dict[str, str] = field(default_factory=dict)
    """Files that the editor itself cannot export, with its error."""

    @property
    def measured(self) -> int:
        return len(self.equal) + len(self.nulls) + len(self.told) + len(self.silent) + len(self.refused)

    def add(self, name: str, file: Json, theirs: Json, info: Json) -> None:
        try:
            converted = to_api_format(file, info)
        except ComfyUIValidationError as error:
            if theirs or "Nothing is left to run" not in error.detail:
                self.refused[name] = error.detail
            else:
                self.equal.append(name)
            return
        found = list(differences(theirs, converted.prompt))
        told = all(_is_told(difference, converted.warnings) for difference in found)
        if not found:
            self.equal.append(name)
        elif told and all(" is None, " in difference for difference in found):
            self.nulls.append(name)
        elif told:
            self.told[name] = found
        else:
            self.silent[name] = found

    def report(self) -> Iterator[str]:
        total = max(self.measured, 1)
        yield f"{len(self.equal)} of {self.measured} equal ({len(self.equal) / total:.1%})"
        yield f"{len(self.nulls)} equal but for a null that the editor sends and ComfyUI refuses, with a warning"
        yield f"{len(self.silent)} silently different"
        yield f"{len(self.told)} different where a warning names the node"
        yield f"{len(self.refused)} refused"
        for reason, count in Counter(map(reason_of, self.refused.values())).most_common():
            yield f"    {count} {reason}"
        yield f"{len(self.unknown)} with node classes that are not known:"
        reasons = [
            reason_of(detail) if detail else "converted, because these nodes do not run"
            for detail in self.unknown.values()
        ]
        yield from (f"    {count} {reason}" for reason, count in Counter(reasons).most_common())
        for title, found in (("SILENT", self.silent), ("told", self.told)):
            for name, difference in found.items():
                yield f"{title} {name}: {difference[:3]}"
        for name, error in self.not_exported.items():
            yield f"the editor fails at {name}: {error:.120}"


def _is_told(difference: str, warnings: Sequence[str]) -> bool:
    """True if a warning names the node of a difference, also by its id within a subgraph."""
    found = re.match(r"node (\S+?)(?: |:(?= ))", difference)
    ids = {found[1], found[1].rsplit(":", 1)[-1], found[1].split(":", 1)[0]} if found else set()
    return any(
        warning.startswith(tuple(f"node {node_id}{end}" for node_id in ids for end in " :")) for warning in warnings
    )


def refusal_of(file: Json, info: Json) -> str | None:
    try:
        to_api_format(file, info)
    except ComfyUIValidationError as error:
        return error.detail
    return None


def reason_of(detail: str) -> str:
    return next((reason for sign, reason in _REASONS if sign in detail), detail[:100])


async def measure(url: str, more_definitions: Mapping[str, Any] | None = None) -> tuple[Shares, int]:
    """The shares of all installed files with known node classes, and the number of all files."""
    shares, files = Shares(), installed_files()
    async with open_editor(url, more_definitions) as editor:
        for name, file in files.items():
            if classes(file) - editor.info.keys():
                shares.unknown[name] = refusal_of(file, editor.info)
                continue
            try:
                theirs = await editor.export(file)
            except Exception as error:
                shares.not_exported[name] = str(error)
                continue
            shares.add(name, file, theirs, editor.info)
    return shares, len(files)


def bench(info: Json, repeats: int = 5) -> list[tuple[float, str, int]]:
    """Each file's best time in milliseconds, its name and the nodes in its prompt; the slowest file first."""
    times = []
    for name, file in installed_files().items():
        best, nodes = float("inf"), 0
        for _ in range(repeats):
            started = time.perf_counter()
            try:
                nodes = len(to_api_format(file, info).prompt)
            except ComfyUIValidationError:
                break
            best = min(best, (time.perf_counter() - started) * 1000)
        if nodes:
            times.append((best, name, nodes))
    return sorted(times, reverse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--definitions", type=Path, help="a file with more node definitions")
    parser.add_argument("--bench", action="store_true", help="only convert, and print the slowest files")
    given = parser.parse_args()
    url = os.environ.get("COMFYUI_TEST_URL")
    if not url or not installed_files():
        print(f"skipped: set COMFYUI_TEST_URL to a ComfyUI, and install the files:\n    {INSTALL}")
        return 0
    more = json.loads(given.definitions.read_text()) if given.definitions else {}
    if given.bench:
        info = {**asyncio.run(object_info(url)), **more}
        for milliseconds, name, nodes in bench(info)[:5]:
            print(f"{milliseconds:6.1f} ms  {nodes:4} nodes  {name}")
        return 0
    if not chromium() or not find_spec("playwright"):
        print("skipped: apt-get install --no-install-recommends chromium; pip install playwright")
        return 0
    shares, total = asyncio.run(measure(url, more))
    print(f"{total} files of {' and '.join(PACKAGES)}")
    for line in shares.report():
        print(line)
    return 1 if shares.silent else 0


if __name__ == "__main__":
    sys.exit(main())
