"""The engine's folders, ComfyUI's names for files in them, and the naming of saved files."""

from __future__ import annotations

import mimetypes
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_ANNOTATIONS = {"[output]": "output", "[input]": "input", "[temp]": "temp"}
_FOLDER_TYPES = ("output", "input", "temp")

CHECKPOINTS = ("sd_xl_base_1.0.safetensors", "v1-5-pruned-emaonly.safetensors")
LORAS = ("add_detail.safetensors", "pixel-art-xl.safetensors")
MODEL_FOLDERS: dict[str, tuple[str, ...]] = {
    "checkpoints": CHECKPOINTS,
    "configs": (),
    "loras": LORAS,
    "vae": (),
    "text_encoders": (),
    "diffusion_models": (),
    "clip_vision": (),
    "style_models": (),
    "embeddings": (),
    "diffusers": (),
    "vae_approx": (),
    "controlnet": (),
    "gligen": (),
    "upscale_models": (),
    "custom_nodes": (),
    "hypernetworks": (),
    "photomaker": (),
    "classifiers": (),
    "model_patches": (),
    "audio_encoders": (),
}


@dataclass(frozen=True, slots=True)
class SavePath:
    """The place of the next file of a prefix; `counter` is one above the highest present one."""

    folder: Path
    filename: str
    counter: int
    subfolder: str

    def file(self, extension: str, batch_number: int = 0) -> str:
        name = self.filename.replace("%batch_num%", str(batch_number))
        return f"{name}_{self.counter + batch_number:05}_.{extension}"


@dataclass(frozen=True, slots=True)
class Folders:
    base: Path
    other_models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By folder, the replacements of the files of `MODEL_FOLDERS`."""

    @property
    def models(self) -> dict[str, Sequence[str]]:
        """The kinds of models with their files."""
        return {**MODEL_FOLDERS, **self.other_models}

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def input(self) -> Path:
        return self.base / "input"

    @property
    def temp(self) -> Path:
        return self.base / "temp"

    @property
    def user(self) -> Path:
        return self.base / "user"

    def create(self) -> None:
        for folder in (self.output, self.input, self.temp, self.user / "default"):
            folder.mkdir(parents=True, exist_ok=True)

    def by_type(self, folder_type: str) -> Path | None:
        return self.base / folder_type if folder_type in _FOLDER_TYPES else None

    def annotated(self, name: str) -> tuple[str, Path | None]:
        """Splits ComfyUI's `name.png [output]` into the name and its folder (None: not annotated)."""
        for annotation, folder_type in _ANNOTATIONS.items():
            if name.endswith(annotation):
                # One more than the annotation: the blank before it, as ComfyUI cuts it, whatever stands there.
                return name[: -len(annotation) - 1], self.base / folder_type
        return name, None

    def annotated_path(self, name: str) -> Path:
        plain, folder = self.annotated(name)
        return (folder or self.input) / plain

    def input_files(self, *, images_only: bool) -> list[str]:
        names = sorted(entry.name for entry in os.scandir(self.input) if entry.is_file())
        return [name for name in names if not images_only or _is_image(name)]

    def save_path(self, prefix: str, folder: Path, width: int = 0, height: int = 0) -> SavePath:
        """Raises as a node does when the prefix leads out of `folder`; makes the subfolder."""
        prefix = os.path.normpath(_expand(prefix, width, height))
        subfolder, filename = os.path.split(prefix)
        target = Path(os.path.normpath(folder / subfolder))
        if not target.is_relative_to(folder):
            raise RuntimeError(
                "**** ERROR: Saving image outside the output folder is not allowed."
                f"\n full_output_folder: {target}\n         output_dir: {folder}"
                f"\n         commonpath: {os.path.commonpath((folder, target))}"
            )
        target.mkdir(parents=True, exist_ok=True)
        counter = max((_counter(name, filename) for name in os.listdir(target)), default=0) + 1  # noqa: PTH208
        return SavePath(target, filename, counter, subfolder)


def is_within(folder: Path, path: Path) -> bool:
    """For absolute paths; links are not followed, as in ComfyUI."""
    return Path(os.path.normpath(path)).is_relative_to(folder)


def _is_image(name: str) -> bool:
    guessed = mimetypes.guess_type(name, strict=False)[0]
    return guessed is not None and guessed.startswith("image/")


def _expand(prefix: str, width: int, height: int) -> str:
    if "%" not in prefix:
        return prefix
    now = time.localtime()
    tokens = {
        "%width%": str(width),
        "%height%": str(height),
        "%year%": str(now.tm_year),
        "%month%": f"{now.tm_mon:02}",
        "%day%": f"{now.tm_mday:02}",
        "%hour%": f"{now.tm_hour:02}",
        "%minute%": f"{now.tm_min:02}",
        "%second%": f"{now.tm_sec:02}",
    }
    for token, value in tokens.items():
        prefix = prefix.replace(token, value)
    return prefix


def _counter(name: str, filename: str) -> int:
    """The number in `<filename>_<number>_….ext`; 0 for any other name."""
    head = filename + "_"
    digits = name[len(head) :].split("_", maxsplit=1)[0]
    return int(digits) if name.startswith(head) and digits.isdecimal() else 0
