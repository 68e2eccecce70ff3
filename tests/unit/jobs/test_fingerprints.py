"""What makes two requests with the same id the same one."""

from __future__ import annotations

import pytest

from comfyui.models import PromptRequest

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


def test_a_secret_makes_no_other_request() -> None:
    def of(extra_data: dict[str, object] | None) -> str:
        return PromptRequest.model_validate({**_PLAIN, "extra_data": extra_data}).fingerprint()

    assert of({"auth_token_comfy_org": "old", "api_key_comfy_org": "k"}) == of({"auth_token_comfy_org": "new"})
    assert of({"auth_token_comfy_org": "a"}) == of(None)
    assert of({"auth_token_comfy_org": "a", "x": 1}) == of({"x": 1}) != of({"x": 2})
