"""What lands in a log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from comfyui.logs import configure_logging


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configured = structlog.get_config()
    yield tmp_path / "gateway.log"
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.configure(**configured)


def test_a_traceback_in_the_log_has_no_variables_of_its_frames(log_file: Path) -> None:
    """They may be callers' keys and prompts."""
    configure_logging("INFO", str(log_file))

    def fails(api_key: str) -> None:
        raise RuntimeError(f"with a key of {len(api_key)} characters")

    try:
        fails("sk-very-secret")
    except RuntimeError:
        structlog.get_logger("test").exception("it.failed")
    (line,) = log_file.read_text().splitlines()
    assert json.loads(line)["exception"][0]["exc_value"] == "with a key of 14 characters"
    assert "very-secret" not in line
