"""The credentials of an engine that requires some, and its answers."""

from __future__ import annotations

from pathlib import Path

TOKEN = "Bearer upstream-secret"


CERTIFICATE = Path(__file__).parents[1] / "data" / "localhost.pem"
