"""The outputs of a node that are assets, and their ids."""

from __future__ import annotations

import pytest

from comfyui.assets.outputs import JobOutput, job_of, outputs_of
from tests.support.journals import prompt_id

_ID = prompt_id(1)


def shown(outputs: list[JobOutput]) -> list[tuple[str, str, str]]:
    return [(one.node_id, one.name, one.kind) for one in outputs]


def test_output_files_are_found_under_any_key_of_a_node() -> None:
    made = {
        "10": {"images": [{"filename": "a.mp4", "subfolder": "x", "type": "output"}, {"filename": "b.webp"}]},
        "9": {"3d": [{"filename": "m.glb", "type": "output"}], "latents": [{"filename": "l.latent", "type": "output"}]},
        "11": {"audio": [{"filename": "s.FLAC"}], "odd": [{"filename": "t.txt"}, {"filename": ""}, {"filename": 5}]},
    }
    assert shown(outputs_of(_ID, made)) == [
        ("9", "m.glb", "file"),
        ("9", "l.latent", "latent"),
        ("10", "a.mp4", "video"),
        ("10", "b.webp", "image"),
        ("11", "s.FLAC", "audio"),
        ("11", "t.txt", "text"),
    ]


def test_texts_and_file_paths_are_outputs_and_other_values_are_not() -> None:
    made = {
        "5:2": {"text": ["hé", 3.5, True, None, ["x"]], "string": ["more", ""], "animated": [False], "count": [3]},
        "7": {"result": ["3d/mesh.glb", None, {"position": 1}, "no model"]},
        "8": None,
        "9": {"images": None, "text": "plain"},
    }
    found = outputs_of(_ID, made)
    assert [(one.name, one.text) for one in found if one.file is None] == [
        ("5_2_1.txt", "hé"),
        ("5_2_2.txt", "3.5"),
        ("5_2_3.txt", "true"),
        ("5_2_4.txt", "more"),
        ("5_2_5.txt", ""),
        ("7_1.txt", "no model"),
    ]
    (model,) = [one.file for one in found if one.file is not None]
    assert (model.subfolder, model.filename, model.type) == ("3d", "mesh.glb", "output")


def test_the_id_of_an_output_does_not_depend_on_its_neighbours() -> None:
    file = {"filename": "a.png", "subfolder": "", "type": "output"}
    alone = outputs_of(_ID, {"2": {"images": [file], "text": ["a"]}})
    among = outputs_of(_ID, {"1": {"images": [file]}, "2": {"images": [file, file], "text": ["a"]}})
    assert [one.id for one in alone] == [one.id for one in among if one.node_id == "2"]
    assert len({one.id for one in among}) == 3
    assert {job_of(one.id) for one in among} == {_ID}
    assert {one.id for one in outputs_of(prompt_id(2), {"2": {"images": [file]}})}.isdisjoint(one.id for one in among)


@pytest.mark.parametrize("asset_id", ["", "x", prompt_id(1), f"{prompt_id(1)}.", "x.0123456789abcdef", f".{'0' * 16}"])
def test_an_id_of_another_form_belongs_to_no_job(asset_id: str) -> None:
    assert job_of(asset_id) is None
