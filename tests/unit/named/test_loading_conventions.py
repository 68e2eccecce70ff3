"""Files of other tools and of the editor, from their bytes to a call."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from comfyui.exceptions import ParametersError
from comfyui.named.parameters import MISSING, NamedOutput
from tests.support.named import OBJECT_INFO, bound, loaded, node, unusable, workflow

INFO: dict[str, Any] = {
    **OBJECT_INFO,
    "SaveImage": {
        "input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "ComfyUI"}]}},
        "output": [],
        "output_node": True,
        "display_name": "Save Image",
    },
    "EmptyImage": {"input": {"required": {"width": ["INT", {"default": 8}]}}, "output": ["IMAGE"]},
}


def served() -> dict[str, Any]:
    """A workflow of ComfyUI-Deploy in API format, with a value of each kind."""
    return {
        **workflow(),
        "2": node("Text", "", text=["21", 0], model=["1", 0]),
        "3": node(
            "Sampler", "", seed=["22", 0], steps=["23", 0], cfg=8.0, tiled=False, method=["24", 0], positive=["2", 0]
        ),
        "21": node("ComfyUIDeployExternalText", "", input_id="prompt", default_value="a cat"),
        "22": node("ComfyUIDeployExternalSeed", "", input_id="seed", default_value=-1, min_value=1, max_value=1000),
        "23": node(
            "ComfyUIDeployExternalNumberSliderInt", "", input_id="steps", default_value=30, min_value=10, max_value=500
        ),
        "24": node("ComfyUIDeployExternalEnum", "", input_id="method", default_value="heun", options='["heun"]'),
        "25": node("ComfyUIDeployExternalImage", "", input_id="photo", default_value=["26", 0]),
        "26": node("EmptyImage", "", width=16),
        "27": node("ComfyDeployOutputImage", "", images=["25", 0], filename_prefix="x", output_id="copy"),
    }


def test_parameters_of_comfyui_deploy_get_the_types_of_the_inputs_they_feed() -> None:
    named = loaded(served(), object_info=INFO)
    kinds = {one.name: (one.kind, one.minimum, one.maximum, one.own) for one in named.parameters}
    assert kinds == {
        "prompt": ("text", None, None, "a cat"),
        "seed": ("integer", 1, 1000, 1),
        "steps": ("integer", 10, 100, 30),
        "method": ("choice", None, None, "heun"),
        "photo": ("file", None, None, ""),
    }
    assert named.by_name["method"].choices == ["heun"]
    assert [one.name for one in named.parameters if one.required] == []
    assert named.by_name["seed"].seed
    assert named.outputs == (NamedOutput("copy", "27"),)
    assert "ComfyUIDeploy" not in str(named.prompt)


def test_a_call_sets_the_fed_inputs_and_leaves_out_a_missing_picture() -> None:
    call = bound(loaded(served(), object_info=INFO), prompt="a fox", steps="40")
    assert call.prompt["2"]["inputs"]["text"] == "a fox"
    assert call.prompt["3"]["inputs"]["steps"] == 40
    assert 1 <= call.prompt["3"]["inputs"]["seed"] <= 1000
    assert call.prompt["27"]["inputs"]["images"] == ["26", 0]
    assert "25" not in call.prompt
    assert call.images == ()


def test_a_call_with_the_picture_loads_the_placed_file() -> None:
    call = bound(loaded(served(), object_info=INFO), photo="https://example.org/cat.png")
    assert call.prompt["25"]["inputs"] == {"image": call.images[0].name}
    assert call.prompt["27"]["inputs"]["images"] == ["25", 0]
    assert [one.image for one in call.images] == ["https://example.org/cat.png"]


def test_the_gateway_brings_the_picture_of_a_workflows_default_url() -> None:
    prompt = served()
    prompt["25"] = node(
        "ComfyUIDeployExternalImage", "", input_id="photo", default_value_url="https://example.org/a.png"
    )
    named = loaded(prompt, object_info=INFO)
    assert not named.by_name["photo"].required
    call = bound(named)
    assert [one.image for one in call.images] == ["https://example.org/a.png"]
    assert call.prompt["25"]["inputs"] == {"image": call.images[0].name}
    assert "example.org" not in str(call.prompt)


def test_values_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(ParametersError) as error:
        bound(loaded(served(), object_info=INFO), steps=5, method="euler", seed=2000, wrong=1)
    assert sorted(error.value.parameters) == ["method", "seed", "steps", "wrong"]


def test_a_sidecar_takes_precedence_and_may_rename_a_picture() -> None:
    named = loaded(
        served(), '[parameters.portrait]\nnode = "25"\ninput = "image"\nrequired = false\n', object_info=INFO
    )
    assert "photo" not in named.by_name
    assert bound(named).prompt["27"]["inputs"]["images"] == ["26", 0]
    assert bound(named, portrait="aGk=").prompt["27"]["inputs"]["images"] == ["25", 0]


def test_two_nodes_with_one_input_id_are_refused_with_both_nodes() -> None:
    prompt = served()
    prompt["23"]["inputs"]["input_id"] = "prompt"
    assert (
        unusable(prompt, object_info=INFO) == "two parameters have the name prompt: that of node 2 and that of node 3"
    )


def test_one_number_is_put_into_inputs_of_several_types() -> None:
    prompt = {
        **workflow(),
        "2": node("Text", "", text=["9", 2], model=["1", 0]),
        "3": node("Sampler", "", seed=1, steps=["9", 1], cfg=["9", 0], method="euler", positive=["2", 0]),
        "9": node("ServingInputNumber", "", argument="amount", default=8.5, min_value=1, max_value=50, step=0.1),
    }
    named = loaded(prompt, object_info=INFO)
    (amount,) = named.parameters
    assert (amount.kind, amount.minimum, amount.maximum) == ("number", 1, 50)
    inputs = bound(named, amount=12.6).prompt
    assert inputs["3"]["inputs"]["cfg"] == 12.6
    assert inputs["3"]["inputs"]["steps"] == 13
    assert inputs["2"]["inputs"]["text"] == "12.6"


def test_texts_like_param_prompt_are_required_without_a_default_or_a_seed() -> None:
    prompt = workflow()
    prompt["2"]["inputs"]["text"] = "PARAM_PROMPT"
    prompt["3"]["inputs"] |= {"seed": "PARAM_INT_SEED", "steps": "PARAM_INT_STEPS", "cfg": "PARAM_FLOAT_SCALE"}
    prompt["4"]["inputs"]["image"] = "PARAM_IMAGE"
    named = loaded(prompt, object_info=INFO)
    assert {one.name: (one.kind, one.required, one.seed) for one in named.parameters} == {
        "prompt": ("text", True, False),
        "seed": ("integer", False, True),
        "steps": ("integer", False, False),
        "scale": ("number", True, False),
        "image": ("file", True, False),
    }
    call = bound(named, prompt="a fox", scale=3, image="aGk=")
    assert "steps" not in call.prompt["3"]["inputs"]
    assert "PARAM_" not in str(call.prompt)


def ui_file(*nodes: dict[str, Any], links: list[list[Any]] | None = None) -> dict[str, Any]:
    return {"version": 0.4, "nodes": list(nodes), "links": links or []}


def ui_node(node_id: int, class_type: str, values: list[Any], *outputs: list[int], **more: Any) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": class_type,
        "mode": 0,
        "inputs": [],
        "outputs": [{"name": str(index), "type": "*", "links": links} for index, links in enumerate(outputs)],
        "widgets_values": values,
        "properties": {},
        **more,
    }


def test_a_file_of_the_editor_with_pack_nodes_needs_no_pack_on_any_server() -> None:
    named = loaded(
        ui_file(
            ui_node(1, "ComfyUIDeployExternalImage", ["photo", "Photo", "Yours.", ""], [1]),
            ui_node(2, "SaveImage", ["x"], inputs=[{"name": "images", "type": "IMAGE", "link": 1}]),
            links=[[1, 1, 0, 2, 0, "IMAGE"]],
        ),
        object_info=INFO,
    )
    (photo,) = named.parameters
    assert (photo.name, photo.kind, photo.medium, photo.title) == ("photo", "file", "image", "Photo")
    assert named.prompt["1"]["class_type"] == "LoadImage"


def test_titles_promoted_widgets_and_primitives_of_the_editor_are_parameters() -> None:
    inner = {
        "id": "group",
        "name": "Group",
        "inputs": [{"name": "prefix", "label": "File name", "type": "STRING", "linkIds": [2]}],
        "outputs": [],
        "nodes": [
            ui_node(7, "LoadImage", ["a.png", "image"], [1], [], title="$photo"),
            ui_node(
                8,
                "SaveImage",
                ["x"],
                title="output: picture",
                inputs=[
                    {"name": "images", "type": "IMAGE", "link": 1},
                    {"name": "filename_prefix", "type": "STRING", "link": 2, "widget": {"name": "filename_prefix"}},
                ],
            ),
        ],
        "links": [
            {"id": 1, "origin_id": 7, "origin_slot": 0, "target_id": 8, "target_slot": 0, "type": "IMAGE"},
            {"id": 2, "origin_id": -10, "origin_slot": 0, "target_id": 8, "target_slot": 1, "type": "STRING"},
        ],
    }
    file = ui_file(
        ui_node(1, "group", ["mine"]),
        ui_node(
            2, "EmptyImage", [8], [5], inputs=[{"name": "width", "type": "INT", "link": 4, "widget": {"name": "width"}}]
        ),
        ui_node(3, "SaveImage", ["y"], inputs=[{"name": "images", "type": "IMAGE", "link": 5}]),
        ui_node(4, "PrimitiveNode", [32, "fixed"], [4], title="$wide"),
        links=[[4, 4, 0, 2, 0, "INT"], [5, 2, 0, 3, 0, "IMAGE"]],
    )
    file["definitions"] = {"subgraphs": [inner]}
    named = loaded(copy.deepcopy(file), object_info=INFO)
    assert {one.name: (one.targets[0].node_id, one.targets[0].input, one.own) for one in named.parameters} == {
        "photo": ("1:7", "image", "a.png"),
        "wide": ("2", "width", 32),
        "file_name": ("1:8", "filename_prefix", "mine"),
    }
    assert named.outputs == (NamedOutput("picture", "1:8"),)
    assert named.by_name["wide"].default is MISSING
    call = bound(named, photo="aGk=", wide=64, file_name="yours")
    assert call.prompt["1:8"]["inputs"]["filename_prefix"] == "yours"
    assert call.prompt["2"]["inputs"]["width"] == 64


def test_the_title_of_a_subgraph_names_its_widget() -> None:
    inner = {
        "id": "group",
        "name": "Group",
        "inputs": [{"name": "width", "type": "INT", "linkIds": [2]}],
        "outputs": [],
        "nodes": [
            ui_node(
                7,
                "EmptyImage",
                [8],
                [1],
                inputs=[{"name": "width", "type": "INT", "link": 2, "widget": {"name": "width"}}],
            ),
            ui_node(8, "SaveImage", ["x"], inputs=[{"name": "images", "type": "IMAGE", "link": 1}]),
        ],
        "links": [
            {"id": 1, "origin_id": 7, "origin_slot": 0, "target_id": 8, "target_slot": 0, "type": "IMAGE"},
            {"id": 2, "origin_id": -10, "origin_slot": 0, "target_id": 7, "target_slot": 0, "type": "INT"},
        ],
    }
    file = ui_file(ui_node(1, "group", [24], title="$size"), ui_node(2, "group", [48], title="$size"))
    file["definitions"] = {"subgraphs": [inner]}
    assert (
        unusable(file, object_info=INFO) == "two parameters have the name size: that of node 1:7 and that of node 2:7"
    )
    file["nodes"][1]["title"] = "input: big.width"
    named = loaded(file, object_info=INFO)
    assert {one.name: one.own for one in named.parameters} == {"size": 24, "big": 48}


def group(*widgets: str) -> dict[str, Any]:
    """A file of the editor with a subgraph, in which nodes of these classes save a picture, and a node beside it."""
    inner = {
        "id": "group",
        "name": "Group",
        "inputs": [],
        "outputs": [],
        "nodes": [
            ui_node(7, "EmptyImage", [8], [1]),
            *(
                ui_node(8 + number, class_type, ["x"], inputs=[{"name": "images", "type": "IMAGE", "link": 1}])
                for number, class_type in enumerate(widgets)
            ),
        ],
        "links": [{"id": 1, "origin_id": 7, "origin_slot": 0, "target_id": 8, "target_slot": 0, "type": "IMAGE"}],
    }
    file = ui_file(ui_node(1, "group", []), ui_node(2, "LoadImage", ["a.png", "image"], [], []))
    file["definitions"] = {"subgraphs": [inner]}
    return file


def test_an_output_title_of_a_subgraph_names_its_node_that_makes_files() -> None:
    file = group("SaveImage")
    file["nodes"][0]["title"] = "output: picture"
    named = loaded(file, object_info=INFO)
    assert named.outputs == (NamedOutput("picture", "1:8"),)
    assert named.warnings == ()


@pytest.mark.parametrize(
    ("title", "warning"),
    [
        ("output: a b", "node 1: its title 'output: a b' makes no output: a name must be 1 to 64"),
        ("$size", "node 1: its title '$size' makes no parameter, because the node does not run or shows no value"),
    ],
)
def test_a_meaningless_title_of_a_subgraph_gives_a_warning(title: str, warning: str) -> None:
    file = group("SaveImage")
    file["nodes"][0]["title"] = title
    named = loaded(file, object_info=INFO)
    assert (named.outputs, named.parameters) == ((), ())
    assert len(named.warnings) == 1
    assert named.warnings[0].startswith(warning)


def test_a_subgraph_with_two_nodes_that_make_files_names_no_output() -> None:
    file = group("SaveImage", "SaveImage")
    file["nodes"][0]["title"] = "output: picture"
    named = loaded(file, object_info=INFO)
    assert named.outputs == ()
    assert "2 nodes in it make files, but exactly one must" in "".join(named.warnings)


def test_a_title_of_a_node_that_does_not_run_gives_a_warning() -> None:
    file = group("SaveImage")
    file["nodes"][1] |= {"mode": 2, "title": "$photo"}
    named = loaded(file, object_info=INFO)
    assert named.parameters == ()
    assert named.warnings == (
        "node 2: its title '$photo' makes no parameter, because the node does not run or shows no value",
    )


def test_choices_in_the_workflow_are_used_and_the_index_follows_the_choice() -> None:
    """ComfyUI declares no choices for a CustomCombo, and runs any text with the number that it is given."""
    info = {
        **INFO,
        "CustomCombo": {
            "input": {"required": {"choice": ["COMBO", {"multiselect": False, "options": []}]}},
            "output": ["STRING", "INT"],
            "python_module": "comfy_extras.nodes_logic",
        },
        "PreviewAny": {"input": {"required": {"source": ["*", {}]}}, "output": [], "output_node": True},
    }
    named = loaded(
        ui_file(
            ui_node(1, "CustomCombo", ["b", 1, "a", "b", "c", ""], [], [1], title="$style"),
            ui_node(2, "PreviewAny", [], inputs=[{"name": "source", "type": "*", "link": 1}]),
            links=[[1, 1, 1, 2, 0, "INT"]],
        ),
        object_info=info,
    )
    (style,) = named.parameters
    assert (style.kind, list(style.choices or ()), style.own) == ("choice", ["a", "b", "c"], "b")
    inputs = bound(named, style="c").prompt["1"]["inputs"]
    assert (inputs["choice"], inputs["index"]) == ("c", 2)
    assert bound(named).prompt["1"]["inputs"]["index"] == 1
    with pytest.raises(ParametersError, match="not one of the choices"):
        bound(named, style="d")
