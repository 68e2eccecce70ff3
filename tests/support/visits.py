"""The results of a visit to ComfyUI's web frontend."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Visit:
    """What a person would see of one visit to the frontend."""

    errors: set[str] = field(default_factory=set)
    """Console errors, uncaught exceptions and failed requests, without the server's address."""
    run_width: int = 0
    history_pictures: int = 0
    uploaded: str = ""
    upload_width: int = 0
