"""ComfyUI's own templates as named workflows: each loads if its nodes are known, and runs if the engine has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui.engine import Engine, EngineOptions
from comfyui.engine.nodes.registry import NODES
from comfyui.named.parameters import NamedWorkflow
from comfyui.workflows.api_format import is_link
from tests.support import templates
from tests.support.running import RunningGateway, running_gateway

pytestmark = pytest.mark.timeout(300)
# Counts of version 0.1.x of the package; a newer one may have more.
TEMPLATES, KNOWN, WITH_PARAMETERS, RUN = 600, 110, 35, 27


def usable() -> dict[str, NamedWorkflow]:
    return {name: one for name, one in templates.all_loaded().items() if isinstance(one, NamedWorkflow)}


def test_every_template_with_known_nodes_loads() -> None:
    print("\n".join(templates.report()))
    assert len(templates.templates()) >= TEMPLATES
    assert {name: one.problem for name, one in templates.all_loaded().items() if one.problem} == {}
    assert len(usable()) >= KNOWN


def test_promoted_widgets_and_titles_give_parameters() -> None:
    with_parameters = [one for one in usable().values() if one.parameters]
    assert len(with_parameters) >= WITH_PARAMETERS
    for workflow in with_parameters:
        for parameter in workflow.parameters:
            for target in parameter.targets:
                assert not is_link(workflow.prompt[target.node_id]["inputs"].get(target.input)), workflow.name


def test_a_template_has_the_parameters_that_its_subgraph_exposes() -> None:
    flux = usable()["flux_dev_checkpoint_example"]
    assert [one.name for one in flux.parameters] == [
        *("prompt", "width", "height", "unet_name", "clip_name1", "clip_name2", "vae_name", "seed")
    ]
    assert {one.name: one.role for one in flux.parameters if one.role} == {
        **{name: name for name in ("prompt", "width", "height", "seed")}
    }
    assert flux.by_name["prompt"].multiline


async def run(gateway: RunningGateway, name: str) -> str:
    """Runs a template by its name; returns why it failed, or ""."""
    async with gateway.http.get(f"/workflows/{name}") as response:
        if response.status != 200:
            return await response.text()
    workflow = gateway.app.running.named.get(name)
    async with gateway.http.post(f"/workflows/{name}", json=templates.values_for(workflow)) as response:
        answer = await response.json()
    if response.status == 200 and answer["images"] and answer["workflow"]["version"] == workflow.version:
        return ""
    return str(answer)


async def test_every_template_with_nodes_of_the_engine_runs_on_it(tmp_path: Path) -> None:
    names = templates.known_by(NODES)
    needed = templates.needed({name: one for name, one in usable().items() if name in names})
    for name in needed.pictures:
        path = tmp_path / "input" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(templates.picture())
    folder = tmp_path / "workflows"
    folder.mkdir()
    for name in names:
        (folder / f"{name}.json").write_bytes(templates.templates()[name])
    options = EngineOptions(base_directory=tmp_path, models=needed.models, step_seconds=0)
    async with Engine(options) as engine, running_gateway(engine.url, workflows_dir=folder) as gateway:
        failed = {name: why for name in names if (why := await run(gateway, name))}
    print(f"run on the engine: {len(names) - len(failed)} of {len(names)}: {', '.join(names)}")
    assert {name: why for name, why in failed.items() if templates.REFUSED.get(name, "no reason") not in why} == {}
    assert len(names) - len(failed) >= RUN
