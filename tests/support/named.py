"""Named workflows for tests: a small one, its node definitions, and a folder of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from comfyui import jsonio
from comfyui.limits import DEFAULT_LIMITS
from comfyui.named.binding import Bound, bind
from comfyui.named.loading import load
from comfyui.named.nodes import Nodes
from comfyui.named.parameters import NamedWorkflow, Unusable

MODELS = ["a.safetensors", "sub\\b.safetensors", "Flux Dev.safetensors"]
OBJECT_INFO: dict[str, Any] = {
    "Loader": {"input": {"required": {"name": [MODELS]}}, "output": ["MODEL"]},
    "Text": {
        "input": {"required": {"text": ["STRING", {"multiline": True}], "model": ["MODEL"]}},
        "output": ["CONDITIONING"],
    },
    "Sampler": {
        "input": {
            "required": {
                "seed": ["INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}],
                "steps": ["INT", {"default": 20, "min": 1, "max": 100}],
                "cfg": ["FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1}],
                "tiled": ["BOOLEAN", {"default": False}],
                "method": ["COMBO", {"options": ["euler", "heun"]}],
                "positive": ["CONDITIONING"],
            },
            "optional": {"level": [[1, 2, 4]], "curve": ["CURVE"], "marks": ["MARKS", {"default": ""}]},
        },
        "output": ["LATENT"],
    },
    "LoadImage": {"input": {"required": {"image": [[], {"image_upload": True}]}}, "output": ["IMAGE", "MASK"]},
    "Save": {
        "input": {"required": {"images": ["LATENT"], "prefix": ["STRING"]}},
        "output": [],
        "output_node": True,
    },
}


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


def workflow(**titles: str) -> dict[str, Any]:
    """A small workflow; `titles` are those of its nodes loader, text, sampler, picture and save."""
    return {
        "1": node("Loader", titles.get("loader", ""), name="a.safetensors"),
        "2": node("Text", titles.get("text", ""), text="a cat", model=["1", 0]),
        "3": node(
            "Sampler",
            titles.get("sampler", ""),
            seed=7,
            steps=20,
            cfg=8.0,
            tiled=False,
            method="euler",
            positive=["2", 0],
        ),
        "4": node("LoadImage", titles.get("picture", ""), image="example.png"),
        "5": node("Save", titles.get("save", ""), images=["3", 0], prefix="x"),
    }


def loaded(
    prompt: Mapping[str, Any], sidecar: str | None = None, *, object_info: Mapping[str, Any] | None = OBJECT_INFO
) -> NamedWorkflow:
    """Loads a workflow that must be usable."""
    found = loaded_or_not(prompt, sidecar, object_info=object_info)
    assert isinstance(found, NamedWorkflow), found
    return found


def unusable(
    prompt: Mapping[str, Any], sidecar: str | None = None, *, object_info: Mapping[str, Any] | None = OBJECT_INFO
) -> str:
    """The reason why a workflow cannot be used."""
    found = loaded_or_not(prompt, sidecar, object_info=object_info)
    assert isinstance(found, Unusable), found
    return found.problem


def loaded_or_not(
    prompt: Mapping[str, Any], sidecar: str | None, *, object_info: Mapping[str, Any] | None
) -> NamedWorkflow | Unusable:
    beside = None if sidecar is None else sidecar.encode()
    return load("portrait", jsonio.dumps(prompt), beside, Nodes(object_info), DEFAULT_LIMITS)


def bound(named: NamedWorkflow, files: Mapping[str, str] | None = None, /, **values: Any) -> Bound:
    return bind(named, values, files=files or {}, rng=Random(5))  # noqa: S311


def write(folder: Path, name: str, prompt: Mapping[str, Any], sidecar: str | None = None) -> Path:
    """Writes a workflow into a folder, with its sidecar; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jsonio.dumps(prompt))
    if sidecar is not None:
        path.with_suffix(".toml").write_text(sidecar)
    return path
