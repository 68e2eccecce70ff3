"""Graph helpers: checks before ComfyUI sees a workflow, and changes that make a cached workflow run again."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from comfyui.exceptions import ComfyUIValidationError
from comfyui.workflows.api_format import (
    check_api_format,
    defeat_cache,
    is_ui_format,
    last_nodes,
    media_widgets,
    node_order,
    node_title,
    upload_inputs,
)

PROMPT: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "My photo"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "10": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
}


def test_a_workflow_in_api_format_is_accepted() -> None:
    check_api_format(PROMPT)


def test_an_empty_workflow_is_refused() -> None:
    with pytest.raises(ComfyUIValidationError, match="empty"):
        check_api_format({})


def test_a_ui_export_is_refused_with_the_way_to_export_or_convert_it() -> None:
    export = {"nodes": [{"id": 1, "type": "SaveImage"}], "links": [], "version": 0.4}
    assert is_ui_format(export)
    with pytest.raises(ComfyUIValidationError) as caught:
        check_api_format(export)
    assert "Workflow > Export (API)" in caught.value.detail
    assert "POST /convert" in caught.value.detail


def test_a_workflow_with_a_node_of_the_id_nodes_is_no_ui_export() -> None:
    assert not is_ui_format({"nodes": {"class_type": "SaveImage", "inputs": {}}})


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("SaveImage", "must be an object"),
        ({"inputs": {}}, "no class_type"),
        ({"class_type": 3, "inputs": {}}, "no class_type"),
        ({"class_type": "SaveImage"}, "inputs of SaveImage must be an object"),
        ({"class_type": "SaveImage", "inputs": []}, "inputs of SaveImage must be an object"),
    ],
)
def test_every_malformed_node_is_named(node: object, message: str) -> None:
    with pytest.raises(ComfyUIValidationError) as caught:
        check_api_format({**PROMPT, "7": node, "8": None})
    assert set(caught.value.node_errors) == {"7", "8"}
    assert message in caught.value.node_errors["7"][0]


def test_a_node_is_named_by_its_title_or_its_class_or_its_id() -> None:
    assert [node_title(PROMPT, node_id) for node_id in ("1", "2", "99")] == ["My photo", "ImageInvert", "99"]


def test_nodes_are_ordered_by_the_value_of_their_ids() -> None:
    assert node_order(["10", "9", "12:3", "12", "100", "12:10:1", "a", "3.0.2"]) == [
        *("3.0.2", "9", "10", "12", "12:3", "12:10:1", "100", "a"),
    ]


def test_defeating_the_cache_changes_only_the_chosen_nodes_and_not_the_original() -> None:
    before = copy.deepcopy(PROMPT)
    again = defeat_cache(PROMPT, "token", ["10"])
    assert before == PROMPT
    assert again["1"] == PROMPT["1"]
    assert again["2"] == PROMPT["2"]
    assert again["10"]["inputs"].items() >= PROMPT["10"]["inputs"].items()
    assert again["10"] != PROMPT["10"]
    assert again["10"] != defeat_cache(PROMPT, "other", ["10"])["10"]


@pytest.mark.parametrize("node_ids", [None, ["10", "2.0.0.1"]])
def test_defeating_the_cache_without_known_nodes_changes_every_last_node(node_ids: list[str] | None) -> None:
    again = defeat_cache(PROMPT, "token", node_ids)
    assert {node_id for node_id in PROMPT if again[node_id] != PROMPT[node_id]} == last_nodes(PROMPT) == {"10"}


def definition(**required: object) -> dict[str, Any]:
    return {"input": {"required": required}, "python_module": "nodes"}


@pytest.mark.parametrize(
    "declared",
    [
        [["a.png"], {"image_upload": True}],
        ["COMBO", {"options": ["a.mp4"], "video_upload": True}],
        [[], {"audio_upload": True}],
        [["3d/a.glb"], {"file_upload": True}],
        ["COMBO", {"image_upload": True, "image_folder": "output", "remote": {"route": "/internal/files/output"}}],
        ["WEBCAM", {}],
        [["clip.mp4", "b.WEBM"]],
    ],
)
def test_upload_widgets_are_found_by_their_declaration(declared: list[object]) -> None:
    assert media_widgets({"AnyClass": definition(video=declared)}) == {"AnyClass": ("video",)}


@pytest.mark.parametrize(
    "declared", [["IMAGE"], ["STRING", {}], [["area", "lanczos"]], ["COMBO", {"options": ["auto", "mp4"]}], []]
)
def test_other_inputs_of_the_same_name_are_no_upload_widgets(declared: list[object]) -> None:
    assert media_widgets({"AnyClass": definition(video=declared)}) == {}


def test_only_upload_inputs_that_hold_a_value_are_listed() -> None:
    info = {"LoadImage": definition(image=[["a.png"], {"image_upload": True}])}
    prompt = {
        **PROMPT,
        "3": {"class_type": "LoadImage", "inputs": {"image": ["2", 0]}},
        "4": {"class_type": "LoadImage", "inputs": {}},
        "5": {"class_type": "Unknown", "inputs": {"image": "b.png"}},
    }
    assert upload_inputs(prompt, info) == [("1", "image")]


def test_an_upload_behind_the_chosen_option_of_a_dynamic_combo_is_listed() -> None:
    picture = {"required": {"picture": ["COMBO", {"options": [], "image_upload": True}]}}
    options = [{"key": "from a file", "inputs": picture}, {"key": "plain", "inputs": {}}]
    info = {"Background": definition(kind=["COMFY_DYNAMICCOMBO_V3", {"options": options}])}
    inputs = {"kind": "from a file", "kind.picture": "a.png"}
    assert upload_inputs({"1": {"class_type": "Background", "inputs": inputs}}, info) == [("1", "kind.picture")]
    plain = {"1": {"class_type": "Background", "inputs": {**inputs, "kind": "plain"}}}
    assert upload_inputs(plain, info) == []


def test_a_link_to_a_missing_node_is_refused_since_it_would_end_comfyuis_worker() -> None:
    prompt = {"1": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "not_declared": ["99", 0]}}}
    with pytest.raises(ComfyUIValidationError) as raised:
        check_api_format(prompt)
    assert raised.value.node_errors == {"1": ["not_declared of SaveImage is linked to node 99, which does not exist"]}


def test_node_ids_with_too_many_digits_for_python_are_ordered() -> None:
    longest = "9" * 5000
    assert node_order([longest, "10", "2", "²", "1:3", "1", "01"]) == ["1", "01", "1:3", "2", "10", longest, "²"]
