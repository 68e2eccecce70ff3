"""Our conversion of UI exports against the editor's own, in a browser: node by node, input by input.

Needs a real ComfyUI (COMFYUI_TEST_URL) with its web frontend and the package comfyui-workflow-templates, a chromium
(``apt-get install --no-install-recommends chromium``, or CHROMIUM) and playwright. Each stock template is loaded into
the editor (``app.loadGraphData``) and exported (``app.graphToPrompt``), and the same file goes through `to_api_format`.

Titles (``_meta.title``, which ComfyUI ignores) are compared too, with one known difference: for a node without a title
of its own the editor writes its English translation of the class, which ``/object_info`` does not have.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from comfyui.convert import to_api_format
from comfyui.convert.links import VIRTUAL_TYPES
from comfyui.exceptions import ComfyUIValidationError

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

Json = dict[str, Any]

# Why a template's conversion differs from the editor's export, on purpose.
EXPLAINED = {
    "video_humo": "refused: RecordAudio's value is a recording of this browser; the editor exports an empty one",
}
EQUAL_SHARE = 0.95
CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
_LOAD = (
    "await app.loadGraphData(file, true, false, null, {showMissingNodesDialog: false, showMissingModelsDialog: false});"
)
EXPORT = f"""async (file) => {{
    {_LOAD}
    return JSON.stringify((await app.graphToPrompt()).output)
}}"""
# Turns random parts of a workflow into subgraphs, one inside the other, shows some inner widgets outside, and changes
# the values there. Returns the file that the editor would save.
NEST = f"""async ([file, seed]) => {{
    {_LOAD}
    const random = () => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) / 0x7fffffff
    for (let round = 0; round < 3; round++) {{
        const unfit = ['Note', 'MarkdownNote', 'PrimitiveNode']
        const picked = app.graph.nodes.filter((n) => !unfit.includes(n.type) && random() < 0.4)
        if (picked.length < 2) continue
        const {{ subgraph, node }} = app.graph.convertToSubgraph(new Set(picked))
        for (const inner of subgraph.nodes)
            for (const input of inner.inputs)
                if (input.widget && input.link == null && input.name != 'upload' && random() < 0.4)
                    subgraph.addInput(input.name + '_' + inner.id, input.type).connect(input, inner)
        for (const widget of node.widgets)
            if (typeof widget.value === 'number') widget.value += 1
            else if (typeof widget.value === 'string') widget.value += ' changed'
    }}
    return JSON.stringify(app.graph.serialize())
}}"""


class Editor:
    """ComfyUI's web frontend in a browser page, with the server's node definitions and templates beside it."""

    def __init__(self, page: Any, info: Json, templates: dict[str, Json]) -> None:
        self.page = page
        self.info = info
        self.templates = templates

    async def export(self, file: Json) -> Json:
        exported: Json = json.loads(await self.page.evaluate(EXPORT, file))
        return exported

    async def nested(self, file: Json, seed: int) -> Json:
        saved: Json = json.loads(await self.page.evaluate(NEST, [file, seed]))
        return saved

    @property
    def known(self) -> dict[str, Json]:
        """The templates of which this ComfyUI has every node class."""
        return {name: file for name, file in self.templates.items() if not _classes(file) - self.info.keys()}


def _graphs(file: Json) -> list[Json]:
    return [file, *(file.get("definitions") or {}).get("subgraphs", [])]


def _classes(file: Json) -> set[str]:
    subgraphs = {graph["id"] for graph in _graphs(file)[1:]}
    return {node["type"] for graph in _graphs(file) for node in graph["nodes"]} - subgraphs - VIRTUAL_TYPES


async def _templates(session: aiohttp.ClientSession) -> dict[str, Json]:
    async with session.get("/templates/index.json") as response:
        if response.status != 200:
            pytest.skip("this ComfyUI serves no templates: install comfyui-workflow-templates beside it")
        index = await response.json(content_type=None)
    found = {}
    for name in (template["name"] for category in index for template in category["templates"]):
        async with session.get(f"/templates/{name}.json") as response:
            found[name] = await response.json(content_type=None)
    return found


@pytest.fixture
async def editor(real_comfyui: str) -> AsyncIterator[Editor]:
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium: apt-get install --no-install-recommends chromium, or set CHROMIUM to one")
    async with aiohttp.ClientSession(real_comfyui) as session:
        templates = await _templates(session)
        async with session.get("/object_info") as response:
            info = await response.json()
    async with playwright.async_playwright() as running:
        browser = await running.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        page = await browser.new_page()
        await page.goto(real_comfyui)
        # The node classes are registered some time after the graph exists.
        await page.wait_for_function("window.LiteGraph?.registered_node_types?.SaveImage && window.app?.graph")
        yield Editor(page, info, templates)
        await browser.close()


def differences(theirs: Json, ours: Json, info: Json) -> Iterator[str]:
    """Every node and input in which two workflows in API format differ."""
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
        title, class_type = other["_meta"]["title"], other["class_type"]
        if one["_meta"]["title"] != title and title != (info[class_type]["display_name"] or class_type):
            yield f"node {node_id}: title {one['_meta']['title']!r} is {title!r} in ours"


def conversion_differences(file: Json, theirs: Json, info: Json) -> list[str]:
    try:
        converted = to_api_format(file, info)
    except ComfyUIValidationError as error:
        # Nothing left to run is an empty export for the editor and a refusal for us.
        return [f"refused: {error.detail}"] if theirs else []
    return list(differences(theirs, converted.prompt, info))


async def test_templates_are_converted_as_the_editor_exports_them(editor: Editor) -> None:
    report = {}
    for name, file in editor.known.items():
        if found := conversion_differences(file, await editor.export(file), editor.info):
            report[name] = found
    known = len(editor.known)
    print(f"\n{known - len(report)} of {known} templates with known nodes are equal ({len(editor.templates)} in all)")
    for name, found in report.items():
        print(f"{name}: {EXPLAINED.get(name, 'NOT EXPLAINED')}: {found[:3]}")
    assert known >= 50
    assert known - len(report) >= EQUAL_SHARE * known, report
    assert report.keys() <= EXPLAINED.keys(), report


def _with_other_modes(file: Json, rng: random.Random) -> Json:
    """Some nodes muted or bypassed, some values gone, and texts that the editor rewrites."""
    changed = copy.deepcopy(file)
    for node in (node for graph in _graphs(changed) for node in graph["nodes"]):
        node["mode"] = rng.choices([0, 4, 2, node.get("mode", 0)], [40, 15, 5, 40])[0]
        values = node.get("widgets_values")
        if not isinstance(values, list) or not values:
            continue
        match node["type"]:
            case "CLIPTextEncode":
                values[0] = rng.choice([values[0], "a /* b */ fox {one} \\{x|y\\} // rest\r\nnext line"])
            case "SaveImage":
                values[0] = rng.choice([values[0], "%KSampler.seed%/%date:yyyy-MM-dd%_%width%_%CLIPTextEncode.text%"])
            case "PrimitiveNode":
                values[0] = rng.choice([values[0], 7, 33333, 2.3456, -5])
            case "KSampler" | "CLIPLoader" if rng.random() < 0.2:
                values.pop()
    return changed


async def test_muted_and_bypassed_nodes_and_rewritten_texts_come_out_as_in_the_editor(editor: Editor) -> None:
    rng = random.Random(1)  # noqa: S311
    names = sorted(editor.known.keys() - EXPLAINED.keys())
    for _ in range(120):
        name = rng.choice(names)
        file = _with_other_modes(editor.templates[name], rng)
        assert not conversion_differences(file, await editor.export(file), editor.info), name


async def test_subgraphs_that_the_editor_makes_come_out_as_in_the_editor(editor: Editor) -> None:
    rng = random.Random(2)  # noqa: S311
    names = sorted(editor.known.keys() - EXPLAINED.keys())
    made = 0
    for _ in range(60):
        name = rng.choice(names)
        file = await editor.nested(editor.templates[name], rng.randrange(1 << 30))
        made += len(_graphs(file)) - 1
        assert not conversion_differences(file, await editor.export(file), editor.info), name
    assert made > 60
