"""ComfyUI's own workflow templates as named workflows: which load, which have parameters, and which an engine can run.

    python -m tests.support.templates

prints the counts of docs/workflows.md. The templates come from the package comfyui-workflow-templates-json. The node
definitions are those of ComfyUI 0.3.64 with its partner nodes, from its ``/object_info``, without prose.
"""

from __future__ import annotations

import base64
import gzip
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

import comfyui.engine.server  # noqa: F401 - it registers the engine's nodes
from comfyui import jsonio
from comfyui.engine.nodes.registry import NODES
from comfyui.limits import DEFAULT_LIMITS
from comfyui.named.loading import load
from comfyui.named.nodes import Nodes
from comfyui.named.parameters import NamedWorkflow, Unusable
from comfyui.workflows.api_format import is_link, is_ui_format
from comfyui.workflows.convert.virtual import VIRTUAL_TYPES

PACKAGE = "comfyui_workflow_templates_json"
DEFINITIONS = Path(__file__).parents[1] / "data/object_info-0.3.64.json.gz"
# Inputs that name a model, and the model's folder.
_MODELS: Mapping[str, Mapping[str, str]] = {
    "CheckpointLoaderSimple": {"ckpt_name": "checkpoints"},
    "UNETLoader": {"unet_name": "diffusion_models"},
    "VAELoader": {"vae_name": "vae"},
    "CLIPLoader": {"clip_name": "text_encoders"},
    "DualCLIPLoader": {f"clip_name{number}": "text_encoders" for number in (1, 2)},
    "QuadrupleCLIPLoader": {f"clip_name{number}": "text_encoders" for number in (1, 2, 3, 4)},
    "ControlNetLoader": {"control_net_name": "controlnet"},
    "LoraLoader": {"lora_name": "loras"},
    "LoraLoaderModelOnly": {"lora_name": "loras"},
}
# Smaller values for inputs that only cost time.
_SMALLER: Mapping[str, int] = {"steps": 2, "width": 64, "height": 64}

# Templates with a choice that ComfyUI 0.3.64 does not have; both it and the engine refuse them.
REFUSED: Mapping[str, str] = {
    "image_kandinsky5_t2i": "kandinsky5_image",
    "image_newbieimage_exp0_1-t2i": "newbie",
    "image_ovis_text_to_image": "ovis",
}


@cache
def templates() -> Mapping[str, bytes]:
    """All workflows of the package by name. Raises if it is not installed, because the tests require it."""
    spec = find_spec(PACKAGE)
    assert spec is not None, f"pip install {PACKAGE.replace('_', '-')}"
    paths = [path for folder in spec.submodule_search_locations or () for path in Path(folder).rglob("*.json")]
    contents = {path.stem: path.read_bytes() for path in sorted(paths)}
    return {name: content for name, content in contents.items() if _is_workflow(content)}


def _is_workflow(content: bytes) -> bool:
    parsed = jsonio.loads(content)
    return isinstance(parsed, dict) and is_ui_format(parsed)


@cache
def definitions() -> Mapping[str, Any]:
    """Node definitions of a real ComfyUI."""
    found: dict[str, Any] = jsonio.loads(gzip.decompress(DEFINITIONS.read_bytes()))
    return found


@cache
def classes_of(name: str) -> frozenset[str]:
    """The classes of a template's nodes, including those in its subgraphs."""
    file = jsonio.loads(templates()[name])
    subgraphs = (file.get("definitions") or {}).get("subgraphs", [])
    ids = {graph["id"] for graph in subgraphs}
    return frozenset(
        node["type"]
        for graph in (file, *subgraphs)
        for node in graph["nodes"]
        if node["type"] not in ids | VIRTUAL_TYPES
    )


def known_by(classes: Mapping[str, Any]) -> list[str]:
    """The templates whose node classes are all known."""
    return [name for name in templates() if classes_of(name) <= classes.keys()]


def loaded(name: str, nodes: Nodes) -> NamedWorkflow | Unusable:
    return load(name, templates()[name], None, nodes, DEFAULT_LIMITS)


@cache
def all_loaded() -> Mapping[str, NamedWorkflow | Unusable]:
    """Every template whose classes the real ComfyUI has."""
    nodes = Nodes(definitions())
    return {name: loaded(name, nodes) for name in known_by(definitions())}


@dataclass(frozen=True, slots=True)
class Needed:
    """What an engine needs for the templates: models by folder, and names of files in its input folder."""

    models: Mapping[str, tuple[str, ...]]
    pictures: tuple[str, ...]


def needed(workflows: Mapping[str, NamedWorkflow]) -> Needed:
    models: dict[str, dict[str, None]] = {}
    pictures: dict[str, None] = {}
    for workflow in workflows.values():
        for node in workflow.prompt.values():
            for name, folder in _MODELS.get(node["class_type"], {}).items():
                if not is_link(node["inputs"][name]):
                    models.setdefault(folder, {})[node["inputs"][name]] = None
            if node["class_type"] in ("LoadImage", "LoadImageMask") and not is_link(node["inputs"]["image"]):
                pictures[node["inputs"]["image"].removesuffix(" [input]")] = None
    return Needed({folder: tuple(names) for folder, names in models.items()}, tuple(pictures))


def picture() -> bytes:
    """A PNG of 64 x 64 pixels."""
    content = io.BytesIO()
    Image.new("RGBA", (64, 64), (200, 90, 30, 128)).save(content, "PNG")
    return content.getvalue()


def values_for(workflow: NamedWorkflow) -> dict[str, Any]:
    """Values for a quick call: the required ones, small sizes, few steps, and a text."""
    values: dict[str, Any] = {}
    for one in workflow.parameters:
        if one.kind == "file":
            values[one.name] = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
        elif one.kind == "text":
            values[one.name] = f"the text of {one.name}"
        elif one.kind == "integer" and one.targets[0].input in _SMALLER:
            values[one.name] = max(_SMALLER[one.targets[0].input], int(one.minimum or 0))
        elif one.required:
            values[one.name] = workflow.example[one.name]
    return values


def why_not_run(name: str) -> str:
    """Why the engine cannot run a template that the real ComfyUI may run."""
    lacking = classes_of(name) - NODES.keys()
    if any(definitions()[one].get("api_node") for one in lacking):
        return "a node asks a partner's paid service"
    return "the engine lacks one node class" if len(lacking) == 1 else "the engine lacks several node classes"


def report() -> list[str]:
    """The counts, one in each line."""
    loaded_ones = all_loaded()
    usable = [one for one in loaded_ones.values() if isinstance(one, NamedWorkflow)]
    with_parameters = [one for one in usable if one.parameters]
    runnable = known_by(NODES)
    kinds = Counter(parameter.kind for one in usable for parameter in one.parameters)
    reasons = Counter(why_not_run(name) for name in loaded_ones if name not in runnable)
    return [
        f"templates: {len(templates())}",
        f"all node classes known to ComfyUI 0.3.64: {len(loaded_ones)}",
        f"  of these loaded: {len(usable)}",
        f"  with parameters: {len(with_parameters)}; parameters: {sum(kinds.values())} ({_counted(kinds)})",
        f"  all node classes known to the embedded engine: {len(runnable)}, of which {len(REFUSED)} are refused",
        *(f"  not run: {reason}: {count}" for reason, count in reasons.most_common()),
        f"not known: a node class that ComfyUI 0.3.64 does not have: {len(templates()) - len(loaded_ones)}",
    ]


def _counted(counts: Counter[Any]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())


if __name__ == "__main__":
    print("\n".join(report()))
