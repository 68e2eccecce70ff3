"""The sources of the package."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


SOURCES = ("server.py", "config.py", "client.py", "comfyui", "pyproject.toml", "README.md", "LICENSE")
