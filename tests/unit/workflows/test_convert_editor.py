"""Conversions of small files compared with the exports of the editor (1.58.1), measured in a browser.

``data/editor`` has the files, each with its export, and the node definitions that they need. `OURS` has the right
values that differ from the export on purpose; a warning names their nodes. ``python -m tests.contract.conversion``
measures many more files.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from comfyui.exceptions import ComfyUIValidationError
from comfyui.workflows.convert import ConvertedWorkflow, to_api_format
from tests.support.damage import damaged

Json = dict[str, Any]

DATA = Path(__file__).parent / "data" / "editor"


def _read(name: str) -> Json:
    found: Json = json.loads((DATA / name).read_text())
    return found


DEFINITIONS = _read("definitions.json")
CASES = {**_read("given.json"), **_read("measured.json")}

# Our values of the inputs, by node id and name, for which the editor's export is wrong: it exports null, which
# ComfyUI refuses, it lacks the node packs that make the links, or it loses links.
OURS: dict[str, dict[tuple[str, str], Any]] = {
    "proxy_widgets_null": {("3:10", "height"): 40, ("3:10", "color"): 255},
    "px_two": {("5:10", "height"): 40},
    "r06_use_everywhere": {("3", "images"): ["1", 0]},
    "r07_set_get": {("4", "images"): ["1", 0]},
    "dyn_linked_widget": {("1", "mode.in.w"): ["2", 0]},
    "dyn_stale_link": {("1", "p"): "p"},
    "sub_stale_slot": {("3:10", "width"): 96},
    "sub_widget_two_levels": {("5:20:10", "width"): 11},
    "sub_same_twice_nested": {
        ("3:20:10", "width"): 11,
        ("3:21:10", "width"): 12,
        ("4:20:10", "width"): 11,
        ("4:21:10", "width"): 12,
    },
}
# Nodes without a class in ComfyUI, which the editor exports only because it lacks their pack's script.
NOT_NODES = {"r07_set_get": {"2", "3"}}
REFUSED = {"r19_subgraph_pass_through": "links an input straight to an output"}


def convert(name: str) -> ConvertedWorkflow:
    return to_api_format(copy.deepcopy(CASES[name]["workflow"]), DEFINITIONS)


def inputs_by_node(prompt: Json) -> dict[str, tuple[str, Json]]:
    """The class and the inputs of each node as JSON values, without the titles, which are ours."""
    parsed = json.loads(json.dumps(prompt))
    return {node_id: (node["class_type"], node["inputs"]) for node_id, node in parsed.items()}


@pytest.mark.parametrize("name", sorted(CASES.keys() - REFUSED.keys()))
def test_the_result_equals_the_editors_export(name: str) -> None:
    expected = inputs_by_node(CASES[name]["expected"])
    for node_id in NOT_NODES.get(name, ()):
        del expected[node_id]
    for (node_id, input_name), value in OURS.get(name, {}).items():
        expected[node_id][1][input_name] = value
    assert inputs_by_node(convert(name).prompt) == expected


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_file_that_the_editor_cannot_export_is_refused(name: str) -> None:
    assert "ERROR" in CASES[name]["expected"]
    with pytest.raises(ComfyUIValidationError, match=REFUSED[name]):
        convert(name)


def test_all_measured_files_are_present() -> None:
    assert len(_read("given.json")) == 38
    assert OURS.keys() | REFUSED.keys() | NOT_NODES.keys() <= CASES.keys()


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("r12_nested_muted_subgraph", "node 3:10 (leaf): it is muted, but the editor exports what is inside"),
        ("r12_nested_bypassed_subgraph", "node 3:10 (leaf): it is bypassed, but the editor exports"),
        ("r23_old_ksampler_no_control", "node 4 (KSampler): the file stores 6 values for 7 widgets, so denoise kept"),
        ("r23_old_ksampler_no_control", "node 4 (KSampler): cfg got 'euler', which is not of the type FLOAT"),
        ("r43_type_strings", "node 1 (H2T_STRINGS): the file stores 3 values for 2 widgets, so 11 was left out"),
        ("r50_duplicate_node_ids", "node 1: two nodes have this id; the first (EmptyImage) keeps it"),
        (
            "dup_sub",
            "node 10: two nodes have this id; the first (EmptyImage) keeps it, the second (EmptyImage) is left",
        ),
        ("dup_out", "node 2: two nodes have this id"),
        ("dyn_linked_widget", "node 1 (XNest): the editor loses the links to mode.in.w"),
        ("dyn_stale_link", "node 1 (XFlux0): the link to model.images.image_1 is left out"),
        ("sub_stale_slot", "node 3 (sub): it no longer has the input old, so the link to it is left out"),
        ("sub_widget_two_levels", "node 5 (sub): it stores null for width, so the value inside the subgraph is used"),
        ("sub_same_twice_nested", "node 20 (sub): it has values that the editor forgets when it loads the file"),
        (
            "proxy_widgets_null",
            "node 3 (blank): it stores null for height, color, so the value inside the subgraph is used",
        ),
        ("grp_muted", "node 3 (grp): the editor turns this group node into a subgraph that runs"),
        ("link_unreferenced", "node 3 (EmptyImage): no input names the link from node 2; it is taken for width"),
        ("px_unlisted", "node 3 (sub): it does not say which of its values is that of width"),
        ("px_missing", "node 3 (sub): it stores 6 for height of node 99"),
        ("px_toomany", "node 4 (sub): it stores 3 values for 1 widgets"),
        (
            "px_linked_inside",
            "node 3 (sub): it shows height of node 10, so the link to it inside the subgraph is ignored",
        ),
    ],
)
def test_a_warning_names_the_node(name: str, warning: str) -> None:
    warnings = convert(name).warnings
    assert any(found.startswith(warning) for found in warnings), warnings


@pytest.mark.parametrize(
    "name",
    [
        *("subgraph_muted_with_output_inside", "subgraph_bypassed_in_chain", "proxy_widgets_plain_two_instances"),
        *("r02_dyncombo_optional", "r03_dyncombo_b_linked", "r04_autogrow", "r06_use_everywhere", "r07_set_get"),
        *("r28_custom_combo", "r30_save_image_advanced", "r21_group_node", "r43_type_curve"),
    ],
)
def test_an_unambiguous_file_gives_no_warning(name: str) -> None:
    assert convert(name).warnings == ()


def test_links_that_the_editor_misplaces_are_kept_with_a_warning() -> None:
    """The editor keeps only two links of growing inputs inside an option, and moves further links to other inputs."""
    workflow = copy.deepcopy(CASES["XFlux1_2"]["workflow"])
    flux = workflow["nodes"][-1]
    flux["inputs"][2]["link"] = 3
    workflow["links"].append([3, 101, 0, 1, 2, "IMAGE"])
    converted = to_api_format(workflow, DEFINITIONS)
    assert converted.prompt["1"]["inputs"]["model.images.image_3"] == ["101", 0]
    assert converted.prompt["1"]["inputs"]["model"] == "a"
    assert "node 1 (XFlux1): the editor loses the links to model.images.image_3" in converted.warnings[0]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_and_definitions_are_converted_or_refused_without_a_crash(seed: int) -> None:
    rng = Random(seed)  # noqa: S311
    odd = {name: damaged(found, rng, replaced=0.03, lost=0.01) for name, found in DEFINITIONS.items()}
    odd = {name: found for name, found in odd.items() if isinstance(found, dict)}
    converted = 0
    for case in CASES.values():
        workflow = {key: damaged(value, rng, replaced=0.03, lost=0.01) for key, value in case["workflow"].items()}
        for definitions in (DEFINITIONS, odd):
            try:
                converted += len(to_api_format(workflow, definitions).prompt) > 0
            except ComfyUIValidationError:
                continue
    assert converted > len(CASES) / 2
