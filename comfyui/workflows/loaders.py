"""ComfyUI's own nodes that load uploaded files, as ``/object_info`` would describe them.

Used by the gateway if no ComfyUI answers: it needs to know which inputs of a workflow are files, so that a picture that
comes with a request is stored under a name made of its content, not under one that two callers may share.
"""

from __future__ import annotations

from typing import Any

_FILES = {
    "LoadImage": ("image", "image_upload"),
    "LoadImageMask": ("image", "image_upload"),
    "LoadImageOutput": ("image", "image_upload"),
    "LoadAudio": ("audio", "audio_upload"),
    "LoadVideo": ("file", "video_upload"),
    "Load3D": ("model_file", "file_upload"),
    "LoadLatent": ("latent", "file_upload"),
    "VHS_LoadVideo": ("video", "video_upload"),
    "VHS_LoadAudioUpload": ("audio", "audio_upload"),
}

LOADERS: dict[str, Any] = {
    class_type: {"input": {"required": {name: ["COMBO", {option: True}]}}}
    for class_type, (name, option) in _FILES.items()
}
