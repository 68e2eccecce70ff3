"""The lines of the log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import structlog

from comfyui.logs import configure_logging


def test_a_traceback_in_the_log_has_no_local_variables(log_file: Path) -> None:
    """The variables may be callers' keys and prompts."""
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


def test_lines_of_ours_and_of_libraries_have_the_same_format(log_file: Path) -> None:
    configure_logging("INFO", str(log_file))
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("ours").warning("disk.full", free=3)
        logging.getLogger("theirs").warning("disk %s", "full")
    ours, theirs = (json.loads(line) for line in log_file.read_text().splitlines())
    assert ours.pop("timestamp").endswith("Z")
    assert theirs.pop("timestamp").endswith("Z")
    assert ours == {"free": 3, "event": "disk.full", "request_id": "r1", "level": "warning", "logger": "ours"}
    assert theirs == {"event": "disk full", "request_id": "r1", "level": "warning", "logger": "theirs"}


@pytest.mark.parametrize("library", ["sse_starlette.sse", "uvicorn.error", "theirs"])
def test_debug_lines_of_libraries_are_never_written(log_file: Path, library: str) -> None:
    configure_logging("DEBUG", str(log_file))
    logging.getLogger(library).debug("chunk: %s", "an answer with a link")
    logging.getLogger(library).info("started")
    structlog.get_logger("ours").debug("looked")
    events = [json.loads(line)["event"] for line in log_file.read_text().splitlines()]
    assert events == ["started", "looked"]
    assert logging.getLogger("access").isEnabledFor(logging.DEBUG)  # its lines of requests appear only at DEBUG


def test_lines_below_the_level_are_not_written(log_file: Path) -> None:
    configure_logging("WARNING", str(log_file))
    log = structlog.get_logger("ours")
    log.debug("no")
    log.info("no")
    log.log(logging.INFO, "no")
    log.log(logging.ERROR, "yes")
    logging.getLogger("theirs").info("no")
    assert [json.loads(line)["event"] for line in log_file.read_text().splitlines()] == ["yes"]


def test_a_rotated_log_file_is_opened_again(log_file: Path) -> None:
    configure_logging("INFO", str(log_file))
    log = structlog.get_logger("ours")
    log.info("before")
    log_file.rename(log_file.with_suffix(".1"))
    log.info("after")
    assert [json.loads(line)["event"] for line in log_file.read_text().splitlines()] == ["after"]


def test_on_a_console_a_traceback_is_plain_text(log_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "console")
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger("ours").exception("it.failed", node="3")
    written = capsys.readouterr().err
    assert "it.failed" in written
    assert "RuntimeError: broken" in written
    assert not log_file.exists()


def test_a_line_of_the_log_is_ascii_without_line_breaks(log_file: Path) -> None:
    """A terminal obeys some characters, and other characters end a line for some readers."""
    configure_logging("INFO", str(log_file))
    said = "é \u2028 \x9b2J \ud800 \n"
    structlog.get_logger("ours").info("said", text=said, path=Path("/x"), number=float("inf"))
    (line,) = log_file.read_bytes().splitlines()
    assert line.isascii()
    assert json.loads(line)["text"] == said
    assert "/x" in json.loads(line)["path"]
