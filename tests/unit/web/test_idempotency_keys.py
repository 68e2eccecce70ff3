"""The id that an Idempotency-Key stands for."""

from __future__ import annotations

import pytest

from comfyui.web.api.submitting import prompt_id_for_key


@pytest.mark.parametrize(
    ("key", "prompt_id"),
    [("done", "cb46dae9-8f77-5253-9e15-d9b70cc5200c"), ("running", "0bfbc808-695f-59b5-82ac-e0c82f4d23b1")],
)
def test_a_key_stands_for_the_id_that_it_had_in_the_gateways_before(key: str, prompt_id: str) -> None:
    """A key that was used before an upgrade joins its prompt after it."""
    assert str(prompt_id_for_key(key, None)) == prompt_id
