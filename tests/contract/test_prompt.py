"""POST /prompt: which prompts are accepted, and how the others are refused."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.support.target import Prompt, Target, empty, inverted, node


def without_tracebacks(value: Any) -> Any:
    """The answer without tracebacks and tooltips, which depend on the implementation."""
    if isinstance(value, dict):
        return {key: without_tracebacks(one) for key, one in value.items() if key not in ("traceback", "tooltip")}
    return [without_tracebacks(one) for one in value] if isinstance(value, list) else value


async def test_an_accepted_prompt_is_answered_with_its_id_and_number(target: Target) -> None:
    status, first = await target.submit(inverted(target.prefix))
    _, second = await target.submit(inverted(target.prefix))
    assert status == 200
    assert set(first) == {"prompt_id", "number", "node_errors"}
    assert str(uuid.UUID(first["prompt_id"])) == first["prompt_id"]
    assert first["node_errors"] == {}
    assert second["number"] == first["number"] + 1


async def test_a_prompt_keeps_the_id_its_submitter_chose(target: Target) -> None:
    prompt_id = str(uuid.uuid4())
    _, answer = await target.submit(inverted(target.prefix), prompt_id=prompt_id)
    assert answer["prompt_id"] == prompt_id


async def test_front_gives_a_negative_number_and_an_explicit_number_is_kept(target: Target) -> None:
    _, plain = await target.submit(inverted(target.prefix))
    _, front = await target.submit(inverted(target.prefix), front=True)
    _, given = await target.submit(inverted(target.prefix), number=12.5)
    assert front["number"] == -(plain["number"] + 1)
    assert given["number"] == 12.5


@pytest.mark.parametrize("prompt_id", ["not-a-uuid", "AABF3D78-90F5-4DE0-A226-DF025FA8AE28"])
async def test_only_a_modern_comfyui_requires_canonical_uuids(target: Target, prompt_id: str) -> None:
    status, answer = await target.submit(inverted(target.prefix), prompt_id=prompt_id)
    if target.is_modern:
        assert status == 400
        assert answer["error"]["type"] == "invalid_prompt_id"
        assert answer["node_errors"] == {}
    else:
        assert (status, answer["prompt_id"]) == (200, prompt_id)


@pytest.mark.parametrize("body", ["{}", "[]", '{"workflow": {}}'])
async def test_a_body_without_prompt_is_refused_as_no_prompt(target: Target, body: str) -> None:
    async with target.session.post("/prompt", data=body) as response:
        assert response.status == 400
        assert await response.json() == {
            "error": {
                "type": "no_prompt",
                "message": "No prompt provided",
                "details": "No prompt provided",
                "extra_info": {},
            },
            "node_errors": {},
        }


@pytest.mark.parametrize(
    "body",
    ["no json", "null", "7", '"prompt"', '{"prompt": null}', '{"prompt": "text"}', '{"prompt": {"1": 5}}'],
)
async def test_an_invalid_body_gets_status_500_as_from_comfyui(target: Target, body: str) -> None:
    async with target.session.post("/prompt", data=body) as response:
        assert response.status == 500


async def test_a_node_that_is_a_list_has_no_class_type_for_an_old_comfyui(target: Target) -> None:
    async with target.session.post("/prompt", json={"prompt": {"1": []}}) as response:
        if target.is_modern:
            assert response.status == 500
        else:
            assert response.status == 400
            message = "Cannot execute because a node is missing the class_type property."
            assert (await response.json())["error"]["message"] == message


@pytest.mark.parametrize("prompt", [{}, [], {"1": empty()}])
async def test_a_prompt_without_output_nodes_is_refused(target: Target, prompt: Any) -> None:
    status, answer = await target.submit(prompt)
    assert status == 400
    assert answer == {
        "error": {
            "type": "prompt_no_outputs",
            "message": "Prompt has no outputs",
            "details": "",
            "extra_info": {},
        },
        "node_errors": {},
    }


@pytest.mark.parametrize(
    ("bad", "old_message", "new_message", "extra_info"),
    [
        pytest.param(
            {"class_type": "NoSuchNode", "inputs": {}},
            "Cannot execute because node NoSuchNode does not exist.",
            "Node 'NoSuchNode' not found. The custom node may not be installed.",
            {"node_id": "7", "class_type": "NoSuchNode", "node_title": "NoSuchNode"},
            id="unknown class",
        ),
        pytest.param(
            {"inputs": {}},
            "Cannot execute because a node is missing the class_type property.",
            "Node 'ID #7' has no class_type. The workflow may be corrupted or a custom node is missing.",
            {"node_id": "7", "class_type": None, "node_title": None},
            id="no class",
        ),
    ],
)
async def test_an_unknown_node_is_named(
    target: Target, bad: dict[str, Any], old_message: str, new_message: str, extra_info: dict[str, Any]
) -> None:
    status, answer = await target.submit({**inverted(target.prefix), "7": bad})
    assert status == 400
    assert answer["node_errors"] == {}
    assert answer["error"]["details"] == "Node ID '#7'"
    if target.is_modern:
        assert answer["error"]["type"] == "missing_node_type"
        assert answer["error"]["message"] == new_message
        assert answer["error"]["extra_info"] == extra_info
    else:
        assert answer["error"]["type"] == "invalid_prompt"
        assert answer["error"]["message"] == old_message
        assert answer["error"]["extra_info"] == {}


_SIDE = {"default": 512, "min": 1, "max": 16384, "step": 1}
_CHANNELS = ["alpha", "red", "green", "blue"]
_MISMATCH = "image, received_type(MASK) mismatch input_type(IMAGE)"
_NOT_A_NUMBER = "invalid literal for int() with base 10: 'wide'"


def _with_width(value: Any) -> Prompt:
    prompt = inverted("x")
    prompt["1"]["inputs"]["width"] = value
    return prompt


@pytest.mark.parametrize(
    ("prompt", "node_id", "error"),
    [
        pytest.param(
            {**inverted("x"), "1": node("EmptyImage", height=8, batch_size=1, color=0)},
            "1",
            {
                "type": "required_input_missing",
                "message": "Required input is missing",
                "details": "width",
                "extra_info": {"input_name": "width"},
            },
            id="missing",
        ),
        pytest.param(
            _with_width(0),
            "1",
            {
                "type": "value_smaller_than_min",
                "message": "Value 0 smaller than min of 1",
                "details": "width",
                "extra_info": {"input_name": "width", "input_config": ["INT", _SIDE], "received_value": 0},
            },
            id="too small",
        ),
        pytest.param(
            _with_width("99999"),
            "1",
            {
                "type": "value_bigger_than_max",
                "message": "Value 99999 bigger than max of 16384",
                "details": "width",
                "extra_info": {"input_name": "width", "input_config": ["INT", _SIDE], "received_value": 99999},
            },
            id="too big, converted",
        ),
        pytest.param(
            _with_width("wide"),
            "1",
            {
                "type": "invalid_input_type",
                "message": "Failed to convert an input value to a INT value",
                "details": f"width, wide, {_NOT_A_NUMBER}",
                "extra_info": {
                    "input_name": "width",
                    "input_config": ["INT", _SIDE],
                    "received_value": "wide",
                    "exception_message": _NOT_A_NUMBER,
                },
            },
            id="wrong type",
        ),
        pytest.param(
            _with_width(["1", 0, 0]),
            "1",
            {
                "type": "bad_linked_input",
                "message": "Bad linked input, must be a length-2 list of [node_id, slot_index]",
                "details": "width",
                "extra_info": {"input_name": "width", "input_config": ["INT", _SIDE], "received_value": ["1", 0, 0]},
            },
            id="bad link",
        ),
        pytest.param(
            {**inverted("x"), "1": node("SolidMask", value=1.0, width=8, height=8)},
            "2",
            {
                "type": "return_type_mismatch",
                "message": "Return type mismatch between linked nodes",
                "details": _MISMATCH,
                "extra_info": {
                    "input_name": "image",
                    "input_config": ["IMAGE", {}],
                    "received_type": "MASK",
                    "linked_node": ["1", 0],
                },
            },
            id="mismatch",
        ),
        pytest.param(
            {**inverted("x"), "1": node("LoadImage", image="nobody has this.png")},
            "1",
            {
                "type": "custom_validation_failed",
                "message": "Custom validation failed for node",
                "details": "image - Invalid image file: nobody has this.png",
                "extra_info": {"input_name": "image"},
            },
            id="file missing",
        ),
        pytest.param(
            {
                "1": empty(),
                "2": node("ImageScale", image=["1", 0], upscale_method="area", width=8, height=8, crop="left"),
                "3": node("SaveImage", images=["2", 0], filename_prefix="x"),
            },
            "2",
            {
                "type": "value_not_in_list",
                "message": "Value not in list",
                "details": "crop: 'left' not in ['disabled', 'center']",
                "extra_info": {
                    "input_name": "crop",
                    "input_config": [["disabled", "center"], {}],
                    "received_value": "left",
                },
            },
            id="not in list",
        ),
    ],
)
async def test_an_invalid_input_is_reported_at_its_node(
    target: Target, prompt: Prompt, node_id: str, error: dict[str, Any]
) -> None:
    status, answer = await target.submit(prompt)
    assert status == 400
    assert answer["error"] == {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": "",
        "extra_info": {},
    }
    assert without_tracebacks(answer["node_errors"]) == {
        node_id: {
            "errors": [error],
            "dependent_outputs": ["3"],
            "class_type": prompt[node_id]["class_type"],
        }
    }


async def test_the_details_contain_the_errors_of_an_output_node(target: Target) -> None:
    status, answer = await target.submit({"1": empty(), "3": node("SaveImage", images=["1", 0])})
    assert status == 400
    assert answer["error"]["details"] == "Required input is missing: filename_prefix"


@pytest.mark.parametrize(
    ("link", "details", "exception_type"),
    [(["9", 0], "'9'", "KeyError"), (["1", 5], "tuple index out of range", "IndexError")],
)
async def test_a_link_to_a_missing_node_or_slot_is_an_exception_during_validation(
    target: Target, link: list[Any], details: str, exception_type: str
) -> None:
    status, answer = await target.submit({"1": empty(), "3": node("SaveImage", images=link, filename_prefix="x")})
    assert status == 400
    assert answer["error"]["details"] == f"Exception when validating node: {details}"
    (error,) = answer["node_errors"]["3"]["errors"]
    assert error["type"] == "exception_during_validation"
    assert error["details"] == details
    assert error["extra_info"]["exception_type"] == exception_type
    assert isinstance(error["extra_info"]["traceback"], list)


async def test_an_exception_below_a_node_is_reported_at_the_node_that_feeds_it(target: Target) -> None:
    prompt = {"2": node("ImageInvert", image=["9", 0]), "3": node("SaveImage", images=["2", 0], filename_prefix="x")}
    status, answer = await target.submit(prompt)
    assert status == 400
    (error,) = answer["node_errors"]["2"]["errors"]
    assert without_tracebacks(error) == {
        "type": "exception_during_inner_validation",
        "message": "Exception when validating inner node",
        "details": "'9'",
        "extra_info": {
            "input_name": "images",
            "input_config": ["IMAGE", {}],
            "exception_message": "'9'",
            "exception_type": "KeyError",
            "linked_node": ["2", 0],
        },
    }


async def test_a_cycle_is_refused(target: Target) -> None:
    prompt = {**inverted(target.prefix), "1": node("ImageInvert", image=["2", 0])}
    status, answer = await target.submit(prompt)
    assert status == 400
    assert answer["error"]["type"] == "prompt_outputs_failed_validation"


async def test_valid_outputs_run_although_another_output_is_invalid(target: Target) -> None:
    prompt = {**inverted(target.prefix), "4": node("SaveImage", images=["1", 0])}
    run_status, answer = await target.submit(prompt)
    assert run_status == 200
    assert list(answer["node_errors"]) == ["4"]
    assert answer["node_errors"]["4"]["dependent_outputs"] == ["4"]
    run = await target.run(prompt)
    assert list(run.entry["outputs"]) == ["3"]
    assert run.entry["status"]["status_str"] == "success"


async def test_partial_execution_runs_only_the_named_outputs(target: Target) -> None:
    prompt = {**inverted(target.prefix), "4": node("PreviewImage", images=["1", 0])}
    run = await target.run(prompt, partial_execution_targets=["4"])
    assert list(run.entry["outputs"]) == ["4"]
    assert run.entry["prompt"][4] == ["4"]


async def test_only_a_modern_comfyui_checks_the_choice_of_a_blend_mode(target: Target) -> None:
    prompt = {
        **inverted(target.prefix),
        "2": node("ImageBlend", image1=["1", 0], image2=["1", 0], blend_factor=0.5, blend_mode="nope"),
    }
    status, answer = await target.submit(prompt)
    if target.is_modern:
        assert status == 400
        (error,) = answer["node_errors"]["2"]["errors"]
        assert error["type"] == "value_not_in_list"
    else:
        assert status == 200
