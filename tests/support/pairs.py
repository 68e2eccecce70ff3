"""A real ComfyUI and a gateway before it, to be asked the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    comfyui: str
    gateway: str
    view: str
