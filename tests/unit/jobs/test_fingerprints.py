"""The fingerprint decides whether two requests with the same id are the same request."""

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
def test_a_fingerprint_equals_that_of_earlier_versions(fields: dict[str, object], fingerprint: str) -> None:
    """A key that was used before an upgrade must join its prompt after the upgrade."""
    assert PromptRequest.model_validate(fields).fingerprint() == fingerprint
    more = {**fields, "labels": {"a": "b"}, "priority": 5, "client_id": "c", "return_image_base64": True}
    assert PromptRequest.model_validate(more).fingerprint() == fingerprint


def test_each_field_of_a_request_changes_the_fingerprint_or_is_listed_here() -> None:
    of_the_answer = {"return_image_base64", "convert", "output", "labels", "priority", "webhook"}
    assert set(PromptRequest.model_fields) == {*_FULL, "prompt_id", "client_id", *of_the_answer}
    plain = PromptRequest.model_validate(_PLAIN).fingerprint()
    for name in _FULL.keys() - _PLAIN.keys():
        assert PromptRequest.model_validate({**_PLAIN, name: _FULL[name]}).fingerprint() != plain, name


def test_secrets_do_not_change_the_fingerprint() -> None:
    def of(extra_data: dict[str, object] | None) -> str:
        return PromptRequest.model_validate({**_PLAIN, "extra_data": extra_data}).fingerprint()

    assert of({"auth_token_comfy_org": "old", "api_key_comfy_org": "k"}) == of({"auth_token_comfy_org": "new"})
    assert of({"auth_token_comfy_org": "a"}) == of(None)
    assert of({"auth_token_comfy_org": "a", "x": 1}) == of({"x": 1}) != of({"x": 2})


def test_the_fingerprint_of_a_named_call_ignores_values_that_the_gateway_chose() -> None:
    def of(call: NamedCall, **more: object) -> str:
        return PromptRequest.model_validate({**_PLAIN, **more}).of_named(call).fingerprint()

    chosen_again = replace(CALL, used={"seed": 5}, version="d" * 64)
    other_graph = {"1": {"class_type": "B", "inputs": {}}}
    assert of(CALL) == of(chosen_again) == of(CALL, prompt=other_graph, labels={"a": "b"})
    assert of(CALL) != of(replace(CALL, digest="e" * 64))
    assert of(CALL) != of(CALL, extra_data={"x": 1})
    assert of(CALL) != PromptRequest.model_validate(_PLAIN).fingerprint()


def test_a_request_body_cannot_claim_to_be_a_named_call() -> None:
    for name in ("_call", "call", "named"):
        with pytest.raises(ValidationError, match=name):
            PromptRequest.model_validate({**_PLAIN, name: {"name": "portrait"}})


def test_a_copy_of_a_request_keeps_its_named_call() -> None:
    request = PromptRequest.model_validate({**_PLAIN, "front": True}).of_named(CALL)
    assert request.without_order().call == CALL
    assert request.model_copy(update={"prompt_id": None}).call == CALL
