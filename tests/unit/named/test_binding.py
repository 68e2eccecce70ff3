"""The values of a call are put into the workflow."""

from __future__ import annotations

import hashlib
from typing import Any

import jsonschema_rs
import pytest

from comfyui.exceptions import ParametersError
from tests.support.named import bound, loaded, workflow

ALL = """
    [parameters.model]
    node = 1
    [parameters.prompt]
    node = 2
    [parameters.seed]
    node = 3
    [parameters.steps]
    node = 3
    [parameters.cfg]
    node = 3
    [parameters.tiled]
    node = 3
    [parameters.method]
    node = 3
    [parameters.level]
    node = 3
    [parameters.marks]
    node = 3
    [parameters.image]
    node = 4
    required = false
"""
PORTRAIT = loaded(workflow(save="output:picture"), ALL)


def inputs(node_id: str = "3", /, **values: Any) -> dict[str, Any]:
    found: dict[str, Any] = bound(PORTRAIT, **values).prompt[node_id]["inputs"]
    return found


def problems(**values: Any) -> dict[str, Any]:
    with pytest.raises(ParametersError) as caught:
        bound(PORTRAIT, **values)
    return dict(caught.value.parameters)


def test_values_go_into_their_inputs_and_nowhere_else() -> None:
    template = workflow(save="output:picture")
    prompt = bound(PORTRAIT, prompt="a dog", steps=30, seed=3).prompt
    template["2"]["inputs"]["text"] = "a dog"
    template["3"]["inputs"] |= {"steps": 30, "seed": 3}
    assert prompt == template


def test_a_call_does_not_change_its_named_workflow() -> None:
    before = repr(PORTRAIT.prompt)
    bound(PORTRAIT, prompt="a dog", steps=30)
    assert repr(PORTRAIT.prompt) == before


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        ({"steps": "30"}, "steps", 30),
        ({"steps": 30.0}, "steps", 30),
        ({"cfg": "7.5"}, "cfg", 7.5),
        ({"cfg": 7}, "cfg", 7),
        ({"tiled": "TRUE"}, "tiled", True),
        ({"level": "4"}, "level", 4),
        ({"level": 4.0}, "level", 4),
        ({"method": "heun"}, "method", "heun"),
        ({"marks": [[0, 1], [1, 0]]}, "marks", {"__value__": [[0, 1], [1, 0]]}),
        ({"seed": "18446744073709551615"}, "seed", 2**64 - 1),
    ],
)
def test_a_value_that_fits_is_set_in_the_type_of_its_input(values: dict[str, Any], name: str, expected: Any) -> None:
    found = inputs(**values)[name]
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize("spelled", ["sub/b.safetensors", "sub\\b.safetensors"])
def test_a_choice_is_found_with_either_folder_separator(spelled: str) -> None:
    assert inputs("1", model=spelled)["name"] == "sub\\b.safetensors"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "must be a whole number from 1 to 100, not 0"),
        ({"steps": 2.5}, "must be a whole number from 1 to 100, not 2.5"),
        ({"steps": True}, "must be a whole number from 1 to 100, not true"),
        (
            {"steps": "data:image/png;base64,AAAA"},
            "must be a whole number from 1 to 100, not 'data:image/png",
        ),
        ({"cfg": float("nan")}, "must be a number from 0.0 to 100.0, not nan"),
        ({"cfg": "inf"}, "must be a number from 0.0 to 100.0, not 'inf'"),
        ({"prompt": 5}, "must be a text, not 5"),
        ({"prompt": ["1", 0]}, "must be a text, not a list"),
        ({"tiled": 1}, "must be true or false, not 1"),
        ({"method": "huen"}, "'huen' is not one of the choices: euler, heun; the closest is heun"),
        ({"level": 3}, "3 is not one of the choices: 1, 2, 4"),
        ({"level": True}, "true is not one of the choices: 1, 2, 4"),
        ({"image": {"url": "x"}}, "must be a file (image): a URL, a data URI, or base64, not an object"),
        ({"image": ""}, "must be a file (image): a URL, a data URI, or base64, not ''"),
        ({"seed": -1}, 'must be a whole number from 0 to 18446744073709551615 or "random", not -1'),
        ({"marks": ["1", 0]}, "must not look like a link to a node, because ComfyUI would take it for one"),
        (
            {"marks": {"__value__": ["1", 0]}},
            "must not look like a link to a node, because ComfyUI would take it for one",
        ),
        ({"promt": "x"}, "there is no such parameter; the parameters are: model, prompt, seed"),
        ({"promt": "x"}, "; the closest is prompt"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    found = problems(**values)
    assert found.keys() == values.keys()
    assert message in found[next(iter(values))]["message"]
    assert found[next(iter(values))]["allowed"] is not None


def test_all_problems_of_a_call_are_reported_at_once() -> None:
    assert problems(steps=0, promt="x", method="huen").keys() == {"steps", "promt", "method"}


def test_a_problem_names_the_closest_parameter_or_choice() -> None:
    found = problems(promt="x", model="flux dev")
    assert (found["promt"]["closest"], found["model"]["closest"]) == ("prompt", "Flux Dev.safetensors")
    assert found["model"]["allowed"] == ["a.safetensors", "sub\\b.safetensors", "Flux Dev.safetensors"]


def test_missing_required_parameters_are_named() -> None:
    named = loaded(workflow(picture="$image", text="$prompt"), "[parameters.prompt]\nrequired = true")
    with pytest.raises(ParametersError) as caught:
        bound(named, prompt=None)
    assert {name: one["message"] for name, one in caught.value.parameters.items()} == {
        "prompt": "is required and must be a text",
        "image": "is required and must be a file (image): a URL, a data URI, or base64",
    }


def test_a_missing_seed_is_chosen_and_recorded_in_the_call() -> None:
    for values in ({}, {"seed": "random"}, {"seed": None}):
        found = bound(PORTRAIT, **values)
        assert found.prompt["3"]["inputs"]["seed"] == found.call.used["seed"] != 7
        assert 0 <= found.call.used["seed"] < 2**53


def test_the_default_of_a_sidecar_is_set_when_no_value_is_given() -> None:
    named = loaded(workflow(text="$prompt"), '[parameters.prompt]\ndefault = "a house"')
    found = bound(named)
    assert (found.prompt["2"]["inputs"]["text"], found.call.used) == ("a house", {"prompt": "a house"})


def test_a_file_is_placed_under_a_name_of_its_parameter_and_its_content() -> None:
    """Some nodes use a name that the gateway cannot rewrite. Otherwise callers could get each other's files."""
    found, other = bound(PORTRAIT, image="iVBORw0KGgo="), bound(PORTRAIT, image="iVBORw0KGgp=")
    digest = hashlib.sha256(b"iVBORw0KGgo=").hexdigest()
    assert [(one.name, one.image) for one in found.images] == [(f"image-sha256-{digest}.png", "iVBORw0KGgo=")]
    assert found.prompt["4"]["inputs"]["image"] == found.images[0].name != other.images[0].name
    assert found.call.used == {**found.call.parameters, "seed": found.call.used["seed"]}
    assert found.call.parameters == {"image": f"sha256:{digest}"}


@pytest.mark.parametrize(
    ("image", "ending"),
    [
        ("https://example.org/a.JPG?x=.gif", ".jpg"),
        ("https://example.org/..", ".png"),
        ("https://example.org/a.b/", ".png"),
        ("data:image/webp;base64,AAAA", ".webp"),
        ("data:;base64,AAAA", ".png"),
        ("AAAA", ".png"),
    ],
)
def test_the_extension_of_a_file_comes_from_its_source(image: str, ending: str) -> None:
    assert bound(PORTRAIT, image=image).images[0].name.partition(".")[1:] == (".", ending[1:])


def test_a_recorded_url_has_neither_credentials_nor_a_query() -> None:
    found = bound(PORTRAIT, image="https://me:secret@example.org/a.png?token=secret#x")
    assert found.images[0].image.endswith("?token=secret#x")
    assert found.call.parameters == {"image": "https://example.org/a.png"}
    assert "secret" not in repr(found.call)


def test_a_file_of_a_form_is_used_by_its_name() -> None:
    found = bound(PORTRAIT, {"image": "photo.png"})
    assert (found.prompt["4"]["inputs"]["image"], found.images) == ("photo.png", ())
    assert found.call.parameters == {"image": "file:photo.png"}


def test_a_file_of_a_form_is_refused_for_a_parameter_that_is_no_file() -> None:
    with pytest.raises(ParametersError) as caught:
        bound(PORTRAIT, {"steps": "photo.png", "gone": "photo.png"})
    assert caught.value.parameters["steps"]["message"] == "must be a whole number from 1 to 100, not a file"
    assert "there is no such parameter" in caught.value.parameters["gone"]["message"]


def test_null_counts_as_no_value_and_is_listed_as_ignored() -> None:
    found = bound(PORTRAIT, steps=None, prompt="x")
    assert (found.call.ignored, found.prompt["3"]["inputs"]["steps"]) == (("steps",), 20)
    assert found.call.parameters == {"prompt": "x"}


def test_the_digest_depends_on_the_given_values() -> None:
    one, same = bound(PORTRAIT, prompt="x", steps=3), bound(PORTRAIT, steps=3, prompt="x")
    assert one.call.digest == same.call.digest
    assert bound(PORTRAIT, prompt="x", steps=4).call.digest != one.call.digest
    assert bound(PORTRAIT, prompt="x", steps=3, seed="random").call.digest != one.call.digest


def test_the_schema_accepts_the_example() -> None:
    validator = jsonschema_rs.Draft202012Validator(dict(PORTRAIT.schema))
    validator.validate(dict(PORTRAIT.example))
    assert PORTRAIT.schema["properties"]["method"]["enum"] == ["euler", "heun"]
    assert PORTRAIT.schema["required"] == []
    assert bound(PORTRAIT, **PORTRAIT.example).call.ignored == ()


def test_a_call_has_the_named_outputs_of_its_workflow() -> None:
    assert bound(PORTRAIT).call.outputs == {"5": "picture"}
