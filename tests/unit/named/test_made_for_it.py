"""Nodes of ComfyUI-Deploy, comfy-pack and the Serving-Toolkit: their parameters, and the workflow without them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from comfyui.named.conventions import Conventions, resolved
from comfyui.named.nodes import Nodes
from comfyui.named.parameters import MISSING, Found, NamedOutput, Target
from comfyui.named.replacing import with_fallbacks
from comfyui.workflows.api_format import is_link

NODES = Nodes(None)


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}


def conventions_of(prompt: dict[str, Any]) -> Conventions:
    """The findings in a workflow; checks that the workflow is unchanged and that no link leads nowhere."""
    before = copy.deepcopy(prompt)
    found = resolved(prompt, NODES)
    assert prompt == before
    for each in found.prompt.values():
        for value in each["inputs"].values():
            assert not is_link(value) or value[0] in found.prompt
    for one in found.found:
        for target in one.targets:
            assert not is_link(found.prompt[target.node_id]["inputs"].get(target.input))
    return found


def only(prompt: dict[str, Any]) -> Found:
    (found,) = conventions_of(prompt).found
    return found


def external(class_type: str, input_id: str = "value", **inputs: Any) -> dict[str, Any]:
    return node(f"ComfyUIDeployExternal{class_type}", input_id=input_id, **inputs)


# ComfyUI-Deploy


def test_the_callers_text_goes_to_all_inputs_that_the_node_fed() -> None:
    found = conventions_of(
        {
            "1": external("Text", "prompt", default_value="a fox", display_name="Prompt", description="What to draw."),
            "2": node("CLIPTextEncode", text=["1", 0], clip=["3", 1]),
            "3": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
            "4": node("ShowText", text=["1", 0]),
        }
    )
    assert found.prompt["2"]["inputs"] == {"text": "a fox", "clip": ["3", 1]}
    assert found.prompt["4"]["inputs"] == {"text": "a fox"}
    assert "1" not in found.prompt
    assert found.found == (
        Found(
            "prompt",
            (Target("2", "text"), Target("4", "text")),
            "external",
            title="Prompt",
            description="What to draw.",
        ),
    )


@pytest.mark.parametrize(
    ("made", "value", "expected"),
    [
        (external("TextAny", default_value="euler"), "euler", {}),
        (external("Boolean", default_value=True), True, {"kind": "boolean"}),
        (external("Number", default_value=1.5), 1.5, {"kind": "number"}),
        (external("NumberInt", default_value=7), 7, {"kind": "integer"}),
        (
            external("NumberSlider", default_value=0.5, min_value=0, max_value=2.5),
            0.5,
            {"kind": "number", "minimum": 0, "maximum": 2.5},
        ),
        (
            external("NumberSliderInt", default_value=3, min_value=1, max_value=8),
            3,
            {"kind": "integer", "minimum": 1, "maximum": 8},
        ),
        (external("Checkpoint", default_value="m.safetensors"), "m.safetensors", {}),
        (external("Lora", default_lora_name="l.safetensors", lora_url=""), "l.safetensors", {}),
        (external("FaceModel", default_face_model_name="f.safetensors"), "f.safetensors", {}),
        (external("Enum", default_value="b", options='["a", "b"]'), "b", {"choices": ("a", "b")}),
        (external("Enum", default_value="x", options="a\nb\n"), "a", {"choices": ("a", "b")}),
        (external("File", file_url=""), "", {"kind": "file"}),
        (
            external("File", file_url="https://example.org/a.wav"),
            "https://example.org/a.wav",
            {"kind": "file", "default": "https://example.org/a.wav"},
        ),
    ],
)
def test_each_kind_of_value_replaces_the_link_to_its_node(
    made: dict[str, Any], value: Any, expected: dict[str, Any]
) -> None:
    found = conventions_of({"1": made, "2": node("Some", value=["1", 0])})
    assert found.prompt == {"2": node("Some", value=value)}
    assert found.found == (Found("value", (Target("2", "value"),), "external", **expected),)


@pytest.mark.parametrize(("own", "default", "literal"), [(-1, MISSING, 5), (7, 7, 7), (99, MISSING, 5)])
def test_a_seed_is_chosen_unless_its_own_value_is_within_the_limits(own: int, default: Any, literal: int) -> None:
    prompt = {
        "1": external("Seed", "seed", default_value=own, min_value=5, max_value=50),
        "2": node("KSampler", seed=["1", 0]),
    }
    found = only(prompt)
    assert (found.seed, found.kind, found.minimum, found.maximum) == (True, "integer", 5, 50)
    assert found.default == default
    assert conventions_of(prompt).prompt["2"]["inputs"]["seed"] == literal


def test_a_picture_node_becomes_a_loader_and_no_server_fetches_the_url() -> None:
    found = conventions_of(
        {
            "1": external("Image", "photo", default_value_url="https://example.org/cat.png"),
            "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
        }
    )
    assert found.prompt["1"] == {"class_type": "LoadImage", "inputs": {"image": ""}}
    assert found.prompt["2"]["inputs"]["images"] == ["1", 0]
    (photo,) = found.found
    assert photo == Found(
        "photo", (Target("1", "image"),), "external", kind="file", default="https://example.org/cat.png"
    )
    assert "example.org" not in str(found.prompt)


def test_the_linked_default_replaces_a_missing_picture() -> None:
    prompt = {
        "1": external("Image", "photo", default_value=["9", 0]),
        "2": node("SaveImage", images=["1", 0]),
        "9": node("EmptyImage", width=8),
    }
    found = conventions_of(prompt)
    assert [one.required for one in found.found] == [False]
    given = with_fallbacks(found.prompt, found.fallbacks, {"photo"})
    assert given["2"]["inputs"] == {"images": ["1", 0]}
    without = with_fallbacks(found.prompt, found.fallbacks, set())
    assert without == {"2": node("SaveImage", images=["9", 0]), "9": node("EmptyImage", width=8)}
    assert found.prompt["2"]["inputs"] == {"images": ["1", 0]}


def test_the_default_of_a_missing_picture_may_be_another_missing_picture() -> None:
    prompt = {
        "1": external("Image", "first", default_value=["2", 0]),
        "2": external("Image", "second", default_value=["9", 0]),
        "3": node("SaveImage", images=["1", 0]),
        "9": node("EmptyImage", width=8),
    }
    found = conventions_of(prompt)
    assert with_fallbacks(found.prompt, found.fallbacks, set())["3"]["inputs"] == {"images": ["9", 0]}
    assert with_fallbacks(found.prompt, found.fallbacks, {"second"})["3"]["inputs"] == {"images": ["2", 0]}


def test_a_picture_with_its_alpha_keeps_four_channels() -> None:
    found = conventions_of({"1": external("ImageAlpha", "photo"), "2": node("SaveImage", images=["1", 0])})
    loader = found.found[0].targets[0].node_id
    assert found.prompt[loader]["class_type"] == "LoadImage"
    assert found.prompt["1"]["class_type"] == "JoinImageWithAlpha"
    assert found.prompt["1"]["inputs"] == {"image": [loader, 0], "alpha": [loader, 1]}


def test_a_sound_is_loaded_by_comfyuis_own_node() -> None:
    found = conventions_of({"1": external("Audio", "song", audio_file=""), "2": node("SaveAudio", audio=["1", 0])})
    assert found.prompt["1"] == {"class_type": "LoadAudio", "inputs": {"audio": ""}}
    assert [one.required for one in found.found] == [None]


def test_a_whole_film_is_loaded_by_comfyuis_own_nodes() -> None:
    found = conventions_of(
        {
            "1": external("Video", "film", force_rate=0, force_size="Disabled", frame_load_cap=0, select_every_nth=1),
            "2": node("SaveImage", images=["1", 0]),
            "3": node("SaveAudio", audio=["1", 2]),
        }
    )
    (film,) = found.found
    (target,) = film.targets
    assert found.prompt[target.node_id]["class_type"] == "LoadVideo"
    assert found.prompt["1"] == node("GetVideoComponents", video=[target.node_id, 0])
    assert found.prompt["3"]["inputs"] == {"audio": ["1", 1]}


def test_a_film_with_a_selection_of_frames_keeps_its_settings() -> None:
    settings = {"force_rate": 12, "custom_width": 512, "frame_load_cap": 16, "select_every_nth": 2}
    found = conventions_of({"1": external("Video", "film", **settings), "2": node("SaveImage", images=["1", 0])})
    assert found.prompt["1"]["class_type"] == "VHS_LoadVideo"
    assert found.prompt["1"]["inputs"] == {**settings, "video": "", "custom_width": 0, "custom_height": 0}
    assert found.found[0].targets == (Target("1", "video"),)


def test_a_value_that_is_a_link_stays_linked() -> None:
    found = conventions_of(
        {
            "1": external("Text", "prompt", default_value=["9", 0]),
            "2": node("CLIPTextEncode", text=["1", 0]),
            "9": node("Words"),
        }
    )
    assert found.found == ()
    assert found.prompt["2"]["inputs"] == {"text": ["9", 0]}
    assert "a value cannot replace a link" in found.warnings[0]


def test_a_node_that_makes_no_parameter_gives_a_warning() -> None:
    found = conventions_of(
        {"1": external("Text", "unused", default_value=""), "2": external("Text", "!!"), "3": external("New")}
    )
    assert found.found == ()
    assert found.warnings == (
        "node 1 (ComfyUIDeployExternalText): no node uses its value, so unused is not a parameter",
        "node 2 (ComfyUIDeployExternalText): its input_id is not a parameter's name",
        "node 3 (ComfyUIDeployExternalNew): the gateway does not know this node of ComfyUI-Deploy",
    )


def test_outputs_are_named_by_their_ids_and_saved_by_comfyuis_own_node() -> None:
    found = conventions_of(
        {
            "1": node("EmptyImage"),
            "2": node("ComfyDeployOutputImage", images=["1", 0], filename_prefix="p", quality=80, output_id="final"),
            "3": node("ComfyDeployOutputImage", images=["1", 0], filename_prefix="p", output_id="final"),
            "4": node("ComfyDeployOutputText", text=["1", 0], output_id="words"),
        }
    )
    assert found.outputs == (NamedOutput("final", "2"), NamedOutput("final_3", "3"), NamedOutput("words", "4"))
    assert found.prompt["2"] == node("SaveImage", images=["1", 0], filename_prefix="p")
    assert found.prompt["4"]["class_type"] == "ComfyDeployOutputText"


# comfy-pack


def test_inputs_of_comfy_pack_get_the_names_that_comfy_pack_gives_them() -> None:
    found = conventions_of(
        {
            "1": node("CPackInputString", "prompt", value="a fox"),
            "2": node("CPackInputInt", "Int Input", value=20, min=1, max=9223372036854775807),
            "3": node("CPackInputImage", "Image Input", image="a.png"),
            "4": node("CPackInputAny", "Sampler!", input="euler"),
            "5": node("CPackInputInt", "Int Input", value=30, min=-9223372036854775807, max=100),
            "6": node("KSampler", steps=["2", 0], sampler_name=["4", 0], text=["1", 0], pixels=["3", 0]),
            "7": node("KSampler", steps=["5", 0]),
            "8": node("CPackOutputImage", "Image Output", images=["3", 0], filename_prefix="x"),
        }
    )
    assert [(one.name, one.targets, one.kind, one.minimum, one.maximum) for one in found.found] == [
        ("prompt", (Target("6", "text"),), "text", None, None),
        ("steps", (Target("6", "steps"),), "integer", 1, None),
        ("pixels", (Target("3", "image"),), "file", None, None),
        ("sampler_name", (Target("6", "sampler_name"),), None, None, None),
        ("steps_5", (Target("7", "steps"),), "integer", None, 100),
    ]
    assert found.prompt["3"]["class_type"] == "LoadImage"
    assert found.outputs == (NamedOutput("image_output", "8"),)
    assert found.prompt["8"]["class_type"] == "SaveImage"


def test_the_options_of_comfy_packs_any_are_its_limits_and_choices() -> None:
    any_of = node("CPackInputAny", "mode", input="a")
    any_of["_meta"]["options"] = {"values": ["a", "b"]}
    assert only({"1": any_of, "2": node("Some", mode=["1", 0])}).choices == ("a", "b")
    any_of["_meta"]["options"] = {"min": 0, "max": 1, "round": 0.01}
    found = only({"1": any_of, "2": node("Some", mode=["1", 0])})
    assert (found.minimum, found.maximum) == (0, 1)


# ComfyUI-Serving-Toolkit


def test_a_served_workflow_needs_no_serving_nodes_and_keeps_no_secret() -> None:
    found = conventions_of(
        {
            "1": node("DiscordServing", discord_token="secret"),
            "2": node("ServingInputText", serving_config=["1", 0], argument="prompt", default="a fox"),
            "3": node("CLIPTextEncode", text=["2", 0]),
            "4": node("ServingInputText", serving_config=["1", 0], argument="prompt", default="a fox"),
            "5": node("CLIPTextEncode", text=["4", 0]),
            "6": node("ServingOutput", serving_config=["1", 0], image=["9", 0], frame_duration=30),
            "7": node("CommandPickerServing", serving_config=["1", 0], command_name="x", should_execute=["6", 0]),
            "8": node("ServingTextOutput", serving_config=["1", 0], text=["2", 0]),
            "9": node("EmptyImage"),
        }
    )
    assert found.found == (
        Found("prompt", (Target("3", "text"), Target("8", "source"), Target("5", "text")), "serving", kind="text"),
    )
    assert found.prompt["6"] == node("SaveImage", images=["9", 0], filename_prefix="ComfyUI")
    assert found.prompt["8"] == node("PreviewAny", source="a fox")
    assert sorted(found.prompt) == ["3", "5", "6", "8", "9"]
    assert "secret" not in str(found)


def test_one_number_is_put_in_as_a_number_an_integer_and_a_text() -> None:
    found = conventions_of(
        {
            "1": node("ServingInputNumber", argument="strength", default=0.7, min_value=0, max_value=1, step=0.1),
            "2": node("Some", number=["1", 0], whole=["1", 1], words=["1", 2]),
        }
    )
    assert found.prompt["2"]["inputs"] == {"number": 0.7, "whole": 1, "words": "0.7"}
    (strength,) = found.found
    assert strength.targets == (Target("2", "number"), Target("2", "whole", "integer"), Target("2", "words", "text"))
    assert (strength.kind, strength.minimum, strength.maximum) == ("number", 0, 1)


def test_all_pictures_of_a_served_workflow_are_one_parameter() -> None:
    prompt = {
        "1": node("ServingInputImage", default_image=["9", 0]),
        "2": node("ServingInputTextImage", argument="prompt", default_prompt="a fox"),
        "3": node("Some", image=["1", 0], other=["2", 1], text=["2", 0]),
        "4": node("ServingInputImageAsLatent", vae=["9", 1], default_latent=["9", 2]),
        "5": node("KSampler", latent_image=["4", 0]),
        "9": node("Loader"),
    }
    found = conventions_of(prompt)
    names = {one.name: one for one in found.found}
    assert sorted(names) == ["image", "prompt"]
    assert {found.prompt[one.node_id]["class_type"] for one in names["image"].targets} == {"LoadImage"}
    assert len(names["image"].targets) == 3
    assert found.prompt["3"]["inputs"]["text"] == "a fox"
    assert found.prompt["4"]["class_type"] == "VAEEncode"
    assert found.prompt["4"]["inputs"]["vae"] == ["9", 1]


# Nodes of packs that feed each other, and unusable values


def test_a_value_passes_through_two_linked_nodes_of_a_pack() -> None:
    """The parameter belongs to the node whose value is not linked, whichever node has the lower id."""
    for first, second in (("1", "2"), ("2", "1")):
        found = conventions_of(
            {
                first: external("Text", "outer", default_value="a fox"),
                second: external("Text", "inner", default_value=[first, 0]),
                "3": node("CLIPTextEncode", text=[second, 0]),
            }
        )
        assert [(one.name, one.targets) for one in found.found] == [("outer", (Target("3", "text"),))]
        assert found.prompt == {"3": node("CLIPTextEncode", text="a fox")}
        assert "inner is not a parameter" in found.warnings[0]


def test_a_default_picture_may_have_a_lower_id_than_its_user() -> None:
    found = conventions_of(
        {
            "1": external("Image", "second", default_value=["9", 0]),
            "2": external("Image", "first", default_value=["1", 0]),
            "3": node("SaveImage", images=["2", 0]),
            "9": node("EmptyImage", width=8),
        }
    )
    assert with_fallbacks(found.prompt, found.fallbacks, set())["3"]["inputs"] == {"images": ["9", 0]}


def test_a_value_that_only_a_removed_node_used_is_no_parameter() -> None:
    found = conventions_of(
        {
            "1": external("Text", "token", default_value="x"),
            "2": node("DiscordServing", discord_token=["1", 0]),
            "3": node("ServingOutput", serving_config=["2", 0], image=["9", 0]),
            "9": node("EmptyImage", width=8),
        }
    )
    assert found.found == ()
    assert "token is not a parameter" in found.warnings[0]


def test_a_node_that_is_linked_to_itself_gives_a_warning() -> None:
    found = conventions_of(
        {"1": external("Text", "prompt", default_value=["1", 0]), "2": node("CLIPTextEncode", text=["1", 0])}
    )
    assert found.prompt == {"2": node("CLIPTextEncode")}
    assert "linked to itself" in found.warnings[0]


@pytest.mark.parametrize("value", ["many", None, {"a": 1}, float("nan"), float("inf"), 10**300])
def test_a_value_that_is_no_number_does_not_break_the_file(value: Any) -> None:
    number = node("ServingInputNumber", argument="n", default=value, min_value=value, max_value=value)
    seed = external("Seed", "seed", default_value=value, min_value=value, max_value=value)
    found = conventions_of({"1": number, "2": seed, "3": node("Some", n=["1", 1], text=["1", 2], seed=["2", 0])})
    assert sorted(one.name for one in found.found) == ["n", "seed"]
    (chosen,) = (one for one in found.found if one.name == "seed")
    assert (chosen.minimum, chosen.maximum) != (None, None)
