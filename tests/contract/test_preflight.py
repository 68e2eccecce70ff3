"""Preflight and the server's own validation agree: preflight finds an error exactly if the server answers 400.

The tests damage workflows of real nodes at random (seeded) and post them. One difference is allowed, and the test names
it: a node may check an input by its own code, which ``/object_info`` does not show.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from comfyui.workflows.preflight import preflight, refusal
from tests.support.target import Prompt, Target

CASES = 150

PICTURE: Prompt = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 7}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {
        "class_type": "ImageScale",
        "inputs": {"image": ["2", 0], "upscale_method": "bilinear", "width": 16, "height": 16, "crop": "disabled"},
    },
    "4": {
        "class_type": "ImageBlend",
        "inputs": {"image1": ["2", 0], "image2": ["3", 0], "blend_factor": 0.5, "blend_mode": "normal"},
    },
    "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "preflight"}},
}
TWO_OUTPUTS: Prompt = {
    **PICTURE,
    "6": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 16, "height": 16}},
    "7": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 1}},
    "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
}
SAMPLING: Prompt = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "?"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["1", 1]}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "4": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 1,
            "steps": 1,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["2", 0],
            "latent_image": ["3", 0],
        },
    },
    "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "preflight"}},
    "7": {"class_type": "LoadImage", "inputs": {"image": "preflight-no-such-file.png"}},
    "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
}
# Nodes with dynamic inputs, which only newer versions have.
DYNAMIC: Prompt = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 7}},
    "2": {
        "class_type": "ResizeImageMaskNode",
        "inputs": {
            "input": ["1", 0],
            "resize_type": "scale dimensions",
            "resize_type.width": 16,
            "resize_type.height": 16,
            "resize_type.crop": "disabled",
            "scale_method": "area",
        },
    },
    "3": {"class_type": "BatchImagesNode", "inputs": {"images.image0": ["1", 0], "images.image1": ["2", 0]}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    "5": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}
BASES = [PICTURE, TWO_OUTPUTS, SAMPLING]

# Numbers stay small, because the server runs the prompts that it accepts.
ODD_VALUES: list[Any] = [
    *(0, 1, -1, 2.5, 3.9, "3", "", "abc", "nope.safetensors", None, True, False, 10**30, -(10**30), 1e-9),
    *(
        {},
        {"__value__": 3},
        {"__value__": [1, 2]},
        {"__value__": "normal"},
        [],
        ["1"],
        ["1", 0, 0],
        "normal",
        "bilinear",
    ),
]
ODD_LINKS: list[Any] = [
    *(["99", 0], ["1", 1], ["1", 3], ["1", -1], ["1", -9], ["1", 0.0], ["1", "0"], ["1", None], ["1", True], [1, 0]),
    *([None, 0], ["2", 0], ["3", 0], ["5", 0], ["6", 0]),
]


def damaged(rng: random.Random, bases: list[Prompt] = BASES) -> Prompt:
    prompt = copy.deepcopy(rng.choice(bases))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        node = prompt[rng.choice(list(prompt))]
        inputs = node["inputs"]
        name = rng.choice(list(inputs) or ["nothing"])
        match rng.randrange(8):
            case 0:
                inputs.pop(name, None)
            case 1 | 2:
                inputs[name] = rng.choice(ODD_VALUES)
            case 3 | 4:
                inputs[name] = rng.choice(ODD_LINKS)
            case 5:
                inputs["not_declared"] = rng.choice([1, "x", ["1", 0]])  # a link to no node ends ComfyUI's worker
            case 6:
                node["class_type"] = rng.choice(["ImageInvert", "SaveImage", "KSampler", "SaveImag", "EmptyImage"])
            case 7 if len(prompt) > 1:
                del prompt[rng.choice(list(prompt))]
    return prompt


async def _verdict(target: Target, prompt: Prompt, **body: Any) -> tuple[bool, dict[str, Any]]:
    """Whether the server refuses the prompt, and its answer; an accepted prompt is deleted from the queue again."""
    status, answer = await target.submit(prompt, **body)
    assert status in {200, 400}
    if status == 200:
        async with target.session.post("/queue", json={"delete": [answer["prompt_id"]]}):
            pass
    return status == 400, answer


def _is_refused_by_a_nodes_own_check(answer: dict[str, Any]) -> bool:
    kinds = [{error["type"] for error in node["errors"]} for node in answer["node_errors"].values()]
    return {"custom_validation_failed"} in kinds


@pytest.mark.parametrize("seed", range(3))
async def test_preflight_refuses_exactly_the_prompts_that_the_server_refuses(target: Target, seed: int) -> None:
    info = await target.get_json("/object_info")
    rng = random.Random(seed)  # noqa: S311
    refused = 0
    for _ in range(CASES):
        prompt = damaged(rng)
        problems = preflight(prompt, info, new_choices_checked=target.is_modern)
        ours = refusal(problems) is not None
        theirs, answer = await _verdict(target, prompt)
        refused += theirs
        if theirs and not ours and _is_refused_by_a_nodes_own_check(answer):
            assert any(problem.code == "missing_input_file" for problem in problems), (prompt, problems)
            continue
        assert ours == theirs, (prompt, problems, answer)
    assert 0.2 * CASES < refused < 0.95 * CASES


@pytest.mark.parametrize("seed", range(3))
async def test_preflight_refuses_dynamic_inputs_exactly_as_the_server_does(target: Target, seed: int) -> None:
    info = await target.get_json("/object_info")
    if "BatchImagesNode" not in info:
        pytest.skip("this version has no nodes with dynamic inputs")
    rng = random.Random(100 + seed)  # noqa: S311
    refused = 0
    for _ in range(CASES):
        prompt = damaged(rng, [DYNAMIC])
        shaped = rng.choice([prompt.get("2"), prompt.get("3"), None])
        if shaped and rng.random() < 0.5:
            name = rng.choice(["resize_type", "resize_type.multiplier", "images.image1", "images.image60"])
            shaped["inputs"][name] = rng.choice(["scale by multiplier", "nope", 2.0, 99, ["1", 0]])
        problems = preflight(prompt, info, new_choices_checked=True)
        theirs, answer = await _verdict(target, prompt)
        refused += theirs
        assert (refusal(problems) is not None) == theirs, (prompt, problems, answer)
    assert 0.2 * CASES < refused < 0.95 * CASES


async def test_one_runnable_output_is_enough_and_other_problems_are_warnings(target: Target) -> None:
    info = await target.get_json("/object_info")
    prompt = copy.deepcopy(TWO_OUTPUTS)
    prompt["3"]["inputs"]["upscale_method"] = "nope"
    theirs, answer = await _verdict(target, prompt)
    assert not theirs
    assert set(answer["node_errors"]) == {"3"}
    (problem,) = preflight(prompt, info)
    assert (problem.node_id, problem.severity, problem.code) == ("3", "warning", "value_not_in_list")
    assert "node 5" in problem.message


async def test_targets_decide_which_outputs_count(target: Target) -> None:
    info = await target.get_json("/object_info")
    prompt = copy.deepcopy(TWO_OUTPUTS)
    prompt["3"]["inputs"]["upscale_method"] = "nope"
    for targets in (["5"], ["8"], ["5", "8"], ["1"], []):
        theirs, _ = await _verdict(target, prompt, partial_execution_targets=targets)
        assert (refusal(preflight(prompt, info, targets=targets)) is not None) == theirs, targets
