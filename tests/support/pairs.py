"""A ComfyUI and a gateway in front of it, which get the same requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    comfyui: str
    gateway: str
    view: str
