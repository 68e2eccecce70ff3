"""The inputs of node definitions, and the bounds of their cache."""

from __future__ import annotations

import tracemalloc
from typing import Any

from comfyui.workflows.node_definitions import input_specs


def definition(name: str, choices: int = 2) -> dict[str, Any]:
    return {"input": {"required": {name: [[f"{name} {number}" for number in range(choices)]]}, "optional": {}}}


def test_inputs_are_cached_for_each_definition_and_never_mixed_up() -> None:
    one, other = definition("a"), definition("a")
    assert input_specs(one) is input_specs(one)
    assert input_specs(other) is not input_specs(one)
    assert input_specs(other) == input_specs(one)
    for number in range(2000):  # each may get the memory address of an earlier one
        assert [spec.name for spec in input_specs(definition(f"n{number}"))] == [f"n{number}"]


def test_inputs_of_old_definitions_and_with_long_lists_leave_memory() -> None:
    tracemalloc.start()
    try:
        for number in range(300):
            input_specs(definition(f"n{number}", choices=2000))
            input_specs(definition(f"m{number}", choices=500))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 10_000_000  # all of them would be 60 MB
