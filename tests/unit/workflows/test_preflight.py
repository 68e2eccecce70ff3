"""Preflight: the code, the suggestions and the severity of each mistake."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from comfyui.workflows.preflight import Problem, preflight, refusal

NAMES = ["sd_xl_base_1.0.safetensors", "sub/v1-5-pruned.safetensors", "other.safetensors"]


def definition(
    *outputs: object, output_node: bool = False, module: str = "nodes", **required: object
) -> dict[str, Any]:
    optional = required.pop("optional", {})
    return {
        "input": {"required": required, "optional": optional},
        "output": list(outputs),
        "output_node": output_node,
        "python_module": module,
        "display_name": None,
    }


INFO: dict[str, Any] = {
    "Loader": definition("MODEL", "CLIP", ckpt_name=[NAMES]),
    "Sampler": definition(
        "LATENT",
        model=["MODEL", {}],
        steps=["INT", {"min": 1, "max": 100}],
        sampler_name=[["euler", "dpmpp_2m", "ddim"]],
        optional={"mask": ["MASK", {}]},
    ),
    "Decode": definition("IMAGE", samples=["LATENT", {}]),
    "LoadImage": definition("IMAGE", image=[["a.png"], {"image_upload": True}]),
    "NewCombo": definition("IMAGE", mode=["COMBO", {"options": ["one", "two"]}]),
    "Save": definition(output_node=True, images=["IMAGE", {}], prefix=["STRING", {"default": "x"}]),
    "Pack": definition(
        "IMAGE", output_node=True, module="custom_nodes.pack", choice=[["a", "b"]], latent=["LATENT", {}]
    ),
    "Any": definition("*", value=["*", {}]),
    "Dynamic": definition(
        "IMAGE",
        images=["COMFY_AUTOGROW_V3", {"template": {"input": {"required": {"i": ["*"]}}, "prefix": "image", "min": 1}}],
    ),
}
GOOD: dict[str, Any] = {
    "1": {"class_type": "Loader", "inputs": {"ckpt_name": NAMES[0]}},
    "2": {
        "class_type": "Sampler",
        "inputs": {"model": ["1", 0], "steps": 20, "sampler_name": "euler"},
        "_meta": {"title": "My sampler"},
    },
    "3": {"class_type": "Decode", "inputs": {"samples": ["2", 0]}},
    "4": {"class_type": "Save", "inputs": {"images": ["3", 0], "prefix": "x"}},
}


def changed(node_id: str, **inputs: Any) -> dict[str, Any]:
    prompt = copy.deepcopy(GOOD)
    prompt[node_id]["inputs"].update(inputs)
    return prompt


def only(prompt: dict[str, Any], **options: Any) -> Problem:
    (problem,) = preflight(prompt, INFO, **options)
    return problem


def test_a_good_workflow_has_no_problems() -> None:
    assert preflight(GOOD, INFO) == []
    assert refusal([]) is None


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (changed("2", steps="many"), "invalid_input_type"),
        (changed("2", steps=None), "invalid_input_type"),
        (changed("2", steps=0), "value_smaller_than_min"),
        (changed("2", steps=101), "value_bigger_than_max"),
        (changed("2", model=["1", 1]), "return_type_mismatch"),
        (changed("2", model=["1", 2]), "bad_output_index"),
        (changed("2", model=["1", "0"]), "bad_output_index"),
        (changed("2", model=["9", 0]), "dangling_link"),
        (changed("2", model=[1, 0]), "dangling_link"),
        (changed("2", model=["1", 0, 0]), "bad_linked_input"),
        (changed("2", sampler_name=["3", 0]), "return_type_mismatch"),
    ],
)
def test_each_mistake_is_named_with_its_node(prompt: dict[str, Any], code: str) -> None:
    problem = next(found for found in preflight(prompt, INFO) if found.code != "dependency_cycle")
    assert (problem.node_id, problem.title, problem.class_type) == ("2", "My sampler", "Sampler")
    assert (problem.code, problem.severity) == (code, "error")


@pytest.mark.parametrize("value", [20.9, "20", True, {"__value__": 20}])
def test_values_that_comfyui_converts_are_accepted(value: object) -> None:
    assert preflight(changed("2", steps=value), INFO) == []


def test_a_negative_output_index_counts_from_the_end_as_in_comfyui() -> None:
    assert preflight(changed("2", model=["1", -2]), INFO) == []


def test_a_missing_model_is_named_and_the_same_file_in_a_folder_suggested_first() -> None:
    problem = only(changed("1", ckpt_name="V1-5-pruned.safetensors"))
    assert problem.code == "missing_model_file"
    assert problem.message == "Missing model file 'V1-5-pruned.safetensors' for ckpt_name"
    assert problem.closest[0] == "sub/v1-5-pruned.safetensors"


def test_a_value_that_is_not_in_its_list_gets_the_closest_choices() -> None:
    problem = only(changed("2", sampler_name="dpmpp2m"))
    assert (problem.code, problem.closest) == ("value_not_in_list", ("dpmpp_2m",))


def test_a_missing_class_is_an_error_even_if_no_output_needs_it() -> None:
    problem = only({**GOOD, "9": {"class_type": "Sampller", "inputs": {}}})
    assert (problem.node_id, problem.code, problem.severity) == ("9", "missing_node_type", "error")
    assert "Sampler" in problem.closest


def test_a_missing_required_input_is_an_error_and_an_unknown_input_a_warning() -> None:
    prompt = copy.deepcopy(GOOD)
    prompt["2"]["inputs"]["step"] = prompt["2"]["inputs"].pop("steps")
    missing, unknown = preflight(prompt, INFO)
    assert (missing.code, missing.input_name, missing.severity) == ("required_input_missing", "steps", "error")
    assert (unknown.code, unknown.input_name, unknown.severity) == ("unknown_input", "step", "warning")
    assert unknown.closest == ("steps",)


def test_a_cycle_is_reported_at_its_nodes_only() -> None:
    prompt = changed("3", samples=["2", 0])
    prompt["2"]["inputs"]["mask"] = ["3", 0]
    cycles = {problem.node_id for problem in preflight(prompt, INFO) if problem.code == "dependency_cycle"}
    assert cycles == {"2", "3"}


def test_a_long_chain_is_checked_without_recursion() -> None:
    count = 20_000
    prompt: dict[str, Any] = {
        str(n): {"class_type": "Any", "inputs": {"value": [str(n - 1), 0] if n else 1}} for n in range(count)
    }
    prompt["save"] = {"class_type": "Save", "inputs": {"images": [str(count - 1), 0], "prefix": "x"}}
    assert preflight(prompt, INFO) == []


def test_a_workflow_without_an_output_node_is_refused_with_its_other_mistakes() -> None:
    prompt = changed("2", steps=0)
    del prompt["4"]
    assert [problem.code for problem in preflight(prompt, INFO)] == ["prompt_no_outputs", "value_smaller_than_min"]


def test_targets_that_are_no_output_nodes_are_refused() -> None:
    assert only(GOOD, targets=["3"]).code == "prompt_no_outputs"
    assert preflight(GOOD, INFO, targets=["4"]) == []


def test_one_output_that_can_run_makes_the_rest_warnings() -> None:
    prompt = changed("2", steps=0)
    prompt["7"] = {"class_type": "LoadImage", "inputs": {"image": "a.png"}}
    prompt["8"] = {"class_type": "Save", "inputs": {"images": ["7", 0], "prefix": "y"}}
    problem = only(prompt)
    assert (problem.node_id, problem.severity) == ("2", "warning")
    assert "node 4" in problem.message
    assert only(prompt, targets=["4"]).severity == "error"


@pytest.mark.parametrize(
    ("value", "severity"),
    [
        ("b.png", "error"),
        ("folder/b.png", "warning"),
        ("b.png [output]", "warning"),
        ("b.exr", "warning"),
        (7, "error"),
    ],
)
def test_a_missing_file_is_an_error_only_if_comfyui_would_list_it(value: object, severity: str) -> None:
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": value}},
        "2": {"class_type": "Save", "inputs": {"images": ["1", 0], "prefix": "x"}},
    }
    assert only(prompt).severity == severity
    assert preflight(prompt, INFO, staged=[("1", "image")]) == []


def test_wrong_choices_of_new_nodes_are_errors_only_if_comfyui_checks_them() -> None:
    prompt = {
        "1": {"class_type": "NewCombo", "inputs": {"mode": "three"}},
        "2": {"class_type": "Save", "inputs": {"images": ["1", 0], "prefix": "x"}},
    }
    assert only(prompt).severity == "warning"
    assert only(prompt, new_choices_checked=True).severity == "error"


def test_wrong_values_and_types_of_custom_nodes_are_only_warnings() -> None:
    prompt = {**GOOD, "9": {"class_type": "Pack", "inputs": {"choice": "c", "latent": ["3", 0]}}}
    found = preflight(prompt, INFO, targets=["9"])
    assert [(problem.code, problem.severity) for problem in found] == [
        ("value_not_in_list", "warning"),
        ("return_type_mismatch", "warning"),
    ]


def test_any_types_and_dynamic_inputs_give_no_problems() -> None:
    prompt = {
        "1": {"class_type": "Any", "inputs": {"value": ["2", 0]}},
        "2": {"class_type": "Dynamic", "inputs": {"images.image0": ["3", 0]}},
        "3": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "4": {"class_type": "Save", "inputs": {"images": ["1", 0], "prefix": "x"}},
    }
    assert preflight(prompt, INFO) == []


SHAPES: dict[str, Any] = {
    **INFO,
    "Upscale": {
        **definition(
            "IMAGE",
            output_node=True,
            module="comfy_extras.nodes_x",
            mode=[
                "COMFY_DYNAMICCOMBO_V3",
                {
                    "options": [
                        {"key": "plain", "inputs": {"required": {"factor": ["INT", {"min": 1, "max": 4}]}}},
                        {
                            "key": "guided",
                            "inputs": {
                                "required": {"by": ["IMAGE", {}]},
                                "optional": {"method": ["COMBO", {"options": ["area", "lanczos"]}]},
                            },
                        },
                    ]
                },
            ],
        ),
        "input_order": {"required": ["mode"]},
    },
    "Batch": definition(
        "IMAGE",
        output_node=True,
        module="comfy_extras.nodes_x",
        images=[
            "COMFY_AUTOGROW_V3",
            {"template": {"input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image", "min": 2, "max": 4}},
        ],
    ),
    "Slot": definition(
        "IMAGE",
        output_node=True,
        module="comfy_extras.nodes_x",
        optional={
            "mask": ["COMFY_DYNAMICSLOT_V3", {"slotType": "MASK", "inputs": {"required": {"grow": ["INT", {}]}}}]
        },
    ),
    "Rows": definition(
        "IMAGE",
        output_node=True,
        module="comfy_extras.nodes_x",
        points=["COMFY_DYNAMICGROUP_V3", {"template": {"required": {"x": ["INT", {"max": 9}]}}, "min": 1, "max": 3}],
    ),
    "CustomCombo": definition("STRING", "INT", output_node=True, choice=["COMBO", {"options": []}]),
}
PICTURE = {"class_type": "LoadImage", "inputs": {"image": "a.png"}}


def problems_of_one(class_type: str, **inputs: Any) -> list[tuple[str | None, str, str]]:
    """The input, code and severity of each problem of one node of this class; node 9 loads a picture."""
    named = {name.replace("__", "."): value for name, value in inputs.items()}
    prompt = {"1": {"class_type": class_type, "inputs": named}, "9": PICTURE}
    return [(problem.input_name, problem.code, problem.severity) for problem in preflight(prompt, SHAPES)]


@pytest.mark.parametrize(
    ("class_type", "inputs", "expected"),
    [
        ("Upscale", {"mode": "plain", "mode__factor": 2}, []),
        ("Upscale", {"mode": "guided", "mode__by": ["9", 0], "mode__method": "area"}, []),
        ("Upscale", {"mode": "plain", "mode__factor": 9}, [("mode.factor", "value_bigger_than_max", "error")]),
        ("Upscale", {"mode": "plain"}, [("mode.factor", "required_input_missing", "error")]),
        ("Upscale", {"mode": "guided", "mode__by": ["8", 0]}, [("mode.by", "dangling_link", "error")]),
        (
            "Upscale",
            {"mode": "plain", "mode__factor": 2, "mode__method": "area"},
            [("mode.method", "unknown_input", "warning")],
        ),
        ("Upscale", {"mode": "plan"}, [("mode", "value_not_in_list", "warning")]),
        ("Upscale", {}, [("mode", "required_input_missing", "warning")]),
        ("Batch", {"images__image0": ["9", 0], "images__image1": ["9", 0]}, []),
        ("Batch", {"images__image0": ["9", 0]}, [("images.image1", "required_input_missing", "error")]),
        (
            "Batch",
            {"images__image0": ["9", 0], "images__image1": ["9", 0], "images__image3": ["9", 5]},
            [("images.image3", "bad_output_index", "error")],
        ),
        (
            "Batch",
            {"images__image0": ["9", 0], "images__image1": ["9", 0], "images__image4": ["9", 0]},
            [("images.image4", "unknown_input", "warning")],
        ),
        ("Slot", {}, []),
        (
            "Slot",
            {"mask": ["9", 1]},
            [("mask", "bad_output_index", "error"), ("mask.grow", "required_input_missing", "error")],
        ),
        ("Slot", {"mask": ["9", 0], "mask__grow": 1}, []),
        ("Rows", {"points__0__x": 1, "points__1__x": 10}, [("points.1.x", "value_bigger_than_max", "error")]),
        ("Rows", {}, [("points.0.x", "required_input_missing", "error")]),
        ("CustomCombo", {"choice": "a", "index": 0, "option1": "a", "option2": ""}, []),
        ("CustomCombo", {"choice": "a", "option": "a"}, [("option", "unknown_input", "warning")]),
    ],
)
def test_dynamic_inputs_are_checked_in_the_shape_that_the_workflow_gives_them(
    class_type: str, inputs: dict[str, Any], expected: list[tuple[str | None, str, str]]
) -> None:
    assert problems_of_one(class_type, **inputs) == expected


def test_the_warning_for_an_input_of_another_option_says_so() -> None:
    prompt = {"1": {"class_type": "Upscale", "inputs": {"mode": "plain", "mode.factor": 2, "mode.method": "area"}}}
    (problem,) = preflight(prompt, SHAPES)
    assert problem.message == "mode.method belongs to another option of mode than is chosen, so it is ignored"


def test_a_node_that_feeds_a_dynamic_input_is_checked_too() -> None:
    missing = {"class_type": "LoadImage", "inputs": {}}
    prompt = {"1": {"class_type": "Upscale", "inputs": {"mode": "guided", "mode.by": ["2", 0]}}, "2": missing}
    assert [problem.code for problem in preflight(prompt, SHAPES)] == ["required_input_missing"]


def test_hidden_inputs_and_leftovers_of_the_editor_give_no_warning() -> None:
    info = {**INFO, "Save": {**INFO["Save"], "input": {**INFO["Save"]["input"], "hidden": {"prompt": ["PROMPT"]}}}}
    assert preflight(changed("4", prompt={}, preview_text="x", audioUI="y"), info) == []


def test_a_refusal_names_the_first_error_and_lists_all_by_node() -> None:
    prompt = changed("2", steps=0, sampler_name="eler")
    prompt["1"]["inputs"]["ckpt_name"] = "none.safetensors"
    error = refusal(preflight(prompt, INFO))
    assert error is not None
    assert error.status == 400
    assert error.detail.startswith("Loader (node 1): Missing model file 'none.safetensors'")
    assert error.detail.endswith("and 2 more")
    assert {node_id: len(messages) for node_id, messages in error.node_errors.items()} == {"1": 1, "2": 2}
    assert "Closest: euler" in error.node_errors["2"][1]


def test_the_number_of_reported_problems_and_suggestions_is_bounded() -> None:
    many = {f"Class{n}": definition("IMAGE") for n in range(3000)}
    prompt = {str(n): {"class_type": f"Clas{n}x", "inputs": {}} for n in range(3000)}
    problems = preflight(prompt, many)
    assert len(problems) == 501
    assert (problems[-1].code, problems[-1].severity) == ("more_problems", "error")
    assert problems[-1].message == "There are 2500 more errors and 0 more warnings"
    assert sum(bool(problem.closest) for problem in problems) <= 24
