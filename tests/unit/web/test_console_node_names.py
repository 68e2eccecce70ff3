"""The names of nodes in the console."""

from __future__ import annotations

import pytest

from comfyui.web.console.node_names import plain_node_title, plain_title


@pytest.mark.parametrize(
    ("title", "class_type", "shown"),
    [
        ("$seed", "KSampler", "KSampler"),
        ("output:picture", "SaveImage", "SaveImage"),
        ("My sampler", "KSampler", "My sampler"),
        ("Costs $5", "KSampler", "Costs $5"),
        ("$seed", "", "$seed"),
    ],
)
def test_a_title_that_marks_a_parameter_is_replaced_by_the_class(title: str, class_type: str, shown: str) -> None:
    assert plain_title(title, class_type) == shown


def test_a_node_that_is_missing_in_the_graph_is_named_by_its_id() -> None:
    prompt = {"3": {"class_type": "KSampler", "inputs": {}, "_meta": {"title": "$seed"}}}

    assert plain_node_title(prompt, "3") == "KSampler"
    assert plain_node_title(prompt, "4") == "4"
