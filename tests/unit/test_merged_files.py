"""`comfyui.merged_files`: subfolders that begin with the id of the file's prompt."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.merged_files import from_merged, is_prompt_id, merged_outputs, merged_subfolder, to_merged

ID = "0b0ce1c3-4c9f-4b7e-9d65-2b1a54c1a0f4"

ids = st.uuids().map(str)
names = st.text(min_size=1, max_size=20)
subfolders = st.text(max_size=20)
fields = st.sampled_from(["filename", "subfolder", "type", "result", "images", "x"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(fields, inner, max_size=4),
    max_leaves=20,
)


@given(ids, names, subfolders)
def test_a_merged_subfolder_gives_back_the_id_and_the_subfolder(prompt_id: str, filename: str, subfolder: str) -> None:
    file = to_merged(prompt_id, {"filename": filename, "subfolder": subfolder, "type": "output"})

    assert file["filename"] == filename
    assert from_merged(file["subfolder"]) == (prompt_id, subfolder)


@given(ids, json_values)
def test_any_outputs_are_merged_without_a_change_to_the_original(prompt_id: str, outputs: Any) -> None:
    before = copy.deepcopy(outputs)

    merged = merged_outputs(prompt_id, outputs)

    assert outputs == before
    assert _without_subfolders(prompt_id, merged) == _without_subfolders(prompt_id, outputs)


def _without_subfolders(prompt_id: str, value: Any) -> Any:
    """The value with the prompt's id removed from each file's subfolder; a missing subfolder counts as an empty one."""
    if isinstance(value, dict):
        inner = {name: _without_subfolders(prompt_id, one) for name, one in value.items()}
        if isinstance(inner.get("filename"), str) and inner["filename"]:
            found = inner.get("subfolder")
            if isinstance(found, str):
                found = found.removeprefix(prompt_id).removeprefix("/")
            inner["subfolder"] = found or ""
        return inner
    if isinstance(value, list):
        return [_without_subfolders(prompt_id, one) for one in value]
    return value


@pytest.mark.parametrize(
    "subfolder",
    [
        "",
        "images",
        ID.upper(),
        ID.replace("-", ""),
        f"{{{ID}}}",
        f" {ID}",
        f"{ID} ",
        f"{ID}\n",
        f"{ID}/",
        f"/{ID}",
        f"./{ID}",
        f"{ID}\\x",
        f"{ID}x/y",
        f"{ID}\0",
        ID.replace("0", "٠"),
        f"images/{ID}",
        f"{ID}%2Fx",
    ],
)
def test_a_folder_that_only_looks_like_an_id_is_a_folder(subfolder: str) -> None:
    assert from_merged(subfolder) is None


def test_the_subfolder_behind_the_id_is_not_changed() -> None:
    assert from_merged(ID) == (ID, "")
    assert from_merged(f"{ID}/a/b") == (ID, "a/b")
    assert from_merged(f"{ID}/../x") == (ID, "../x")
    assert from_merged(f"{ID}/{ID}") == (ID, ID)
    assert from_merged(f"{ID}//x") == (ID, "/x")


def test_only_a_uuid_in_our_form_is_a_prompt_id() -> None:
    assert is_prompt_id(ID)
    assert not is_prompt_id(f"{ID}\n")
    assert not is_prompt_id("my-prompt")
    assert merged_subfolder(ID, "a") == f"{ID}/a"
    assert merged_subfolder(ID, "") == ID


def test_every_file_is_merged_and_keeps_its_other_fields_in_order() -> None:
    outputs = {
        "9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}], "animated": [True]},
        "7": {"gifs": [{"format": "mp4", "filename": "v.mp4", "subfolder": "v", "type": "temp", "rate": 8}]},
        "8": {"text": ["a.glb", "told"], "result": ["3d/m.GLB", {"position": {"x": 1}}, None]},
        "5": {"a_images": [{"filename": "b.png"}], "b_images": []},
    }

    merged = merged_outputs(ID, outputs)

    assert merged == {
        "9": {"images": [{"filename": "a.png", "subfolder": ID, "type": "output"}], "animated": [True]},
        "7": {"gifs": [{"format": "mp4", "filename": "v.mp4", "subfolder": f"{ID}/v", "type": "temp", "rate": 8}]},
        "8": {"text": ["a.glb", "told"], "result": [f"{ID}/3d/m.GLB", {"position": {"x": 1}}, None]},
        "5": {"a_images": [{"filename": "b.png", "subfolder": ID}], "b_images": []},
    }
    assert list(merged) == list(outputs)
    assert list(merged["7"]["gifs"][0]) == ["format", "filename", "subfolder", "type", "rate"]


@pytest.mark.parametrize(
    "odd",
    [
        None,
        [],
        7,
        "a.png",
        {"9": None},
        {"9": {"images": {"filename": 5}}},
        {"9": {"images": [{"filename": "", "subfolder": ""}]}},
        {"9": {"images": [{"filename": "a.png", "subfolder": 5}]}},
        {"9": {"result": ["/root/m.glb", "C:\\m.glb", "m.txt"]}},
    ],
)
def test_outputs_without_files_stay_the_same_object(odd: Any) -> None:
    assert merged_outputs(ID, odd) is odd


def test_outputs_that_are_nested_very_deeply_are_left_alone() -> None:
    nested: Any = [{"filename": "a.png"}]
    for _ in range(5_000):
        nested = [nested]

    assert merged_outputs(ID, nested) is nested
