"""References to assets in workflows."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui.assets.references import hash_of, name_of, references_in, restore
from comfyui.exceptions import Breach, ContractError


def reference(**info: Any) -> dict[str, Any]:
    return {"__type": "core/ASSET", "info": info}


def test_references_are_found_and_replaced_at_any_depth() -> None:
    digest = "ab" * 32
    prompt = {
        "1": {"class_type": "A", "inputs": {"image": reference(id="x"), "list": [1, [reference(id="y")]]}},
        "2": {"class_type": "B", "inputs": {"deep": {"a": {"b": reference(hash=f"blake3:{digest.upper()}")}}}},
    }
    found = references_in(prompt)
    assert [(one.id, one.hash, one.shown) for one in found] == [
        ("x", "", "x"),
        ("y", "", "y"),
        ("", digest, f"blake3:{digest}"),
    ]
    for number, one in enumerate(found):
        one.replace(f"file {number}")
    assert prompt == {
        "1": {"class_type": "A", "inputs": {"image": "file 0", "list": [1, ["file 1"]]}},
        "2": {"class_type": "B", "inputs": {"deep": {"a": {"b": "file 2"}}}},
    }
    assert references_in(prompt) == []


def test_a_reference_is_found_in_a_workflow_of_5000_levels() -> None:
    deep: Any = reference(id="x")
    for _ in range(5000):
        deep = [deep]
    assert [one.id for one in references_in({"1": {"inputs": {"a": deep}}})] == ["x"]


@pytest.mark.parametrize(
    "info", [None, "x", {}, {"id": ""}, {"id": 5}, {"hash": "sha256:00"}, {"file_path": "a.png"}, {"hash": ["x"]}]
)
def test_a_reference_without_an_id_or_a_hash_is_refused(info: Any) -> None:
    with pytest.raises(ContractError) as refused:
        references_in({"1": {"inputs": {"image": {"__type": "core/ASSET", "info": info}}}})
    assert refused.value.breach is Breach.INVALID_WORKFLOW
    assert "'image'" in refused.value.detail


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        (f"blake3:{'0' * 64}", "0" * 64),
        ("blake3:" + "AB" * 32, "ab" * 32),
        ("0" * 64, None),
        (f"blake3:{'0' * 63}", None),
        (f"blake3:{'g' * 64}", None),
        (f"blake3:{'٣' * 64}", None),
        (f"sha256:{'0' * 64}", None),
    ],
)
def test_only_blake3_hashes_in_hex_are_read(text: str, digits: str | None) -> None:
    assert hash_of(text) == digits


def test_file_names_of_assets_become_references_again() -> None:
    name = name_of("an-id", "a b.png")
    prompt: dict[str, Any] = {"1": {"inputs": {"image": name, "list": [[name]], "text": "assets/x/y"}}}
    restore(prompt, [name, "photo.png", "assets/other"])
    assert prompt == {
        "1": {"inputs": {"image": reference(id="an-id"), "list": [[reference(id="an-id")]], "text": "assets/x/y"}}
    }
