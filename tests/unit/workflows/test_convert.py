"""Conversion of UI exports to the API format, on small files; tests/contract/test_convert_real.py asks the editor."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from comfyui.exceptions import ComfyUILimitError, ComfyUIValidationError
from comfyui.limits import Limits
from comfyui.workflows.convert import to_api_format
from comfyui.workflows.convert.graph import types_connect
from comfyui.workflows.convert.text import choose_dynamic_prompt, has_choices
from tests.support.damage import damaged

DATA = Path(__file__).parent / "data"
NOW = datetime(2026, 3, 4, 5, 6, 7)  # noqa: DTZ001


def definition(*outputs: str, optional: dict[str, Any] | None = None, **required: object) -> dict[str, Any]:
    return {
        "input": {"required": required, "optional": optional or {}},
        "input_order": {"required": list(required), "optional": list(optional or {})},
        "output": list(outputs),
        "display_name": None,
    }


INFO: dict[str, Any] = {
    "LoadImage": {
        **definition("IMAGE", "MASK", image=[["photo.png", "b.png"], {"image_upload": True}]),
        "display_name": "Load Image",
    },
    "ImageScale": definition(
        "IMAGE", image=["IMAGE"], width=["INT", {"default": 8, "min": 0, "step": 8}], method=[["area", "lanczos"]]
    ),
    "Noise": definition(
        "IMAGE",
        image=["IMAGE"],
        seed=["INT", {"default": 0, "max": 2**64}],
        amount=["FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}],
        text=["STRING", {"multiline": True, "dynamicPrompts": True}],
        optional={"extra": ["IMAGE"]},
    ),
    "SaveImage": definition(images=["IMAGE"], filename_prefix=["STRING", {"default": "ComfyUI"}]),
}


def file(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / name).read_text())
    return loaded


def node_of(ui: dict[str, Any], node_id: int) -> dict[str, Any]:
    found: dict[str, Any] = next(node for node in ui["nodes"] if node["id"] == node_id)
    return found


def inputs_of(ui: dict[str, Any], node_id: str, info: dict[str, Any] = INFO) -> dict[str, Any]:
    found: dict[str, Any] = to_api_format(ui, info, now=NOW).prompt[node_id]["inputs"]
    return found


def test_a_whole_workflow_is_converted_with_its_virtual_nodes_resolved() -> None:
    converted = to_api_format(file("ui_plain.json"), INFO, now=NOW)
    assert converted.prompt == {
        "1": {"inputs": {"image": "photo.png"}, "class_type": "LoadImage", "_meta": {"title": "Load Image"}},
        "4": {
            "inputs": {"seed": 42, "amount": 0.78, "text": "one\r\ntwo", "image": ["1", 0]},
            "class_type": "Noise",
            "_meta": {"title": "My noise"},
        },
        "6": {
            "inputs": {"filename_prefix": "2026-03-04/42_%width%", "images": ["4", 0]},
            "class_type": "SaveImage",
            "_meta": {"title": "SaveImage"},
        },
    }
    assert converted.warnings == (
        "node 11 (Label (some pack)): left out, its class is not installed and nothing depends on it",
    )


def test_the_given_file_is_not_changed() -> None:
    ui = file("ui_plain.json")
    before = copy.deepcopy(ui)
    to_api_format(ui, INFO)
    assert ui == before


def test_links_in_the_form_of_objects_give_the_same_result() -> None:
    ui = file("ui_plain.json")
    expected = to_api_format(ui, INFO, now=NOW).prompt
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    ui["links"] = [dict(zip(keys, link, strict=True)) for link in ui["links"]]
    assert to_api_format(ui, INFO, now=NOW).prompt == expected


def test_each_instance_of_a_subgraph_is_written_out_with_its_own_values() -> None:
    prompt = to_api_format(file("ui_subgraphs.json"), INFO).prompt
    assert set(prompt) == {"1", "2:7:9", "3:7:9", "4", "5"}
    assert prompt["2:7:9"]["inputs"] == {"width": 128, "method": "area", "image": ["1", 0]}
    assert prompt["3:7:9"]["inputs"] == {"width": 256, "method": "area", "image": ["1", 0]}
    assert prompt["2:7:9"]["_meta"]["title"] == "Deep"
    assert prompt["4"]["inputs"]["images"] == ["2:7:9", 0]
    assert prompt["5"]["inputs"]["images"] == ["3:7:9", 0]


def test_a_bypassed_subgraph_passes_its_input_on() -> None:
    ui = file("ui_subgraphs.json")
    node_of(ui, 2)["mode"] = 4
    assert inputs_of(ui, "4")["images"] == ["1", 0]


def test_an_instance_without_stored_values_has_the_inner_values() -> None:
    ui = file("ui_subgraphs.json")
    del node_of(ui, 2)["widgets_values"]
    assert inputs_of(ui, "2:7:9")["width"] == 32


def test_values_in_the_order_of_an_instances_shown_widgets_are_matched_by_name() -> None:
    ui = file("ui_subgraphs.json")
    instance = node_of(ui, 2)
    instance["properties"]["proxyWidgets"] = [["7", "width"], ["-1", "size"]]
    instance["widgets_values"] = [32, 512]
    assert inputs_of(ui, "2:7:9")["width"] == 512
    instance["widgets_values"] = [33, 512]
    assert inputs_of(ui, "2:7:9")["width"] == 512


def test_an_undefined_subgraph_is_not_reported_as_a_missing_node_pack() -> None:
    ui = file("ui_subgraphs.json")
    ui["definitions"]["subgraphs"] = []
    for node in ui["nodes"]:
        if node["type"] == "outer-id":
            node["type"] = "0E6BBA1D-5a2c-4a6f-9d0f-2f1a6f0c1b2e"
    with pytest.raises(ComfyUIValidationError, match="2f1a6f0c1b2e, which the file does not define") as raised:
        to_api_format(ui, INFO)
    assert "node pack" not in raised.value.detail


def test_two_different_subgraphs_with_one_id_give_a_warning() -> None:
    ui = file("ui_subgraphs.json")
    definitions = ui["definitions"]["subgraphs"]
    expected = to_api_format(ui, INFO, now=NOW)
    definitions.append(copy.deepcopy(definitions[0]))
    assert to_api_format(ui, INFO, now=NOW) == expected
    definitions[-1]["nodes"] = []
    told = to_api_format(ui, INFO, now=NOW)
    assert told.prompt == expected.prompt
    said = f"two different subgraphs have the id {definitions[0]['id']}; the first one is used"
    assert said in told.warnings


def test_a_subgraph_that_contains_itself_is_refused() -> None:
    ui = file("ui_subgraphs.json")
    ui["definitions"]["subgraphs"][1]["nodes"][0]["type"] = "outer-id"
    with pytest.raises(ComfyUIValidationError, match="contains itself"):
        to_api_format(ui, INFO)


def test_a_bypassed_node_without_a_fitting_input_leaves_its_users_input_out() -> None:
    ui = file("ui_plain.json")
    node_of(ui, 1)["mode"] = 4
    assert "image" not in inputs_of(ui, "4")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([42, "fixed"], {"seed": 42, "amount": 0.5, "text": ""}),
        ([], {"seed": 0, "amount": 0.5, "text": ""}),
        (None, {"seed": 0, "amount": 0.5, "text": ""}),
        ([1, "fixed", 0.1, "t", "too many"], {"seed": 1, "amount": 0.1, "text": "t"}),
        ({"seed": 5, "text": "by name"}, {"seed": 5, "amount": 0.5, "text": "by name"}),
        ([1, "fixed", 0.1, None], {"seed": 1, "amount": 0.1, "text": ""}),
    ],
)
def test_stored_values_are_matched_by_position_or_name_and_defaults_fill_the_rest(
    values: Any, expected: dict[str, Any]
) -> None:
    ui = file("ui_plain.json")
    node_of(ui, 4).update(inputs=[], widgets_values=values)
    ui["links"] = [link for link in ui["links"] if link[3] != 4]
    assert inputs_of(ui, "4") == expected


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ([42, "fixed"], "the file stores 2 values for 4 widgets, so text kept the default"),
        ([], "the file stores 0 values for 4 widgets, so seed, text kept the default"),
        (None, "the file stores 0 values for 4 widgets, so seed, text kept the default"),
        ([1, "fixed", 0.1, "t", "more"], "the file stores 5 values for 4 widgets, so 'more' was left out"),
        ({"seed": 5, "sed": 6}, "it has no widget for the stored sed"),
    ],
)
def test_too_many_or_too_few_values_give_a_warning(values: Any, warning: str) -> None:
    ui = file("ui_plain.json")
    node_of(ui, 4)["widgets_values"] = values
    assert f"node 4 (Noise): {warning}" in to_api_format(ui, INFO).warnings


def _as_floats(value: Any) -> Any:
    """The value as a program writes it that knows only floats."""
    if isinstance(value, dict):
        return {key: entry if key == "widgets_values" else _as_floats(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_floats(entry) for entry in value]
    return float(value) if type(value) is int else value


@pytest.mark.parametrize("name", ["ui_plain.json", "ui_subgraphs.json"])
def test_whole_floats_count_as_integers(name: str) -> None:
    ui = file(name)
    for graph in (ui, *ui.get("definitions", {}).get("subgraphs", [])):
        for number, node in enumerate(graph["nodes"]):
            node["mode"] = (0, 0, 4, 2)[number % 4]
    expected = to_api_format(ui, INFO, now=NOW)
    assert to_api_format(_as_floats(ui), INFO, now=NOW) == expected


def test_a_value_that_is_missing_by_name_gives_a_warning() -> None:
    ui = file("ui_plain.json")
    noise = next(node for node in ui["nodes"] if node["type"] == "Noise")
    noise["widgets_values"] = {"seed": 5}
    warnings = to_api_format(ui, INFO, now=NOW).warnings
    assert any("the file stores no value for text, which kept the default" in warning for warning in warnings)


def test_the_default_of_a_linked_widget_gives_no_warning() -> None:
    ui = file("ui_plain.json")
    noise = node_of(ui, 4)
    noise["widgets_values"] = [42, "fixed", 0.5]
    noise["inputs"].append({"name": "text", "type": "STRING", "link": 77, "widget": {"name": "text"}})
    ui["links"].append([77, 1, 0, 4, 9, "STRING"])
    assert not [warning for warning in to_api_format(ui, INFO).warnings if "default" in warning]


def test_a_value_of_the_wrong_kind_is_passed_on_with_a_warning() -> None:
    ui = file("ui_plain.json")
    node_of(ui, 4)["widgets_values"] = ["fixed", 1, 0.1, "t"]
    warnings = to_api_format(ui, INFO).warnings
    assert any(
        warning.startswith("node 4 (Noise): seed got 'fixed', which is not of the type INT") for warning in warnings
    )


def test_the_stored_value_of_an_input_that_became_a_socket_is_dropped() -> None:
    info = {**INFO, "Two": definition("IMAGE", one=["INT", {"forceInput": True}], two=["INT", {}])}
    ui = {"nodes": [{"id": 1, "type": "Two", "inputs": [], "outputs": [], "widgets_values": [7, 8]}], "links": []}
    assert inputs_of(ui, "1", info) == {"two": 8}


@pytest.mark.parametrize(
    ("declared", "values", "expected"),
    [
        ([["a", "b"], {"control_after_generate": True}], ["b", "fixed", "", 3], {"x": "b", "n": 3}),
        (["COMBO", {"options": ["a", "b"]}], ["b", 3], {"x": "b", "n": 3}),
        (["COMBO", {"options": ["a"], "multi_select": True}], [["a"], 3], {"x": {"__value__": ["a"]}, "n": 3}),
        (["INT", {"control_after_generate": True}], [4, "fixed", 3], {"x": 4, "n": 3}),
        (
            ["COMBO", {"remote": {"route": "/r", "refresh_button": True}}],
            ["a", False, "refresh", 3],
            {"x": "a", "n": 3},
        ),
        (["STRING", {"forceInput": True}], [3], {"n": 3}),
    ],
)
def test_every_kind_of_widget_uses_its_number_of_stored_values(
    declared: list[Any], values: list[Any], expected: dict[str, Any]
) -> None:
    info = {"Node": definition("IMAGE", x=declared, n=["INT", {}])}
    ui = {"nodes": [{"id": 1, "type": "Node", "inputs": [], "outputs": [], "widgets_values": values}], "links": []}
    found = inputs_of(ui, "1", info)
    found.pop("refresh", None)
    assert found == expected


def test_an_image_from_the_output_folder_stays_as_it_is_stored() -> None:
    options = {"image_upload": True, "image_folder": "output"}
    info = {"FromOutput": definition("IMAGE", image=["COMBO", options])}
    values = ["a.png [output]", "image"]
    ui = {"nodes": [{"id": 1, "type": "FromOutput", "inputs": [], "widgets_values": values}], "links": []}
    assert inputs_of(ui, "1", info) == {"image": "a.png [output]"}


def refused(change: Callable[[dict[str, Any]], object], info: dict[str, Any] = INFO) -> ComfyUIValidationError:
    ui = file("ui_plain.json")
    change(ui)
    with pytest.raises(ComfyUIValidationError) as caught:
        to_api_format(ui, info)
    return caught.value


def test_a_missing_class_is_refused_with_its_node() -> None:
    error = refused(lambda ui: node_of(ui, 4).update(type="Nose"))
    (message,) = error.node_errors["4"]
    assert message.startswith("the node class Nose is not installed: install its node pack, or")
    assert 'export the workflow with "Workflow > Export (API)"' in message


def test_a_missing_class_that_is_muted_does_not_matter() -> None:
    ui = file("ui_plain.json")
    node_of(ui, 5)["type"] = "Gone"
    assert set(to_api_format(ui, INFO).prompt) == {"1", "4", "6"}


@pytest.mark.parametrize(
    ("definitions", "reason"),
    [
        ({"mine": {}}, "The group node mine has no nodes"),
        ({"mine": {"nodes": [{"type": "PrimitiveNode"}]}}, "The group node mine holds the node PrimitiveNode"),
        ({"mine": {"nodes": [{"type": "Gone"}]}}, "The group node mine holds the node Gone, not installed"),
        ({}, "the group node workflow/mine has no definition in the file"),
    ],
)
def test_a_group_node_that_cannot_be_unfolded_is_refused_with_a_remedy(
    definitions: dict[str, Any], reason: str
) -> None:
    def change(ui: dict[str, Any]) -> None:
        ui["extra"] = {"groupNodes": definitions}
        node_of(ui, 4)["type"] = "workflow/mine"

    detail = refused(change).detail
    assert reason in detail
    assert "open the workflow in the editor" in detail


def test_a_value_that_only_a_browser_can_make_is_refused() -> None:
    error = refused(lambda ui: None, {**INFO, "LoadImage": definition("IMAGE", "MASK", image=["WEBCAM", {}])})
    assert "only a browser can make the value of image" in error.node_errors["1"][0]


def test_a_widget_of_a_node_pack_makes_the_order_uncertain() -> None:
    info = {**INFO, "Noise": definition("IMAGE", image=["IMAGE"], curve=["PACK_CURVE", {}], amount=["FLOAT", {}])}
    assert "a script of its node pack adds the widget curve" in refused(lambda ui: None, info).node_errors["4"][0]


def test_a_link_to_a_removed_widget_is_left_out_with_a_warning() -> None:
    ui = file("ui_plain.json")
    gone = {"name": "gone", "type": "INT", "link": 77, "widget": {"name": "gone"}}
    node_of(ui, 4)["inputs"].append(gone)
    ui["links"].append([77, 1, 0, 4, 9, "INT"])
    converted = to_api_format(ui, INFO)
    assert "gone" not in converted.prompt["4"]["inputs"]
    assert (
        "node 4 (Noise): the link to gone is left out, because the node has no such input in this ComfyUI"
        in converted.warnings
    )


def test_a_circle_of_reroutes_is_refused() -> None:
    def change(ui: dict[str, Any]) -> None:
        ui["links"][0] = [1, 2, 0, 2, 0, "IMAGE"]

    assert "run in a circle" in refused(change).detail


@pytest.mark.parametrize("link", [["x"], [1, 2, "slot", 3, 4], "link"])
def test_a_damaged_link_is_refused(link: object) -> None:
    assert "damaged" in refused(lambda ui: ui["links"].append(link)).detail


def test_a_link_that_does_not_exist_is_left_out_with_a_warning() -> None:
    ui = file("ui_plain.json")
    ui["links"] = [link for link in ui["links"] if link[0] != 5]
    converted = to_api_format(ui, INFO)
    assert "images" not in converted.prompt["6"]["inputs"]
    assert "node 6: the link to images does not exist" in converted.warnings


def test_nothing_left_to_run_is_refused() -> None:
    def change(ui: dict[str, Any]) -> None:
        for node in ui["nodes"]:
            node["mode"] = 2

    assert "Nothing is left to run" in refused(change).detail


def test_a_workflow_in_api_format_is_refused() -> None:
    with pytest.raises(ComfyUIValidationError, match="not a UI-format workflow"):
        to_api_format({"1": {"class_type": "SaveImage", "inputs": {}}}, INFO)


def test_dynamic_prompts_lose_comments_and_get_one_choice() -> None:
    text = "a /* no */ {red|{dark|light} blue} fox \\{as is\\} // end"
    chosen = {choose_dynamic_prompt(text, Random(seed)) for seed in range(40)}  # noqa: S311
    assert chosen == {f"a  {colour} fox {{as is}} " for colour in ("red", "dark blue", "light blue")}
    assert has_choices(text)
    assert not has_choices("a {plain} \\{x|y\\} fox")


def test_a_random_choice_gives_a_warning() -> None:
    ui = file("ui_plain.json")
    node_of(ui, 4)["widgets_values"][3] = "{a|b}"
    converted = to_api_format(ui, INFO, rng=Random(1))  # noqa: S311
    assert converted.prompt["4"]["inputs"]["text"] in {"a", "b"}
    assert "node 4: one of the choices in text was chosen at random" in converted.warnings


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("IMAGE", "IMAGE", True),
        ("*", "MASK", True),
        ("A,B", "b,c", True),
        ("A,B", "C", False),
        ("image", "IMAGE", True),
    ],
)
def test_types_connect_as_in_the_editor(one: str, other: str, expected: bool) -> None:
    assert types_connect(one, other) is expected


@pytest.mark.parametrize("name", ["ui_plain.json", "ui_subgraphs.json"])
def test_a_damaged_file_is_converted_or_refused_without_a_crash(name: str) -> None:
    rng = Random(3)  # noqa: S311
    for _ in range(400):
        ui = {key: damaged(value, rng, replaced=0.01, lost=0.005) for key, value in file(name).items()}
        try:
            to_api_format(ui, INFO)
        except ComfyUIValidationError:
            continue


def test_subgraphs_that_multiply_are_refused_before_they_fill_the_memory() -> None:
    def twice(name: str, inner: str) -> dict[str, Any]:
        return {"id": name, "nodes": [{"id": n, "type": inner} for n in (1, 2)], "links": []}

    subgraphs = [twice(f"s{n}", f"s{n + 1}") for n in range(40)]
    ui = {"nodes": [{"id": 1, "type": "s0"}], "links": [], "definitions": {"subgraphs": subgraphs}}
    with pytest.raises(ComfyUILimitError, match=r"would have more than 10\^12 nodes, more than 10000"):
        to_api_format(ui, {**INFO, "s40": definition("IMAGE")})


def test_a_bomb_of_subgraphs_is_counted_without_expanding_it() -> None:
    """Each of the 60 definitions is read a few times at most, however many nodes they multiply to."""

    class Watched(dict[str, Any]):
        looked_at = 0

        def get(self, key: str, default: Any = None) -> Any:
            Watched.looked_at += key == "nodes"
            return super().get(key, default)

    def ten(name: str, inner: str) -> dict[str, Any]:
        return Watched(id=name, nodes=[{"id": n, "type": inner} for n in range(10)], links=[])

    subgraphs = [ten(f"s{n}", f"s{n + 1}") for n in range(60)]
    ui = {"nodes": [{"id": 1, "type": "s0"}], "links": [], "definitions": {"subgraphs": subgraphs}}
    with pytest.raises(ComfyUILimitError, match=r"more than 10\^12 nodes"):
        to_api_format(ui, INFO)
    assert Watched.looked_at <= 3 * len(subgraphs)


def test_the_largest_number_of_nodes_can_be_set() -> None:
    ui = file("ui_subgraphs.json")
    with pytest.raises(ComfyUILimitError, match="would have 9 nodes, more than 8"):
        to_api_format(ui, INFO, limits=Limits(max_workflow_nodes=8))
    assert len(to_api_format(ui, INFO, limits=Limits(max_workflow_nodes=9)).prompt) == 5


def test_group_nodes_that_multiply_are_counted_without_unfolding_them() -> None:
    inside = {"nodes": [{"type": "Noise"} for _ in range(200)], "links": []}
    ui = {
        "nodes": [{"id": n, "type": "workflow/many"} for n in range(100)],
        "links": [],
        "extra": {"groupNodes": {"many": inside}},
    }
    with pytest.raises(ComfyUILimitError, match="would have 20100 nodes, more than 10000"):
        to_api_format(ui, INFO)


def test_subgraphs_nested_too_deeply_are_refused() -> None:
    subgraphs = [{"id": f"s{n}", "nodes": [{"id": 1, "type": f"s{n + 1}"}], "links": []} for n in range(3000)]
    ui = {"nodes": [{"id": 1, "type": "s0"}], "links": [], "definitions": {"subgraphs": subgraphs}}
    with pytest.raises(ComfyUIValidationError, match="nested more than 64 deep"):
        to_api_format(ui, INFO)


def test_endless_reroutes_and_nested_choices_are_refused() -> None:
    reroutes = [
        {"id": n, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": n - 1}]} for n in range(1, 900)
    ]
    save = {"id": 900, "type": "SaveImage", "inputs": [{"name": "images", "type": "IMAGE", "link": 899}]}
    ui = {"nodes": [*reroutes, save], "links": [[n, n, 0, n + 1, 0, "*"] for n in range(900)]}
    with pytest.raises(ComfyUIValidationError, match="more than 100 nodes"):
        to_api_format(ui, INFO)
    plain = file("ui_plain.json")
    node_of(plain, 4)["widgets_values"][3] = "{" * 5000
    with pytest.raises(ComfyUIValidationError, match="nested too deeply"):
        to_api_format(plain, INFO)


def test_comments_without_an_end_are_read_in_one_pass() -> None:
    text = "/* " * 200_000
    assert choose_dynamic_prompt(text, Random(1)) == text  # noqa: S311
