"""Outputs of other media: text, sound and moving pictures, under ComfyUI's names."""

from __future__ import annotations

import json
import wave
from dataclasses import dataclass
from typing import Any

from comfyui.engine.nodes.pixels import Images
from comfyui.engine.nodes.registry import PNG_INFO, NodeRun, Shown, Values, node

_SAMPLE_BYTES = 2
_CHUNK_FRAMES = 65536


@dataclass(frozen=True, slots=True)
class Silence:
    """AUDIO that is nothing but a length."""

    seconds: float
    sample_rate: int
    channels: int


@dataclass(frozen=True, slots=True)
class Video:
    frames: Images
    fps: float


@node(
    "PreviewAny",
    category="utils",
    display_name="Preview Any",
    module="comfy_extras.nodes_preview_any",
    required={"source": ["*", {}]},
    output_node=True,
)
def preview_any(_run: NodeRun, source: Any = None) -> Shown:
    if isinstance(source, str):
        return Shown({"text": [source]})
    try:
        return Shown({"text": [str(source) if isinstance(source, int | float) else json.dumps(source)]})
    except (TypeError, ValueError):
        return Shown({"text": [str(source)]})


@node(
    "EmptyAudio",
    category="audio",
    display_name="Empty Audio",
    module="comfy_extras.nodes_audio",
    required={
        "duration": ["FLOAT", {"default": 60.0, "min": 0.0, "max": 0xFFFFFFFFFFFFFFFF, "step": 0.01}],
        "sample_rate": ["INT", {"default": 44100}],
        "channels": ["INT", {"default": 2, "min": 1, "max": 2}],
    },
    outputs=("AUDIO",),
)
def empty_audio(_run: NodeRun, duration: float, sample_rate: int, channels: int) -> Values:
    return (Silence(duration, sample_rate, channels),)


@node(
    "SaveAudio",
    category="audio",
    display_name="Save Audio (FLAC)",
    module="comfy_extras.nodes_audio",
    required={"audio": ["AUDIO"], "filename_prefix": ["STRING", {"default": "audio/ComfyUI"}]},
    hidden=PNG_INFO,
    output_node=True,
)
def save_audio(run: NodeRun, audio: Silence, filename_prefix: str = "audio/ComfyUI") -> Shown:
    """A WAV file (ComfyUI writes FLAC: the name's ending is the one thing that differs in the output entry)."""
    target = run.folders.save_path(filename_prefix, run.folders.output)
    name = target.file("wav")
    with wave.open(str(target.folder / name), "wb") as sound:
        sound.setnchannels(audio.channels)
        sound.setsampwidth(_SAMPLE_BYTES)
        sound.setframerate(audio.sample_rate)
        left = round(audio.seconds * audio.sample_rate)
        while left > 0:
            frames = min(left, _CHUNK_FRAMES)
            sound.writeframesraw(bytes(frames * audio.channels * _SAMPLE_BYTES))
            left -= frames
    return Shown({"audio": [{"filename": name, "subfolder": target.subfolder, "type": "output"}]})


@node(
    "CreateVideo",
    category="image/video",
    display_name="Create Video",
    description="Create a video from images.",
    module="comfy_extras.nodes_video",
    v3=True,
    required={
        "images": ["IMAGE", {}],
        "fps": ["FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}],
    },
    optional={"audio": ["AUDIO", {}]},
    outputs=("VIDEO",),
)
def create_video(_run: NodeRun, images: Images, fps: float, audio: Silence | None = None) -> Values:  # noqa: ARG001
    return (Video(images, fps),)


@node(
    "SaveVideo",
    category="image/video",
    display_name="Save Video",
    description="Saves the input images to your ComfyUI output directory.",
    module="comfy_extras.nodes_video",
    v3=True,
    required={
        "video": ["VIDEO", {}],
        "filename_prefix": ["STRING", {"default": "video/ComfyUI", "multiline": False}],
        "format": ["COMBO", {"default": "auto", "multiselect": False, "options": ["auto", "mp4"]}],
        "codec": ["COMBO", {"default": "auto", "multiselect": False, "options": ["auto", "h264"]}],
    },
    hidden={"prompt": ["PROMPT"], "extra_pnginfo": ["EXTRA_PNGINFO"]},
    output_node=True,
)
def save_video(run: NodeRun, video: Video, filename_prefix: str, **_choices: str) -> Shown:
    """An animated WebP (ComfyUI writes MP4, which Pillow cannot), reported as ComfyUI reports a video."""
    first = video.frames[0]
    target = run.folders.save_path(filename_prefix, run.folders.output, *first.size)
    name = target.file("webp")
    duration = round(1000 / video.fps)
    first.save(target.folder / name, save_all=True, append_images=video.frames[1:], duration=duration, quality=80)
    saved = {"filename": name, "subfolder": target.subfolder, "type": "output"}
    return Shown({"images": [saved], "animated": [True]})
