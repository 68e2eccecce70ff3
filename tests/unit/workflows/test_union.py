"""The union of the node definitions of several servers."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from comfyui.workflows.union import Differences, choices_united, differences, union_of


def declared(**inputs: Any) -> dict[str, Any]:
    """A class with these required inputs."""
    return {"input": {"required": inputs}, "output": ["IMAGE"], "output_node": False, "description": "home's"}


def test_the_union_has_the_classes_of_all_servers_in_the_order_of_the_first() -> None:
    first, second = {"B": declared(), "A": declared()}, {"C": declared(), "A": declared()}
    assert list(union_of([first, second])) == ["B", "A", "C"]


def test_the_union_has_the_choices_of_all_servers_in_the_order_of_the_first() -> None:
    first = {"Load": declared(name=[["z", "a"], {"default": "z"}])}
    second = {"Load": declared(name=[["a", "b"], {"default": "a"}])}
    third = {"Load": declared(name=[["c", "z"], {}])}
    before = copy.deepcopy([first, second, third])
    union = union_of([first, second, third])
    assert union["Load"]["input"]["required"]["name"] == [["z", "a", "b", "c"], {"default": "z"}]
    assert [first, second, third] == before


@pytest.mark.parametrize(
    ("first", "other", "united"),
    [
        (["COMBO", {"options": ["a"]}], ["COMBO", {"options": ["b"]}], ["COMBO", {"options": ["a", "b"]}]),
        ([["a"], {}], ["COMBO", {"options": ["b"]}], [["a", "b"], {}]),
        (["COMBO", {"options": ["a"]}], [["b"]], ["COMBO", {"options": ["a", "b"]}]),
        ([["a"]], [["b"], {"tooltip": "other"}], [["a", "b"]]),
        # An input without a list on one side is taken from the first server.
        (["COMBO", {"remote": {"route": "/x"}}], ["COMBO", {"options": ["b"]}], ["COMBO", {"remote": {"route": "/x"}}]),
        (["INT", {"max": 1}], ["INT", {"max": 2}], ["INT", {"max": 1}]),
        (["INT", {}], [["a"], {}], ["INT", {}]),
    ],
)
def test_choices_in_both_forms_of_declaration_are_united(first: Any, other: Any, united: Any) -> None:
    union = union_of([{"N": declared(x=first)}, {"N": declared(x=other)}])
    assert union["N"]["input"]["required"]["x"] == united


def test_choices_inside_dynamic_inputs_are_united() -> None:
    def node(names: list[str], keys: list[str]) -> dict[str, Any]:
        inner = {"required": {"name": ["COMBO", {"options": names}]}}
        return declared(
            mode=["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": key, "inputs": inner} for key in keys]}],
            slot=["COMFY_DYNAMICSLOT_V3", {"inputs": inner}],
            grown=["COMFY_AUTOGROW_V3", {"template": {"min": 1, "input": inner}}],
            group=["COMFY_DYNAMICGROUP_V3", {"template": inner}],
        )

    union = union_of([{"N": node(["a"], ["one"])}, {"N": node(["b"], ["one", "two"])}])
    both = node(["a", "b"], ["one"])
    both["input"]["required"]["mode"][1]["options"].append(
        {"key": "two", "inputs": {"required": {"name": ["COMBO", {"options": ["b"]}]}}}
    )
    assert union == {"N": both}


def test_a_class_that_differs_is_taken_from_the_first_server() -> None:
    first = {"N": declared(x=["INT", {"max": 1}], name=[["a"], {}])}
    other = {"N": {**declared(x=["FLOAT", {}], y=["INT", {}], name=[["b"], {}]), "description": "the other's"}}
    assert union_of([first, other]) == {"N": declared(x=["INT", {"max": 1}], name=[["a", "b"], {}])}


def test_malformed_definitions_are_no_error() -> None:
    assert union_of([{"N": None, "M": {"input": []}}, {"N": {"input": {}}, "M": declared(x=[])}]) == {
        "N": None,
        "M": {"input": []},
    }


def test_equal_values_of_different_types_are_different_choices() -> None:
    listed: list[list[Any]] = [[1, "1"], [True, 1.0, 1], [{"a": 1}], [{"a": 1}, None]]
    assert choices_united(listed) == [1, "1", True, 1.0, {"a": 1}, None]


def test_differences_concern_inputs_and_outputs_and_not_files_or_texts() -> None:
    home = {
        "Same": declared(x=["INT", {"max": 1, "tooltip": "here"}], name=[["a"], {"default": "a"}]),
        "Changed": declared(x=["INT", {"max": 1}]),
        "Combo": declared(name=["COMBO", {"options": ["a"], "default": "a"}]),
        "Gone": declared(),
    }
    other = {
        "Same": {
            **declared(x=["INT", {"max": 1, "tooltip": "there"}], name=[["b"], {"default": "b"}]),
            "description": "the other's",
        },
        "Changed": declared(x=["INT", {"max": 2}]),
        "Combo": declared(name=["COMBO", {"options": ["b"], "default": "b"}]),
        "New": declared(),
    }
    assert differences(home, other) == Differences(lacks=("Gone",), adds=("New",), differs=("Changed",))
    assert not differences(home, home)
