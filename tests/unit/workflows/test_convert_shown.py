"""The inputs in the API format that get the values of promoted widgets and of primitive nodes."""

from __future__ import annotations

from typing import Any

from comfyui.workflows.convert import ShownWidget, to_api_format
from tests.unit.workflows.test_convert import INFO, NOW, file, node_of


def shown(ui: dict[str, Any]) -> tuple[ShownWidget, ...]:
    converted = to_api_format(ui, INFO, now=NOW)
    for widget in converted.shown:
        for node_id, name in widget.targets:
            assert not isinstance(converted.prompt[node_id]["inputs"][name], list)
    return converted.shown


def subgraph_of(ui: dict[str, Any], subgraph_id: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in ui["definitions"]["subgraphs"] if one["id"] == subgraph_id)
    return found


def test_a_promoted_widget_is_followed_through_two_subgraphs_for_each_instance() -> None:
    assert shown(file("ui_subgraphs.json")) == (
        ShownWidget("promoted", "2", "Outer", "size", "", True, (("2:7:9", "width"),)),
        ShownWidget("promoted", "3", "Outer", "size", "", True, (("3:7:9", "width"),)),
    )


def test_a_promoted_widget_has_the_label_that_the_editor_shows() -> None:
    ui = file("ui_subgraphs.json")
    subgraph_of(ui, "outer-id")["inputs"][1]["label"] = "picture size"
    node_of(ui, 3)["title"] = "Second"
    assert [(one.owner_title, one.name, one.label) for one in shown(ui)] == [
        ("Outer", "size", "picture size"),
        ("Second", "size", "picture size"),
    ]


def test_the_label_is_read_from_the_instance_in_an_older_file() -> None:
    ui = file("ui_subgraphs.json")
    node_of(ui, 3)["inputs"][1]["label"] = "picture size"
    assert [one.label for one in shown(ui)] == ["", "picture size"]


def test_one_promoted_widget_may_feed_several_inputs() -> None:
    ui = file("ui_subgraphs.json")
    inner = subgraph_of(ui, "inner-id")
    second = {**inner["nodes"][0], "id": 10, "inputs": [dict(slot) for slot in inner["nodes"][0]["inputs"]]}
    second["inputs"][0]["link"], second["inputs"][1]["link"] = 7, 8
    inner["nodes"].append(second)
    inner["inputs"][0]["linkIds"].append(7)
    inner["inputs"][1]["linkIds"].append(8)
    inner["links"] += [
        {"id": 7, "origin_id": -10, "origin_slot": 0, "target_id": 10, "target_slot": 0, "type": "IMAGE"},
        {"id": 8, "origin_id": -10, "origin_slot": 1, "target_id": 10, "target_slot": 1, "type": "INT"},
    ]
    assert [one.targets for one in shown(ui)] == [
        (("2:7:9", "width"), ("2:7:10", "width")),
        (("3:7:9", "width"), ("3:7:10", "width")),
    ]


def test_a_promoted_widget_with_a_link_outside_is_not_shown() -> None:
    ui = file("ui_subgraphs.json")
    ui["nodes"].append(
        {
            "id": 8,
            "type": "PrimitiveNode",
            "mode": 0,
            "inputs": [],
            "properties": {},
            "outputs": [{"name": "INT", "type": "INT", "links": [10], "widget": {"name": "size"}}],
            "widgets_values": [100, "fixed"],
        }
    )
    ui["links"].append([10, 8, 0, 3, 1, "INT"])
    node_of(ui, 3)["inputs"][1]["link"] = 10
    assert [one.owner for one in shown(ui)] == ["2"]


def test_a_muted_instance_shows_no_widgets() -> None:
    ui = file("ui_subgraphs.json")
    node_of(ui, 2)["mode"] = 2
    assert [one.owner for one in shown(ui)] == ["3"]


def test_a_primitive_has_its_own_title_or_the_name_of_the_input_it_feeds() -> None:
    ui = file("ui_plain.json")
    assert shown(ui) == (ShownWidget("primitive", "7", "", "amount", "", True, (("4", "amount"),)),)
    node_of(ui, 7)["title"] = "How much"
    assert [one.owner_title for one in shown(ui)] == ["How much"]
    node_of(ui, 7)["title"] = "Primitive"
    assert [one.owner_title for one in shown(ui)] == [""]


def test_a_primitive_whose_targets_do_not_run_is_not_shown() -> None:
    assert "8" not in [one.owner for one in shown(file("ui_plain.json"))]


def test_a_primitive_inside_a_subgraph_is_listed_once_for_each_instance() -> None:
    ui = file("ui_subgraphs.json")
    inner = subgraph_of(ui, "inner-id")
    inner["inputs"].pop()
    inner["links"] = [link for link in inner["links"] if link["id"] != 6]
    inner["links"].append({"id": 6, "origin_id": 11, "origin_slot": 0, "target_id": 9, "target_slot": 1, "type": "INT"})
    inner["nodes"].append(
        {
            "id": 11,
            "type": "PrimitiveNode",
            "title": "Wide",
            "mode": 0,
            "inputs": [],
            "properties": {},
            "outputs": [{"name": "INT", "type": "INT", "links": [6], "widget": {"name": "width"}}],
            "widgets_values": [24, "fixed"],
        }
    )
    assert [(one.owner, one.owner_title, one.top, one.targets) for one in shown(ui)] == [
        ("2:7:11", "Wide", False, (("2:7:9", "width"),)),
        ("3:7:11", "Wide", False, (("3:7:9", "width"),)),
    ]
