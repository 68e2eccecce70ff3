"""Limits that are small enough for a test to reach."""

from __future__ import annotations

from typing import Any

SMALL_LIMITS: dict[str, Any] = {
    "max_json_values": 2_000,
    "max_json_depth": 16,
    "max_workflow_nodes": 20,
    "max_node_inputs": 5,
    "max_inputs": 4,
    "max_name_length": 30,
    "max_problems": 3,
}


SMALL_ANSWER_BYTES = 1_000_000
