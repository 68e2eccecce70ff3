"""The prompt id that belongs to an Idempotency-Key."""

from __future__ import annotations

import pytest

from comfyui.web.api.submitting import prompt_id_for_key


@pytest.mark.parametrize(
    ("key", "prompt_id"),
    [("done", "cb46dae9-8f77-5253-9e15-d9b70cc5200c"), ("running", "0bfbc808-695f-59b5-82ac-e0c82f4d23b1")],
)
def test_a_key_gives_the_same_id_as_in_earlier_versions(key: str, prompt_id: str) -> None:
    """A key that was used before an upgrade must join its prompt after the upgrade."""
    assert str(prompt_id_for_key(key, None)) == prompt_id
