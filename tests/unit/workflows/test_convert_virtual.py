"""Nodes that exist only in the editor are followed if their meaning is known, and otherwise left out or refused."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui.exceptions import ComfyUIValidationError
from comfyui.workflows.convert import to_api_format

Json = dict[str, Any]

INFO: Json = {
    "Image": {"input": {"required": {"width": ["INT", {"default": 8}]}}, "output": ["IMAGE"]},
    "Invert": {"input": {"required": {"image": ["IMAGE"]}}, "output": ["IMAGE"]},
    "Blend": {
        "input": {"required": {"one": ["IMAGE"], "other": ["IMAGE"], "mask": ["MASK"]}},
        "output": ["IMAGE"],
    },
    "Save": {"input": {"required": {"images": ["IMAGE"]}}, "output": []},
}


def node(node_id: int, kind: str, *, takes: Json | None = None, feeds: Json | None = None, **more: Any) -> Json:
    """A node with linked inputs and outputs, each given as type (or name) to link."""
    names = {"IMAGE": "image" if kind == "Invert" else "images"}
    inputs = [{"name": names.get(name, name), "type": name, "link": link} for name, link in (takes or {}).items()]
    outputs = [{"name": name, "type": name, "links": links} for name, links in (feeds or {}).items()]
    return {"id": node_id, "type": kind, "mode": 0, "inputs": inputs, "outputs": outputs, **more}


def workflow(*nodes: Json, links: list[list[Any]], **more: Any) -> Json:
    return {"nodes": list(nodes), "links": links, **more}


def image(node_id: int, *links: int) -> Json:
    return node(node_id, "Image", feeds={"IMAGE": list(links)}, widgets_values=[8])


def save(node_id: int, link: int | None) -> Json:
    return node(node_id, "Save", takes={"IMAGE": link})


def source_of_saved(ui: Json, node_id: str = "9") -> Any:
    return to_api_format(ui, INFO).prompt[node_id]["inputs"].get("images")


def setter(node_id: int, name: str, link: int, **more: Any) -> Json:
    return node(node_id, "SetNode", takes={"IMAGE": link}, feeds={"*": None}, widgets_values=[name], **more)


def getter(node_id: int, name: str, *links: int) -> Json:
    return node(node_id, "GetNode", feeds={"IMAGE": list(links)}, widgets_values=[name])


@pytest.mark.parametrize("pack", [("SetNode", "GetNode"), ("easy setNode", "easy getNode")])
def test_a_getter_is_replaced_by_the_link_of_its_setter(pack: tuple[str, str]) -> None:
    set_node, get_node = setter(2, "pic", 1), getter(3, "pic", 2)
    set_node["type"], get_node["type"] = pack
    ui = workflow(
        image(1, 1), set_node, get_node, save(9, 2), links=[[1, 1, 0, 2, 0, "IMAGE"], [2, 3, 0, 9, 0, "IMAGE"]]
    )
    converted = to_api_format(ui, INFO)
    assert converted.prompt["9"]["inputs"] == {"images": ["1", 0]}
    assert set(converted.prompt) == {"1", "9"}
    assert converted.warnings == ()


def test_setters_in_a_chain_are_followed() -> None:
    ui = workflow(
        image(1, 1),
        setter(2, "a", 1),
        getter(3, "a", 2),
        setter(4, "b", 2),
        getter(5, "b", 3),
        save(9, 3),
        links=[[1, 1, 0, 2, 0, "IMAGE"], [2, 3, 0, 4, 0, "IMAGE"], [3, 5, 0, 9, 0, "IMAGE"]],
    )
    assert source_of_saved(ui) == ["1", 0]


def test_a_getter_inside_a_subgraph_finds_the_setter_outside() -> None:
    inside = {
        "id": "sub",
        "nodes": [getter(20, "pic", 1), node(21, "Invert", takes={"IMAGE": 1}, feeds={"IMAGE": [2]})],
        "links": [[1, 20, 0, 21, 0, "IMAGE"], [2, 21, 0, -20, 0, "IMAGE"]],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "linkIds": [2]}],
    }
    ui = workflow(
        image(1, 1),
        setter(2, "pic", 1),
        node(3, "sub", feeds={"IMAGE": [2]}),
        save(9, 2),
        links=[[1, 1, 0, 2, 0, "IMAGE"], [2, 3, 0, 9, 0, "IMAGE"]],
        definitions={"subgraphs": [inside]},
    )
    prompt = to_api_format(ui, INFO).prompt
    assert prompt["3:21"]["inputs"] == {"image": ["1", 0]}
    assert prompt["9"]["inputs"] == {"images": ["3:21", 0]}


def test_the_first_of_two_setters_counts_and_the_second_is_named() -> None:
    ui = workflow(
        image(1, 1),
        image(5, 3),
        setter(2, "pic", 1),
        setter(6, "pic", 3),
        getter(3, "pic", 2),
        save(9, 2),
        links=[[1, 1, 0, 2, 0, "IMAGE"], [3, 5, 0, 6, 0, "IMAGE"], [2, 3, 0, 9, 0, "IMAGE"]],
    )
    converted = to_api_format(ui, INFO)
    assert converted.prompt["9"]["inputs"] == {"images": ["1", 0]}
    assert converted.warnings == ("node 6 (SetNode): node 2 sets the name 'pic' too, and is used",)


@pytest.mark.parametrize(
    ("ui_setter", "warning"),
    [
        (setter(2, "other", 1), "node 3: no node sets the name 'pic' that it asks for"),
        (setter(2, "pic", 1, mode=2), "node 3: the node 2 that sets 'pic' does not run"),
    ],
)
def test_a_getter_without_its_setter_is_named(ui_setter: Json, warning: str) -> None:
    ui_setter = {"mode": 0, **ui_setter}
    links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 3, 0, 9, 0, "IMAGE"]]
    converted = to_api_format(workflow(image(1, 1), ui_setter, getter(3, "pic", 2), save(9, 2), links=links), INFO)
    assert converted.prompt["9"]["inputs"] == {}
    assert warning in converted.warnings


def test_setters_that_set_each_other_are_refused() -> None:
    links = [[1, 3, 0, 2, 0, "IMAGE"], [2, 3, 0, 9, 0, "IMAGE"]]
    with pytest.raises(ComfyUIValidationError, match="run in a circle"):
        source_of_saved(workflow(setter(2, "a", 1), getter(3, "a", 1, 2), save(9, 2), links=links))


def test_reroutes_of_rgthree_pass_their_link_on() -> None:
    reroutes = [node(n, "Reroute (rgthree)", takes={"*": n - 1}, feeds={"*": [n]}) for n in (2, 3)]
    ui = workflow(
        image(1, 1),
        *reroutes,
        save(9, 3),
        links=[[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "*"], [3, 3, 0, 9, 0, "IMAGE"]],
    )
    assert source_of_saved(ui) == ["1", 0]
    assert to_api_format(ui, INFO).warnings == ()


def test_nodes_that_act_in_the_editor_only_are_left_out_with_a_warning_each() -> None:
    ui = workflow(
        image(1, 1),
        save(9, 1),
        node(5, "Bookmark (rgthree)"),
        node(7, "Fast Groups Muter (rgthree)", feeds={"OPT_CONNECTION": [2]}),
        node(8, "Mute / Bypass Repeater (rgthree)", takes={"*": 2}, feeds={"OPT_CONNECTION": None}),
        links=[[1, 1, 0, 9, 0, "IMAGE"], [2, 7, 0, 8, 0, "*"]],
    )
    converted = to_api_format(ui, INFO)
    assert set(converted.prompt) == {"1", "9"}
    assert converted.warnings == tuple(
        f"node {node_id} ({kind}): left out, it works only in the editor"
        for node_id, kind in (
            (5, "Bookmark (rgthree)"),
            (7, "Fast Groups Muter (rgthree)"),
            (8, "Mute / Bypass Repeater (rgthree)"),
        )
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            "Fast Muter (rgthree)",
            "Fast Muter (rgthree) exists only in the editor, so ComfyUI cannot run it: export the",
        ),
        ("Some Pack Node", "the node class Some Pack Node is not installed: install its node pack, or, if it is"),
    ],
)
def test_an_unknown_node_with_dependents_is_refused_with_a_remedy(kind: str, reason: str) -> None:
    ui = workflow(node(4, kind, feeds={"IMAGE": [1]}), save(9, 1), links=[[1, 4, 0, 9, 0, "IMAGE"]])
    with pytest.raises(ComfyUIValidationError) as caught:
        to_api_format(ui, INFO)
    (message,) = caught.value.node_errors["4"]
    assert message.startswith(reason)
    assert '"Workflow > Export (API)"' in message


def test_an_unknown_node_with_inputs_is_refused_since_it_may_save_files() -> None:
    ui = workflow(image(1, 1, 2), save(9, 1), node(4, "Video Out", takes={"IMAGE": 2}), links=[])
    ui["links"] = [[1, 1, 0, 9, 0, "IMAGE"], [2, 1, 0, 4, 0, "IMAGE"]]
    with pytest.raises(ComfyUIValidationError, match="the node class Video Out is not installed"):
        to_api_format(ui, INFO)


def everywhere(entry: Json | None, *, controller: Json | None = None, target: Json | None = None) -> Json:
    made_by = controller or node(2, "Anything Everywhere", takes={"IMAGE": 1})
    extra = {"extra": {"ue_links": [entry]}} if entry else {}
    return workflow(image(1, 1), made_by, target or save(9, None), links=[[1, 1, 0, 2, 0, "IMAGE"]], **extra)


LINK: Json = {
    "upstream": "1",
    "upstream_slot": 0,
    "downstream": 9,
    "downstream_slot": 0,
    "controller": 2,
    "type": "IMAGE",
}


def test_a_link_of_use_everywhere_is_made() -> None:
    converted = to_api_format(everywhere(LINK), INFO)
    assert converted.prompt["9"]["inputs"] == {"images": ["1", 0]}
    assert converted.warnings == ("node 2 (Anything Everywhere): left out, it works only in the editor",)


def test_an_installed_node_of_use_everywhere_stays_in_the_prompt() -> None:
    info = {**INFO, "Anything Everywhere": {"input": {"optional": {"IMAGE": ["*"]}}, "output": []}}
    ui = everywhere(LINK)
    ui["nodes"][1]["inputs"][0]["name"] = "IMAGE"
    converted = to_api_format(ui, info)
    assert converted.prompt["2"]["inputs"] == {"IMAGE": ["1", 0]}
    assert converted.prompt["9"]["inputs"] == {"images": ["1", 0]}
    assert converted.warnings == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"upstream": "77"}, "node 77 does not exist"),
        ({"upstream_slot": 3}, "node 1 has no output 3"),
        ({"downstream_slot": "x"}, "it names no slots"),
        ({"type": "MASK"}, "output 0 of node 1 does not give MASK"),
        ({"downstream_slot": 5}, "input 5 does not take IMAGE"),
    ],
)
def test_an_uncertain_link_of_use_everywhere_is_left_out_with_a_warning(change: Json, why: str) -> None:
    converted = to_api_format(everywhere({**LINK, **change}), INFO)
    assert converted.prompt["9"]["inputs"] == {}
    assert f"node 9: the link that node 2 makes in the editor is left out: {why}" in converted.warnings


def test_a_slot_with_an_uncertain_number_is_not_guessed() -> None:
    """The file leaves slots out, so its second slot is not the editor's second slot."""
    blend = node(9, "Blend", takes={"other": None, "one": None})
    for slot in blend["inputs"]:
        slot["type"] = "IMAGE"
    converted = to_api_format(everywhere({**LINK, "downstream_slot": 0}, target=blend), INFO)
    assert converted.prompt["9"]["inputs"] == {}
    assert any("it is not certain which input takes IMAGE" in warning for warning in converted.warnings)


def test_links_of_a_muted_node_of_use_everywhere_are_not_made() -> None:
    controller = {**node(2, "Anything Everywhere", takes={"IMAGE": 1}), "mode": 2}
    converted = to_api_format(everywhere(LINK, controller=controller), INFO)
    assert converted.prompt["9"]["inputs"] == {}
    assert converted.warnings == ()


def test_a_node_of_use_everywhere_without_links_in_the_file_gives_a_warning() -> None:
    converted = to_api_format(everywhere(None), INFO)
    assert (
        "node 2 (Anything Everywhere): the links that it makes in the editor are not in the file; what it should "
        in ("".join(converted.warnings))
    )


def test_an_input_keeps_its_own_link_beside_use_everywhere() -> None:
    ui = everywhere(LINK)
    ui["nodes"] += [image(5, 2)]
    ui["nodes"][2] = save(9, 2)
    ui["links"].append([2, 5, 0, 9, 0, "IMAGE"])
    assert source_of_saved(ui) == ["5", 0]
