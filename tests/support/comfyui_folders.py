"""ComfyUI's folders with files of some age."""

from __future__ import annotations

import os
import time
from pathlib import Path

from comfyui.workers.cleanup import CleanupOptions, ComfyUIFolders


class Folders:
    """ComfyUI's three folders, and how often the cleaner made the worker forget its inputs."""

    def __init__(self, base: Path) -> None:
        self.input, self.output, self.temp = (base / name for name in ("input", "output", "temp"))
        for folder in (self.input, self.output, self.temp):
            folder.mkdir(parents=True)
        self.forgotten = 0

    def opened(self, *, max_age_s: float = 0, max_bytes: int = 0) -> ComfyUIFolders:
        return ComfyUIFolders(CleanupOptions(self.input, self.output, self.temp, max_age_s, max_bytes), self._forget)

    def write(self, age_s: float = 0.0) -> list[Path]:
        """Writes a file into each folder and returns the paths."""
        written = time.time() - age_s
        files = [folder / f"{age_s:g}.png" for folder in (self.input, self.output, self.temp)]
        for file in files:
            file.write_bytes(b"x")
            os.utime(file, (written, written))
        return files

    def _forget(self) -> None:
        self.forgotten += 1
