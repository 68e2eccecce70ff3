"""Our conversion of UI exports against the editor's own in a browser: node by node, input by input.

`tests.contract.conversion` says what this needs and measures.
"""

from __future__ import annotations

import copy
import json
import random

import pytest

from tests.contract.conversion import (
    LOAD,
    Editor,
    Json,
    Shares,
    classes,
    graphs,
    installed_files,
    measure,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

EQUAL_SHARE = 0.98
# Turns random parts of a workflow into nested subgraphs, exposes some inner widgets, and changes their values.
# Returns the file that the editor would save.
NEST = f"""async ([file, seed]) => {{
    {LOAD}
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


async def _nested(editor: Editor, file: Json, seed: int) -> Json:
    saved: Json = json.loads(await editor.page.evaluate(NEST, [file, seed]))
    return saved


def _known(editor: Editor) -> dict[str, Json]:
    """The files for which this ComfyUI has every node class."""
    return {name: file for name, file in installed_files().items() if not classes(file) - editor.info.keys()}


async def test_templates_and_blueprints_are_converted_as_the_editor_exports_them(real_editor: str) -> None:
    shares, _ = await measure(real_editor)
    print("\n".join(shares.report()))
    assert shares.measured >= 50
    assert not shares.silent
    assert len(shares.equal) + len(shares.nulls) >= EQUAL_SHARE * (shares.measured - len(shares.refused))


def _with_other_modes(file: Json, rng: random.Random) -> Json:
    """A copy with some nodes muted or bypassed, some values missing, and texts that the editor rewrites."""
    changed = copy.deepcopy(file)
    for node in (node for graph in graphs(changed) for node in graph["nodes"]):
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


async def test_muted_and_bypassed_nodes_and_rewritten_texts_convert_as_in_the_editor(editor: Editor) -> None:
    rng = random.Random(1)  # noqa: S311
    files = _known(editor)
    shares = Shares()
    for number in range(120):
        name = rng.choice(sorted(files))
        file = _with_other_modes(files[name], rng)
        shares.add(f"{name} {number}", file, await editor.export(file), editor.info)
    assert not shares.silent
    assert len(shares.equal) > 60


async def test_subgraphs_made_by_the_editor_convert_as_in_the_editor(editor: Editor) -> None:
    rng = random.Random(2)  # noqa: S311
    files = _known(editor)
    shares, made = Shares(), 0
    for number in range(60):
        name = rng.choice(sorted(files))
        file = await _nested(editor, files[name], rng.randrange(1 << 30))
        made += len(graphs(file)) - len(graphs(files[name]))
        shares.add(f"{name} {number}", file, await editor.export(file), editor.info)
    assert not shares.silent
    assert made > 60
