"""The files and classes that a workflow needs of a server, and whether the server has them."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from comfyui.workflows.needs import Offer, names_folders, needs_of


def workflow(text: str = "a cat", checkpoint: str = "sd\\v1.safetensors", image: str = "cat.png") -> dict[str, Any]:
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["1", 1]}},
        "3": {"class_type": "LoadImage", "inputs": {"image": image}},
    }


def offer(checkpoints: list[str], images: list[str]) -> Offer:
    return Offer(
        {
            "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [checkpoints]}}},
            "CLIPTextEncode": {"input": {"required": {"text": ["STRING", {"multiline": True}], "clip": ["CLIP"]}}},
            "LoadImage": {"input": {"required": {"image": [images, {"image_upload": True}]}}},
        }
    )


def test_needs_depend_on_files_and_not_on_texts() -> None:
    needs = needs_of(workflow("a cat"))
    assert needs_of(workflow("a dog")) == needs
    assert needs_of(workflow(checkpoint="other.ckpt")) != needs
    assert needs_of(workflow(image="dog.png")) != needs
    assert needs.models == {"sd/v1.safetensors"}


def test_equal_needs_are_one_object_while_it_is_referenced() -> None:
    needs = needs_of(workflow("a cat"))
    assert needs_of(workflow("a dog")) is needs
    gone = weakref.ref(needs)
    del needs
    gc.collect()
    assert gone() is None


def test_a_file_that_comes_with_the_request_is_no_need() -> None:
    needs = needs_of(workflow(), placed={"cat.png"})
    assert needs == needs_of(workflow(image="https://example.org/dog.png"))
    assert offer(["sd/v1.safetensors"], []).has(needs)


def test_a_server_has_the_files_that_it_lists_with_either_separator() -> None:
    needs = needs_of(workflow())
    assert offer(["sd/v1.safetensors"], ["cat.png"]).has(needs)
    assert offer(["sd\\v1.safetensors"], ["cat.png"]).has(needs)
    lacking = offer(["other.ckpt"], [])
    assert not lacking.has(needs)
    assert lacking.lacking(needs) == ["sd\\v1.safetensors (for CheckpointLoaderSimple)", "cat.png (for LoadImage)"]
    without = Offer({"LoadImage": {}})
    assert without.lacking(needs) == ["the node class CLIPTextEncode", "the node class CheckpointLoaderSimple"]


def test_an_upload_that_comfyui_would_not_list_counts_as_present() -> None:
    has_model = offer(["sd/v1.safetensors"], [])
    for image in ("sub/cat.png", "cat.png [output]", "cat.weird"):
        assert has_model.has(needs_of(workflow(image=image))), image


def test_each_server_gets_its_own_spelling() -> None:
    sent = workflow()
    spelled = offer(["sd/v1.safetensors"], ["cat.png"]).spelled(sent)
    assert spelled["1"]["inputs"]["ckpt_name"] == "sd/v1.safetensors"
    assert {node_id: spelled[node_id] for node_id in ("2", "3")} == {node_id: sent[node_id] for node_id in ("2", "3")}
    assert sent == workflow()
    assert offer(["sd\\v1.safetensors"], ["cat.png"]).spelled(sent) is sent


@pytest.mark.parametrize("own", ["sd/v1.safetensors", "sd\\v1.safetensors"])
def test_a_spelling_that_a_server_lists_is_kept(own: str) -> None:
    both = offer(["sd/v1.safetensors", "sd\\v1.safetensors"], ["cat.png"])
    sent = workflow()
    sent["1"]["inputs"]["ckpt_name"] = own
    assert both.spelled(sent) is sent


def test_choices_in_folders_are_respelled_and_texts_are_not() -> None:
    listed = Offer({"Loader": {"input": {"required": {"folder": [["a/b"]], "text": ["STRING", {}]}}}})
    sent = {"1": {"class_type": "Loader", "inputs": {"folder": "a\\b", "text": "a\\b"}}}
    assert names_folders(sent)
    assert listed.spelled(sent) == {"1": {"class_type": "Loader", "inputs": {"folder": "a/b", "text": "a\\b"}}}
    assert not names_folders({"1": {"class_type": "Loader", "inputs": {"folder": "a", "n": 1, "link": ["2", 0]}}})


def test_a_workflow_that_reads_a_folder_needs_a_server_with_that_folder() -> None:
    prompt = {"1": {"class_type": "LoadImageSetFromFolderNode", "inputs": {"folder": "cats", "resize_method": "None"}}}
    needs = needs_of(prompt)

    def server(*folders: str) -> Offer:
        inputs = {"folder": [list(folders)], "resize_method": [["None", "Stretch"]]}
        return Offer({"LoadImageSetFromFolderNode": {"input": {"required": inputs}}})

    assert server("cats", "dogs").has(needs)
    assert not server("dogs").has(needs)
    assert server("dogs").lacking(needs) == ["cats (for LoadImageSetFromFolderNode)"]
