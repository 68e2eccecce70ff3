"""Video Helper Suite's pair of nodes, as workflows use them: with its names, inputs, files and the output key `gifs`.

Its MP4 is Motion JPEG, which players and ffmpeg read (the real one asks ffmpeg for H.264).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence, UnidentifiedImageError

from comfyui.engine.files import Folders
from comfyui.engine.nodes import mp4
from comfyui.engine.nodes.image import png_info
from comfyui.engine.nodes.pixels import Images
from comfyui.engine.nodes.registry import PNG_INFO, NodeRun, Shown, Values, node

_VIDEO_ENDINGS = ("webm", "mp4", "mkv", "gif", "mov")
_FORMATS = {
    "image/gif": "gif",
    "image/webp": "webp",
    "video/h264-mp4": "mp4",
    "video/h265-mp4": "mp4",
}
_MAX_INT = 2**53 - 1


def _videos(folders: Folders) -> dict[str, list[Any]]:
    names = [name for name in folders.input_files(images_only=False) if name.rpartition(".")[2] in _VIDEO_ENDINGS]
    count = ["INT", {"default": 0, "min": 0, "max": _MAX_INT, "step": 1}]
    return {
        "video": [names, {"video_upload": True}],
        "force_rate": ["FLOAT", {"default": 0, "min": 0, "max": 60, "step": 1}],
        "custom_width": ["INT", {"default": 0, "min": 0, "max": 8192}],
        "custom_height": ["INT", {"default": 0, "min": 0, "max": 8192}],
        "frame_load_cap": count,
        "skip_first_frames": count,
        "select_every_nth": ["INT", {"default": 1, "min": 1, "max": _MAX_INT, "step": 1}],
    }


def _content_hash(folders: Folders, video: str, **_: Any) -> str:
    return hashlib.sha256(folders.annotated_path(video).read_bytes()).hexdigest()


def _file_exists(folders: Folders, video: str) -> bool | str:
    return folders.annotated_path(video).exists() or f"Invalid video file: {video}"


@node(
    "VHS_LoadVideo",
    category="Video Helper Suite 🎥🅥🅗🅢",
    display_name="Load Video (Upload) 🎥🅥🅗🅢",
    module="custom_nodes.comfyui-videohelpersuite",
    required=_videos,
    optional={"meta_batch": ["VHS_BatchManager"], "vae": ["VAE"]},
    hidden={"force_size": "STRING", "unique_id": "UNIQUE_ID"},
    outputs=("IMAGE", "INT", "AUDIO", "VHS_VIDEOINFO"),
    fingerprint=_content_hash,
    validate=_file_exists,
    validated_inputs=frozenset({"video"}),
)
def load_video(
    run: NodeRun,
    video: str,
    force_rate: float = 0,
    custom_width: int = 0,
    custom_height: int = 0,
    frame_load_cap: int = 0,
    skip_first_frames: int = 0,
    select_every_nth: int = 1,
    **_others: object,
) -> Values:
    frames = _frames(run.folders.annotated_path(video))[skip_first_frames::select_every_nth]
    frames = frames[:frame_load_cap] if frame_load_cap else frames
    if not frames:
        raise RuntimeError("No frames generated")
    width, height = frames[0].size
    size = (custom_width or width, custom_height or height)
    images = [frame if frame.size == size else frame.resize(size) for frame in frames]
    info = {"loaded_fps": force_rate or 8, "loaded_frame_count": len(images)}
    return images, len(images), None, info


def _frames(path: Path) -> Images:
    """The frames of an animation that Pillow reads, or of a Motion JPEG in MP4. Raises for others, as the real node
    does.
    """
    try:
        with Image.open(path) as opened:
            return [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
    except UnidentifiedImageError:
        pass
    try:
        return [Image.open(io.BytesIO(frame)).convert("RGB") for frame in mp4.read_frames(path.read_bytes())]
    except ValueError:
        raise ValueError(f"{path} could not be loaded with cv.") from None


@node(
    "VHS_VideoCombine",
    category="Video Helper Suite 🎥🅥🅗🅢",
    display_name="Video Combine 🎥🅥🅗🅢",
    module="custom_nodes.comfyui-videohelpersuite",
    required={
        "images": ["IMAGE"],
        "frame_rate": ["FLOAT", {"default": 8, "min": 1, "step": 1}],
        "loop_count": ["INT", {"default": 0, "min": 0, "max": 100, "step": 1}],
        "filename_prefix": ["STRING", {"default": "AnimateDiff"}],
        "format": [list(_FORMATS), {}],
        "pingpong": ["BOOLEAN", {"default": False}],
        "save_output": ["BOOLEAN", {"default": True}],
    },
    optional={"audio": ["AUDIO"], "meta_batch": ["VHS_BatchManager"], "vae": ["VAE"]},
    hidden={**PNG_INFO, "unique_id": "UNIQUE_ID"},
    outputs=("VHS_FILENAMES",),
    output_node=True,
)
def video_combine(
    run: NodeRun,
    images: Images,
    frame_rate: float,
    loop_count: int = 0,
    filename_prefix: str = "AnimateDiff",
    format: str = "image/gif",  # noqa: A002 - its name in workflows
    pingpong: bool = False,
    save_output: bool = True,
    **_others: object,
) -> Shown:
    """The video, and beside it a PNG of the first frame with the workflow, as the real node writes both."""
    frames = images + images[-2:0:-1] if pingpong else images
    first = frames[0]
    folder = run.folders.output if save_output else run.folders.temp
    target = run.folders.save_path(filename_prefix, folder, *first.size)
    stem = f"{target.filename}_{_counter(target.folder, target.filename):05}"
    name = f"{stem}.{_FORMATS[format]}"
    path = target.folder / name
    first.save(target.folder / f"{stem}.png", pnginfo=png_info(run))
    if format.startswith("video/"):
        path.write_bytes(mp4.write_frames([_jpeg(frame) for frame in frames], first.size, frame_rate))
    else:
        duration = round(1000 / frame_rate)
        first.save(path, save_all=True, append_images=frames[1:], duration=duration, loop=loop_count)
    saved = {
        "filename": name,
        "subfolder": target.subfolder,
        "type": "output" if save_output else "temp",
        "format": format,
        "frame_rate": frame_rate,
        "workflow": f"{stem}.png",
        "fullpath": str(path),
    }
    names = [str(target.folder / f"{stem}.png"), str(path)]
    return Shown({"gifs": [saved]}, ((save_output, names),))


def _counter(folder: Path, filename: str) -> int:
    """One above the highest number that a file of this name has there; VHS writes no underscore behind it."""
    numbered = re.compile(rf"{re.escape(filename)}_(\d+)\D*\..+")
    found = (numbered.fullmatch(entry.name) for entry in os.scandir(folder))
    return max((int(match[1]) for match in found if match), default=0) + 1


def _jpeg(frame: Image.Image) -> bytes:
    content = io.BytesIO()
    frame.convert("RGB").save(content, "JPEG", quality=90)
    return content.getvalue()
