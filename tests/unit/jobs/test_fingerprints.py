"""What makes two requests with the same id the same one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from comfyui.models import PromptRequest
from comfyui.named_call import NamedCall
from tests.support.journals import CALL

_PLAIN = {"prompt": {"1": {"class_type": "A", "inputs": {"x": 1}}}}
_FULL = {
    **_PLAIN,
    "images": [{"name": "a.png", "image": "aGk="}],
    "extra_data": {"k": [1, 2.5, None]},
    "front": True,
    "number": 2.0,
    "partial_execution_targets": ["1"],
}


@pytest.mark.parametrize(
    ("fields", "fingerprint"),
    [
        (_PLAIN, "df4d0384a49ca81bdaa06b4cf9acf86532866a0831eb2ede90e3f3132c1f67e5"),
        (_FULL, "d848ada9c4acc0cc06c762a84a38cd8e4920c3ab387eeffa140dee68cbef7680"),
    ],
)
def test_a_fingerprint_is_that_of_the_gateways_before(fields: dict[str, object], fingerprint: str) -> None:
    """A key that was used before an upgrade joins its prompt after it."""
    assert PromptRequest.model_validate(fields).fingerprint() == fingerprint
    more = {**fields, "labels": {"a": "b"}, "priority": 5, "client_id": "c", "return_image_base64": True}
    assert PromptRequest.model_validate(more).fingerprint() == fingerprint


def test_each_field_of_a_request_decides_its_result_or_is_known_not_to() -> None:
    of_the_answer = {"return_image_base64", "convert", "output", "labels", "priority", "webhook"}
    assert set(PromptRequest.model_fields) == {*_FULL, "prompt_id", "client_id", *of_the_answer}
    plain = PromptRequest.model_validate(_PLAIN).fingerprint()
    for name in _FULL.keys() - _PLAIN.keys():
        assert PromptRequest.model_validate({**_PLAIN, name: _FULL[name]}).fingerprint() != plain, name


def test_a_secret_makes_no_other_request() -> None:
    def of(extra_data: dict[str, object] | None) -> str:
        return PromptRequest.model_validate({**_PLAIN, "extra_data": extra_data}).fingerprint()

    assert of({"auth_token_comfy_org": "old", "api_key_comfy_org": "k"}) == of({"auth_token_comfy_org": "new"})
    assert of({"auth_token_comfy_org": "a"}) == of(None)
    assert of({"auth_token_comfy_org": "a", "x": 1}) == of({"x": 1}) != of({"x": 2})


def test_a_named_workflow_is_known_by_what_was_given_and_not_by_what_was_chosen() -> None:
    def of(call: NamedCall, **more: object) -> str:
        return PromptRequest.model_validate({**_PLAIN, **more}).of_named(call).fingerprint()

    chosen_again = replace(CALL, used={"seed": 5}, version="d" * 64)
    other_graph = {"1": {"class_type": "B", "inputs": {}}}
    assert of(CALL) == of(chosen_again) == of(CALL, prompt=other_graph, labels={"a": "b"})
    assert of(CALL) != of(replace(CALL, digest="e" * 64))
    assert of(CALL) != of(CALL, extra_data={"x": 1})
    assert of(CALL) != PromptRequest.model_validate(_PLAIN).fingerprint()


def test_no_body_says_that_it_is_a_named_workflows() -> None:
    for name in ("_call", "call", "named"):
        with pytest.raises(ValidationError, match=name):
            PromptRequest.model_validate({**_PLAIN, name: {"name": "portrait"}})


def test_a_copy_of_a_request_keeps_its_call() -> None:
    request = PromptRequest.model_validate({**_PLAIN, "front": True}).of_named(CALL)
    assert request.without_order().call == CALL
    assert request.model_copy(update={"prompt_id": None}).call == CALL
