"""Uploads appear in the lists of nodes in which ComfyUI would list such a file, and nowhere else."""

from __future__ import annotations

from typing import Any

from comfyui.workflows.uploaded import with_uploads

NAMES = ["b.png", "sub/c.png", "d.mp4", "e.wav", "3d/f.glb", "g.latent", "h.webp"]


def classes(**inputs: Any) -> dict[str, Any]:
    return {name: {"input": {"required": {"file": declared}}} for name, declared in inputs.items()}


def listed(info: dict[str, Any], name: str, widget: str = "file") -> list[str]:
    declared = info[name]["input"]["required"][widget]
    found: list[str] = declared[0] if isinstance(declared[0], list) else declared[1]["options"]
    return found


def test_each_medium_is_added_to_the_lists_in_which_comfyui_has_it() -> None:
    info = classes(
        Image=[["a.png"], {"image_upload": True}],
        Video=["COMBO", {"options": ["a.mp4"], "video_upload": True}],
        Audio=[[], {"audio_upload": True}],
        Model=[["3d/z.obj"], {"file_upload": True}],
        Checkpoint=[["a.safetensors"]],
        Output=[["x.png"], {"image_upload": True, "image_folder": "output"}],
    )
    info["Latent"] = {"input": {"required": {"latent": [["a.latent"]]}}}
    found = with_uploads(info, NAMES)
    assert listed(found, "Image") == ["a.png", "b.png", "h.webp"]
    assert listed(found, "Video") == ["a.mp4", "d.mp4"]
    assert listed(found, "Audio") == ["d.mp4", "e.wav"]
    assert listed(found, "Model") == ["3d/f.glb", "3d/z.obj"]
    assert listed(found, "Latent", "latent") == ["a.latent", "g.latent"]
    for name in ("Checkpoint", "Output"):
        assert found[name] is info[name]


def test_a_list_keeps_its_order_and_has_each_name_once() -> None:
    info = classes(Image=[["z.png", "b.png"], {"image_upload": True}])
    found = with_uploads(info, ["b.png", "c.png"])
    assert listed(found, "Image") == ["z.png", "b.png", "c.png"]
    assert listed(info, "Image") == ["z.png", "b.png"], "the definitions are not changed"
    assert with_uploads(info, []) == info
