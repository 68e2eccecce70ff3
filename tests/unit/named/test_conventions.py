"""Parameters from texts and titles of other tools' conventions, and from widgets that the editor shows at the top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfyui.named.conventions import Conventions, resolved
from comfyui.named.parameters import Found, Target
from comfyui.workflows.convert import ShownWidget
from tests.unit.named.test_made_for_it import NODES, conventions_of, node


def titles_of(shown: Sequence[ShownWidget]) -> dict[str, str]:
    return {one.owner: one.owner_title for one in shown}


def promoted(owner: str, name: str, *targets: tuple[str, str], title: str = "Group", label: str = "") -> ShownWidget:
    return ShownWidget("promoted", owner, title, name, label, True, targets)


def primitive(owner: str, title: str, *targets: tuple[str, str], top: bool = True) -> ShownWidget:
    return ShownWidget("primitive", owner, title, targets[0][1], "", top, targets)


def names(prompt: dict[str, Any], *shown: ShownWidget) -> list[str]:
    return [one.name for one in resolved(prompt, NODES, shown, titles_of(shown)).found]


PROMPT: dict[str, Any] = {
    "2:6": node("CLIPTextEncode", text="a fox", clip=["1", 0]),
    "2:3": node("KSampler", seed=1, steps=20),
    "4:6": node("CLIPTextEncode", text="bad", clip=["1", 0]),
    "1": node("Loader"),
}


def test_texts_like_param_prompt_are_parameters_and_leave_no_value() -> None:
    found = conventions_of(
        {
            "1": node("CLIPTextEncode", text="PARAM_PROMPT"),
            "2": node("KSampler", seed="PARAM_INT_SEED", cfg="PARAM_FLOAT_CFG", steps="PARAM_INT_FRAMES"),
            "3": node("ShowText", text="PARAM_PROMPT", other="the PARAM_PROMPT", third="PARAM_"),
            "4": node("Some", on="PARAM_BOOL_TILED", name="PARAM_STR_STYLE_NAME"),
        }
    )
    assert [(one.name, one.targets, one.kind, one.required) for one in found.found] == [
        ("prompt", (Target("1", "text"), Target("3", "text")), "text", True),
        ("seed", (Target("2", "seed"),), "integer", None),
        ("cfg", (Target("2", "cfg"),), "number", None),
        ("frames", (Target("2", "steps"),), "integer", True),
        ("tiled", (Target("4", "on"),), "boolean", True),
        ("style_name", (Target("4", "name"),), "text", True),
    ]
    assert found.prompt["2"]["inputs"] == {}
    assert found.prompt["3"]["inputs"] == {"other": "the PARAM_PROMPT", "third": "PARAM_"}


def test_a_title_of_viewcomfy_makes_parameters_of_all_values_of_its_node() -> None:
    found = conventions_of(
        {
            "1": node("CLIPTextEncode", "VC_BASIC Prompt", text="a fox", clip=["9", 1]),
            "2": node("KSampler", "VC_ADV Sampling", seed=1, steps=20, model=["9", 0]),
            "3": node("LoadImage", "VC_BASIC - Your photo", image="a.png", upload="image"),
            "4": node("KSampler", "VC_ADVANCED", cfg=8.0, size={"a": 1}, model=["9", 0]),
            "9": node("CheckpointLoaderSimple", ckpt_name="m"),
        }
    )
    assert [(one.name, one.title, one.targets, one.advanced) for one in found.found] == [
        ("prompt", "Prompt", (Target("1", "text"),), False),
        ("sampling_seed", "Sampling seed", (Target("2", "seed"),), True),
        ("sampling_steps", "Sampling steps", (Target("2", "steps"),), True),
        ("your_photo", "Your photo", (Target("3", "image"),), False),
        ("cfg", "", (Target("4", "cfg"),), True),
    ]


def test_promoted_widgets_are_named_as_the_editor_shows_them() -> None:
    found: Conventions = resolved(
        PROMPT,
        NODES,
        [promoted("2", "text", ("2:6", "text"), label="Positive prompt"), promoted("2", "steps", ("2:3", "steps"))],
    )
    assert found.found == (
        Found("positive_prompt", (Target("2:6", "text"),), "promoted", title="Positive prompt"),
        Found("steps", (Target("2:3", "steps"),), "promoted"),
    )


def test_widgets_of_the_same_name_get_the_title_or_id_of_their_owner() -> None:
    first, second = promoted("2", "text", ("2:6", "text"), title="Good"), promoted("4", "text", ("4:6", "text"))
    assert names(PROMPT, first, second) == ["good_text", "group_text"]
    twins = promoted("2", "text", ("2:6", "text")), promoted("4", "text", ("4:6", "text"))
    assert names(PROMPT, *twins) == ["group_text", "group_text_4"]
    assert names(PROMPT, primitive("8", "", ("2:6", "text")), primitive("9", "", ("4:6", "text"))) == [
        "text_8",
        "text_9",
    ]


def test_a_label_in_another_script_is_replaced_by_the_inputs_name() -> None:
    shown = promoted("2", "steps", ("2:3", "steps"), label="步数")
    (found,) = resolved(PROMPT, NODES, [shown]).found
    assert (found.name, found.title) == ("steps", "步数")


def test_only_a_primitive_at_the_top_level_is_a_parameter() -> None:
    assert names(
        PROMPT, primitive("7", "Int (Steps)", ("2:3", "steps")), primitive("2:8", "Seed", ("2:3", "seed"), top=False)
    ) == ["steps"]


def test_a_title_of_an_owner_names_the_parameter_of_its_widget() -> None:
    shown = [
        promoted("2", "text", ("2:6", "text"), title="$prompt", label="prompt"),
        promoted("2", "steps", ("2:3", "steps"), title="$prompt", label=""),
        promoted("4", "text", ("4:6", "text"), title="input: negative.text"),
        primitive("9", "$seed", ("2:3", "seed")),
    ]
    found = resolved(PROMPT, NODES, shown, titles_of(shown))
    assert [(one.name, one.source, one.targets) for one in found.found] == [
        ("prompt", "title", (Target("2:6", "text"),)),
        ("negative", "title", (Target("4:6", "text"),)),
        ("seed", "title", (Target("2:3", "seed"),)),
    ]


def test_a_title_that_may_mean_several_widgets_gives_a_warning() -> None:
    shown = [promoted("2", name, ("2:3", name), title="$strength") for name in ("seed", "steps")]
    found = resolved(PROMPT, NODES, shown, titles_of(shown))
    assert found.found == ()
    assert found.warnings == (
        "node 2: its title '$strength' makes no parameter; write one of $strength.seed, $strength.steps instead",
    )


def test_comfyuis_primitive_nodes_are_parameters_if_they_have_a_title() -> None:
    assert names(
        {
            "1": node("PrimitiveInt", "Width", value=512),
            "2": node("PrimitiveInt", "Int", value=512),
            "3": node("PrimitiveFloat", "Float (CFG)", value=["1", 0]),
            "4": node("PrimitiveFloat", "Float (CFG)", value=2.5),
            "5:6": node("PrimitiveString", "Inside", value="x"),
            "7": node("PrimitiveBoolean", "$turbo", value=True),
        }
    ) == ["width", "cfg"]
