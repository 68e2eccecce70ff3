"""A graph on a page of the console: the order of its nodes, its values, and their changes by a form."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui.exceptions import RequestError
from comfyui.web.console.job_graph import MOST_NODES, changed, has_seeds, in_order, nodes_of, with_new_seeds
from tests.support.target import node


def graph(**inputs: Any) -> dict[str, Any]:
    return {"1": node("Some", **inputs)}


def sent(prompt: dict[str, Any], **fields: str) -> dict[str, Any]:
    """A graph of one node after a form has changed these inputs."""
    (shown,) = nodes_of(prompt)
    names = {value.name: value.field for value in shown.values}
    return changed(prompt, prompt, {names[name]: text for name, text in fields.items()})[0]


def test_nodes_are_listed_after_the_nodes_that_feed_them() -> None:
    prompt = {
        "2": node("Save", images=["10", 0]),
        "10": node("Decode", samples=["3", 0], vae=["9", 0]),
        "9": node("Load"),
        "3": node("Sample", model=["9", 1]),
        "1": node("Alone"),
    }
    assert in_order(prompt) == ["1", "9", "3", "10", "2"]


def test_cycles_broken_links_and_malformed_nodes_are_shown_too() -> None:
    prompt: dict[str, Any] = {
        "1": node("A", x=["2", 0]),
        "2": node("B", x=["1", 0]),
        "3": node("C", x=["gone", 0]),
        "4": {"class_type": "D"},
        "5": "no node",
        "6": {"class_type": None, "inputs": [], "_meta": {"title": 7}},
    }
    assert sorted(in_order(prompt)) == sorted(prompt)
    assert in_order(prompt)[-2:] == ["1", "2"]
    assert [one.node_id for one in nodes_of(prompt)] == in_order(prompt)


def test_a_long_chain_of_nodes_needs_no_recursion_and_is_cut() -> None:
    prompt = {"0": node("Load", v=1)} | {str(one): node("Next", x=[str(one - 1), 0]) for one in range(1, 20_000)}
    assert len(in_order(prompt)) == 20_000
    assert len(nodes_of(prompt)) == MOST_NODES


@pytest.mark.parametrize(
    ("before", "text", "after"),
    [
        (1, "2", 2),
        (1, "-3", -3),
        (1, "1.5", 1.5),
        (1.5, "2", 2),
        (1.5, ".25", 0.25),
        (1, str(2**64 - 1), 2**64 - 1),
        (True, "false", False),
        ("old", "", ""),
        ("old", "a\r\nb", "a\nb"),
        (None, '"x"', "x"),
        ({"a": 1}, '{"a": 2}', {"a": 2}),
    ],
)
def test_a_changed_field_gets_a_value_of_its_kind(before: Any, text: str, after: Any) -> None:
    prompt = graph(value=before, other=["2", 0])
    made = sent(prompt, value=text)
    assert made["1"]["inputs"] == {"value": after, "other": ["2", 0]}
    assert type(made["1"]["inputs"]["value"]) is type(after)
    assert prompt["1"]["inputs"]["value"] == before


@pytest.mark.parametrize(
    ("before", "text", "wanted"),
    [
        (1, "", "a number"),
        (1, "true", "a number"),
        (1.5, "NaN", "a number"),
        (1.5, "1e999", "a number"),
        (1, "1_0", "a number"),
        (1, "٣", "a number"),
        (1, "9" * 5000, "a number"),
        (True, "1", "true or false"),
        (True, "", "true or false"),
        (None, "{", "JSON"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(before: Any, text: str, wanted: str) -> None:
    with pytest.raises(RequestError, match=rf"^Some \(node 1\), value must be {wanted}$"):
        sent(graph(value=before), value=text)


@pytest.mark.parametrize("value", [1e-07, 0.1, 2**70, "a\r\nb\n", "\ud800", float("nan"), {"b": [1, {"a": None}]}, [1]])
def test_a_form_that_sends_back_its_values_changes_nothing(value: Any) -> None:
    prompt = graph(value=value)
    (shown,) = nodes_of(prompt)
    fields = {one.field: one.text.replace("\r\n", "\n").replace("\n", "\r\n") for one in shown.values}
    made, count = changed(prompt, prompt, fields)
    assert count == 0
    assert made["1"] is prompt["1"]


def test_a_text_too_long_for_a_page_is_left_alone() -> None:
    prompt = graph(value="x" * 30_000)
    (shown,) = nodes_of(prompt)
    assert shown.values[0].is_cut
    assert changed(prompt, prompt, {shown.values[0].field: "short"}) == (prompt, 0)


def test_the_text_on_a_page_is_limited_and_cut_values_cannot_be_changed() -> None:
    prompt = {str(one): {"class_type": "A", "inputs": {"b": "x" * 15_000, "c": one}} for one in range(400)}
    values = [value for node in nodes_of(prompt) for value in node.values]
    assert len(values) == 800
    assert sum(len(value.text) for value in values) < 400_000
    assert [value.is_cut for value in values[:2]] == [False, False]
    assert [(value.is_cut, len(value.text)) for value in values[-2:]] == [(True, 160), (False, 3)]
    # A form has only the beginning of a value that was cut, so it cannot change the value.
    made, count = changed(prompt, prompt, {values[-2].field: "y", values[-1].field: "7"})
    assert (made["399"]["inputs"], count) == ({"b": "x" * 15_000, "c": 7}, 1)


def test_the_hidden_part_of_a_value_survives_a_form() -> None:
    prompt = graph(url="https://user:secret@host/a?token=secret", steps=1)
    page = graph(url="https://host/a", steps=1)
    fields = {value.field: value.text for value in nodes_of(page)[0].values}
    made, count = changed(prompt, page, fields | {nodes_of(page)[0].values[1].field: "2"})
    assert count == 1
    assert made["1"]["inputs"] == {"url": prompt["1"]["inputs"]["url"], "steps": 2}


def test_only_whole_numbers_with_the_name_of_a_seed_are_renewed() -> None:
    prompt = {
        "1": node("A", seed=1, noise_seed=2, steps=3),
        "2": node("B", seed=["1", 0], noise_seed="text"),
        "3": node("C", seed=True),
    }
    made, count = with_new_seeds(prompt)
    assert count == 2
    assert made["1"]["inputs"]["seed"] != 1
    assert made["1"]["inputs"]["noise_seed"] != 2
    assert made["1"]["inputs"]["steps"] == 3
    assert (made["2"], made["3"]) == (prompt["2"], prompt["3"])
    assert has_seeds(prompt)
    assert not has_seeds({"2": prompt["2"], "3": prompt["3"]})
