"""The options of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OLD_VERSION, NEW_VERSION = "0.3.64", "0.38.0"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    host: str = "127.0.0.1"
    port: int = 0
    """0: any free one."""
    comfyui_version: str = NEW_VERSION
    """Decides whether what came after 0.3.64 is there: job routes, the check of prompt ids, no secrets in /queue."""
    base_directory: Path | None = None
    """Holds `input`, `output`, `temp` and `user`; None: a temporary one that goes with the engine."""
    step_seconds: float = 0.02
    """Time of one KSampler step."""
    faults: Mapping[str, Any] = field(default_factory=dict)
    """Switched on from the start; names and configurations: `comfyui.engine.faults`."""

    faults_file: Path | None = None
    """Keeps the faults over a crash; if it exists already, it counts and `faults` do not."""
    required_headers: Mapping[str, str] = field(default_factory=dict)
    """A request without these is answered 401, as by a proxy before ComfyUI that asks for credentials."""
    front_end_root: Path | None = None
    """Folder with ComfyUI's web frontend (`index.html` and the files that it loads), as with `--front-end-root`."""
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By folder (``checkpoints``), the names of model files that replace every engine's own."""
    features: Mapping[str, Any] = field(default_factory=dict)
    """Feature flags that add to, or replace, those that every engine has."""
    certificate: Path | None = None
    """Certificate and key, in PEM: it speaks https, as ComfyUI does with `--tls-certfile`."""
    executions_file: Path | None = None
    """Gets a line with the id of each prompt that begins to run; it outlives a crash."""
    own_process: bool = False
    """The engine is all that this process does, so that a fault may end it."""

    @property
    def is_modern(self) -> bool:
        return tuple(int(part) for part in self.comfyui_version.split(".")) >= (0, 38)
