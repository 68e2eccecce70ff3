"""Workflows are checked against node definitions; only a long check runs in a thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, cast

import pytest

from comfyui.executors.checking import problems_on
from comfyui.models import PromptRequest
from comfyui.servers.backend import Backend

_NAMES = [f"model {number}.safetensors" for number in range(50)]
_INFO = {"Save": {"input": {"required": {"name": [_NAMES]}}, "output": [], "output_node": True}}


class _Definitions(Mapping[str, Any]):
    """Records the threads that read it."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def __getitem__(self, name: str) -> Any:
        self.threads.add(threading.get_ident())
        return _INFO[name]

    def __iter__(self) -> Any:
        return iter(_INFO)

    def __len__(self) -> int:
        return len(_INFO)


class _Server:
    def __init__(self) -> None:
        self.definitions = _Definitions()

    async def object_info(self, **_: Any) -> Mapping[str, Any]:
        return self.definitions


def request(nodes: int, name: str = _NAMES[7]) -> PromptRequest:
    node = {"class_type": "Save", "inputs": {"name": name}}
    return PromptRequest(prompt={str(number): node for number in range(nodes)}).of_size(100 * nodes)


@pytest.mark.parametrize(("nodes", "is_here"), [(1, True), (20, True), (21, False)])
async def test_a_short_workflow_without_problems_is_checked_without_a_thread(nodes: int, *, is_here: bool) -> None:
    server = _Server()
    assert await problems_on(cast("Backend", server), request(nodes)) == []
    assert (server.definitions.threads == {threading.get_ident()}) is is_here


async def test_a_problem_of_a_short_workflow_suggests_the_closest_name() -> None:
    server = _Server()
    (problem,) = await problems_on(cast("Backend", server), request(1, "Model 7.safetensors"))
    assert problem.closest[0] == "model 7.safetensors"
    assert server.definitions.threads > {threading.get_ident()}
