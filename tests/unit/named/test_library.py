"""The folder of named workflows: its files and their changes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from comfyui.exceptions import (
    ComfyUIConnectionError,
    NamedWorkflowNotFoundError,
    NamedWorkflowUnusableError,
)
from comfyui.limits import Limits
from comfyui.named.library import NamedOptions, NamedWorkflows
from comfyui.named.parameters import NamedWorkflow, Unusable
from tests.support.named import OBJECT_INFO, workflow, write
from tests.support.running import until


@dataclass
class Servers:
    """The node definitions of servers, which a test may change."""

    said: list[dict[str, Any]] = field(default_factory=lambda: [OBJECT_INFO])
    to_say: list[dict[str, Any]] | None = None
    starts: int = 0
    asked: int = 0

    def known(self) -> Sequence[dict[str, Any]]:
        return self.said

    def moment(self) -> object:
        return self.starts

    async def ask(self) -> None:
        self.asked += 1
        self.said = self.to_say or self.said


FAST = NamedOptions(look_s=0.01)


async def library(folder: Path, servers: Servers | None = None, **options: Any) -> NamedWorkflows:
    named = NamedWorkflows(folder, servers or Servers(), NamedOptions(**options))
    await named.look(at_once=True)
    return named


def problems(named: NamedWorkflows) -> dict[str, str]:
    return {one.name: one.problem for one in named.all() if isinstance(one, Unusable)}


def usable(named: NamedWorkflows) -> list[str]:
    return [one.name for one in named.all() if isinstance(one, NamedWorkflow)]


async def test_a_workflow_is_a_file_or_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "b", workflow(text="$prompt"))
    write(tmp_path, "a/workflow", workflow(), "[parameters.prompt]\nnode = 2")
    (tmp_path / "README.md").write_text("not one")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden.json").write_text("not one")
    named = await library(tmp_path)
    assert usable(named) == ["a", "b"]
    assert [one.name for one in named.get("a").parameters] == ["prompt"]
    assert problems(named) == {}


@pytest.mark.parametrize("folder", [None, Path("/nonexistent")])
async def test_a_missing_folder_means_that_there_are_no_workflows(folder: Path | None) -> None:
    named = NamedWorkflows(folder, Servers(), FAST)
    async with named.following():
        assert list(named.all()) == []
        with pytest.raises(
            NamedWorkflowNotFoundError, match="there is no workflow 'x'; the gateway has no named workflows"
        ):
            named.get("x")


async def test_an_unusable_workflow_is_listed_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path, "good", workflow())
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "broken.json").write_text('{"1": {"class_type": "Text"}}')
    (tmp_path / "bad name.json").write_text("{}")
    (tmp_path / "alone.toml").write_text("")
    write(tmp_path, "Twin", workflow())
    write(tmp_path, "twin", workflow())
    write(tmp_path, "two", workflow())
    write(tmp_path, "two/workflow", workflow())
    write(tmp_path, "apart/workflow", workflow())
    (tmp_path / "apart.toml").write_text("")
    found = problems(await library(tmp_path))
    assert found.pop("text").startswith("its file is not JSON: ")
    assert found == {
        "list": "its file must hold a workflow, which is a JSON object",
        "empty": "The workflow is empty: it has no nodes.",
        "broken": "Not a workflow in API format: see node 1. node 1: The inputs of Text must be an object",
        "bad name": "rename its file: a name must be 1 to 64 letters, digits, dots, _ and -, and must begin with a"
        " letter or digit",
        "alone": "the sidecar has no alone.json beside it",
        "Twin": "another workflow has the same name but for upper and lower case; rename one of them",
        "twin": "another workflow has the same name but for upper and lower case; rename one of them",
        "two": "there are both two.json and two/workflow.json; remove one",
        "apart": "the sidecar must be beside the workflow's file, but it is at apart.toml",
    }


async def test_workflow_files_have_the_same_limits_as_request_bodies(tmp_path: Path) -> None:
    write(tmp_path, "a", workflow())
    found = problems(await library(tmp_path, limits=Limits(max_workflow_nodes=2)))
    assert found == {"a": "The workflow has more than 2 nodes"}
    found = problems(await library(tmp_path, max_bytes=100))
    assert found == {"a": "a.json must not be larger than 0.0001 MB (MAX_REQUEST_BODY_MB)"}


async def test_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    write(outside, "secret", workflow(), "title = 'x'")
    write(inside, "real", workflow())
    (inside / "link.json").symlink_to(outside / "secret.json")
    (inside / "folder").symlink_to(outside)
    write(outside, "workflow", workflow())
    (inside / "good.json").symlink_to("real.json")
    (inside / "real.toml").symlink_to(outside / "secret.toml")
    (inside / "loop.json").symlink_to("loop.json")
    os.mkfifo(inside / "pipe.json")
    named = await library(inside)
    assert usable(named) == ["good"]
    assert problems(named) == {
        "link": "link.json is a link that leads out of WORKFLOWS_DIR",
        "folder": "folder/workflow.json is a link that leads out of WORKFLOWS_DIR",
        "real": "real.toml is a link that leads out of WORKFLOWS_DIR",
        "loop": problems(named)["loop"],
        "pipe": "pipe.json is not a file",
    }
    assert "loop.json cannot be read" in problems(named)["loop"]


@pytest.mark.parametrize("name", ["../outside/secret", "..", "/etc/passwd", "real.json", "a\0b", "x" * 10_000])
async def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    write(tmp_path / "outside", "secret", workflow())
    write(tmp_path / "inside", "real", workflow())
    named = await library(tmp_path / "inside")
    with pytest.raises(NamedWorkflowNotFoundError) as caught:
        named.get(name)
    assert len(caught.value.detail) < 200


async def test_an_unknown_name_is_refused_with_the_closest_names(tmp_path: Path) -> None:
    write(tmp_path, "portrait", workflow())
    named = await library(tmp_path)
    with pytest.raises(NamedWorkflowNotFoundError, match="there is no workflow 'potrait'; did you mean portrait"):
        named.get("potrait")
    with pytest.raises(NamedWorkflowNotFoundError, match="'x'; GET /workflows lists them"):
        named.get("x")


async def test_a_call_of_an_unusable_workflow_gets_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(NamedWorkflowUnusableError, match="the workflow a cannot be used: The workflow is empty"):
        (await library(tmp_path)).get("a")


async def test_changes_of_the_folder_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "a", workflow(text="$prompt"))
    named = NamedWorkflows(tmp_path, Servers(), FAST)

    async def version() -> str:
        return named.get("a").version

    async def names() -> list[str]:
        return [one.name for one in named.all()]

    async with named.following():
        first, generation = named.get("a").version, named.generation
        write(tmp_path, "a", workflow(text="$words"))
        second = await until(version, lambda found: found != first)
        assert [one.name for one in named.get("a").parameters] == ["words"]
        assert named.generation != generation
        (tmp_path / "a.toml").write_text('title = "A"')
        third = await until(version, lambda found: found != second)
        (tmp_path / "a.toml").unlink()
        assert await until(version, lambda found: found != third) == second
        write(tmp_path, "b", workflow())
        await until(names, lambda found: found == ["a", "b"])
        (tmp_path / "a.json").unlink()
        await until(names, lambda found: found == ["b"])


async def test_a_new_file_is_used_when_two_looks_find_it_unchanged(tmp_path: Path) -> None:
    """At the first look the file may be half written."""
    named = await library(tmp_path)
    write(tmp_path, "a", workflow())
    await named.look()
    assert usable(named) == []
    await named.look()
    assert usable(named) == ["a"]


async def test_new_models_change_the_schema(tmp_path: Path) -> None:
    write(tmp_path, "a", workflow(loader="$model"))
    loader = {"input": {"required": {"name": [["new.safetensors"]]}}, "output": ["MODEL"]}
    servers = Servers(to_say=[OBJECT_INFO, OBJECT_INFO | {"Loader": loader}])
    named = await library(tmp_path, servers)
    before = named.get("a")
    assert "new.safetensors" not in before.schema["properties"]["model"]["enum"]
    assert await named.renew()
    assert named.get("a").schema["properties"]["model"]["enum"][-1] == "new.safetensors"
    assert named.get("a").version == before.version
    assert (await named.renew(), servers.asked) == (False, 1)


async def test_servers_are_asked_once_each_time_one_of_them_comes_up(tmp_path: Path) -> None:
    write(tmp_path, "a", workflow(loader="$model"))
    servers = Servers(said=[], to_say=[OBJECT_INFO])

    async def kind() -> str:
        return named.get("a").parameters[0].kind

    async def asked() -> int:
        return servers.asked

    named = NamedWorkflows(tmp_path, servers, FAST)
    async with named.following():
        await until(kind, lambda found: found == "choice")
        for _ in range(5):
            await named.look()
        assert servers.asked == 1
        servers.starts += 1
        await until(asked, lambda count: count == 2)


async def test_without_workflows_no_server_is_asked(tmp_path: Path) -> None:
    servers = Servers()
    named = NamedWorkflows(tmp_path, servers, FAST)
    async with named.following():
        write(tmp_path, "a", workflow())

        async def names() -> list[str]:
            return usable(named)

        assert servers.asked == 0
        await until(names, lambda found: found == ["a"])


async def test_a_file_in_the_editors_format_waits_for_node_definitions(tmp_path: Path) -> None:
    ui = {
        "nodes": [
            {"id": 4, "type": "LoadImage", "widgets_values": ["example.png", "image"], "title": "$image", "mode": 0}
        ],
        "links": [],
    }
    write(tmp_path, "a", ui)
    servers = Servers(said=[])
    named = await library(tmp_path, servers)
    with pytest.raises(ComfyUIConnectionError, match="no server has sent them yet"):
        named.get("a")
    servers.said = [OBJECT_INFO]
    await named.look()
    assert [(one.name, one.kind) for one in named.get("a").parameters] == [("image", "file")]


async def test_an_uploaded_input_file_changes_no_workflow(tmp_path: Path) -> None:
    write(tmp_path, "a", workflow(picture="$image"))
    uploaded = {"input": {"required": {"image": [["new.png"], {"image_upload": True}]}}, "output": ["IMAGE", "MASK"]}
    servers = Servers(to_say=[OBJECT_INFO | {"LoadImage": uploaded}])
    named = await library(tmp_path, servers)
    before, generation = named.get("a"), named.generation
    assert not await named.renew()
    assert (named.get("a"), named.generation, servers.asked) == (before, generation, 1)


async def test_only_workflows_with_a_changed_node_are_loaded_again(tmp_path: Path) -> None:
    write(tmp_path, "a", workflow(loader="$model"))
    write(tmp_path, "b", {"1": workflow()["4"]})
    loader = {"input": {"required": {"name": [["new.safetensors"]]}}, "output": ["MODEL"]}
    servers = Servers()
    named = await library(tmp_path, servers)
    first, second = named.get("a"), named.get("b")
    servers.said = [OBJECT_INFO | {"Loader": loader}]
    await named.look()
    assert named.get("a").by_name["model"].choices == ["new.safetensors"]
    assert (named.get("a") is first, named.get("b") is second) == (False, True)


async def test_a_folder_that_can_no_longer_be_read_keeps_its_workflows(tmp_path: Path) -> None:
    folder = tmp_path / "workflows"
    write(folder, "a", workflow())
    named = NamedWorkflows(folder, Servers(), FAST)
    await named.look()
    await named.look()
    folder.rename(tmp_path / "away")
    folder.write_text("now a file")
    with capture_logs() as lines:
        for _ in range(3):
            await named.look()
    assert usable(named) == ["a"]
    told = [line for line in lines if line["event"] == "workflows.not_read"]
    assert [line["reason"] for line in told] == ["Not a directory"]


async def test_equal_choices_of_two_workflows_are_kept_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, name, workflow(loader="$model"))
    named = await library(tmp_path)
    one, other = (named.get(name).by_name["model"] for name in ("a", "b"))
    assert one.choices is other.choices
    assert one.spellings is other.spellings
    assert named.get("a").schema["properties"]["model"]["enum"] is one.choices


class BrokenDefinition(dict[str, Any]):
    """A definition that raises an error when it is read, as a bug of ours would."""

    def get(self, key: str, default: Any = None) -> Any:
        if key == "input_order":
            raise RuntimeError("a mistake")
        return super().get(key, default)


async def test_a_crash_in_reading_one_file_spares_the_others(tmp_path: Path) -> None:
    write(tmp_path, "a", workflow(loader="$model"))
    write(tmp_path, "b", {"1": workflow()["4"]})
    with capture_logs() as lines:
        named = await library(tmp_path, Servers(said=[OBJECT_INFO | {"Loader": BrokenDefinition()}]))
    assert usable(named) == ["b"]
    assert problems(named) == {"a": "the gateway failed while it read the file; its log has the reason"}
    assert [line["workflow"] for line in lines if line["event"] == "workflow.crashed"] == ["a"]


@pytest.mark.parametrize("definition", [None, "x", 5, [], {}, {"input": 5}, {"input": {"required": {"name": 5}}}])
async def test_a_malformed_definition_of_one_class_breaks_no_workflow(tmp_path: Path, definition: Any) -> None:
    write(tmp_path, "a", workflow(text="$prompt"))
    named = await library(tmp_path, Servers(said=[OBJECT_INFO | {"Loader": definition}]))
    assert [one.name for one in named.get("a").parameters] == ["prompt"]
