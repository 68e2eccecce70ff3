"""structlog set up once for us, the standard library and uvicorn: one format for every line.

The values bound with ``structlog.contextvars`` (request_id, prompt_id) stand on every line of that request. Our own
lines are rendered by structlog and go straight to the handler: through the standard library's loggers and records, a
line took 45 µs instead of 12, twice a prompt.
"""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
import sys
from pathlib import Path
from typing import Any

import structlog

from comfyui import jsonio

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def configure_logging(level: str = "INFO", output: str = "console") -> None:
    """Send every line to stderr (`output` is ``console`` or ``json``) or, as JSON, to the file that it names.

    Raises:
        OSError: the file cannot be written.
    """
    handler: logging.StreamHandler[Any] = logging.StreamHandler(sys.stderr)
    if output == "console":
        # Plain tracebacks: rich ones take seconds, in the event loop.
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=26, exception_formatter=structlog.dev.plain_traceback
        )
        renderer: list[Any] = [console]
    else:
        if output != "json":
            path = Path(output)
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
        # By default, it writes the variables of every frame, with the keys and prompts in them.
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderer = [structlog.processors.ExceptionRenderer(tracebacks), _as_json]
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    # On DEBUG, libraries log what passes through them: answers with links that open without a key, headers.
    theirs = "INFO" if level == "DEBUG" else level
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"default": {"()": lambda: handler}},
            "root": {"handlers": ["default"], "level": theirs},
            "loggers": {
                # Our own access line has the request id and the duration; uvicorn's would repeat it.
                "uvicorn.access": {"level": "CRITICAL"},
                "uvicorn.error": {"level": theirs},
                # `RequestContext` asks this logger whether lines that matter only on DEBUG are wanted.
                "access": {"level": level},
                "asyncio": {"level": "WARNING"},
                # It logs two lines for each request, and its warnings have callers' texts.
                "mcp": {"level": "ERROR"},
            },
        }
    )
    structlog.configure(
        processors=[*_SHARED, *renderer],
        logger_factory=lambda name="": _Logger(name, handler),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )


# For lines that are not plain ASCII JSON: it escapes the rest, because a terminal obeys some of it, and takes 4 us
# more.
_escaped = structlog.processors.JSONRenderer(separators=(",", ":"))


def _as_json(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
    try:
        line = jsonio.dumps(event)
    except TypeError:
        line = b""
    return line.decode() if line and line.isascii() else str(_escaped(logger, method, event))


class _Line(logging.LogRecord):
    """A line that is already rendered. The other members of a record are not read, and take longer to make than the
    line.
    """

    def __init__(self, text: str) -> None:
        self.msg = text
        self.args = None


class _Logger:
    """structlog calls this with a line, by the name of its level; `add_logger_name` reads `name`."""

    def __init__(self, name: str, handler: logging.Handler) -> None:
        self.name = name
        self._handler = handler

    def info(self, text: str) -> None:
        self._handler.handle(_Line(text))

    debug = warning = error = critical = info


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Formats our lines and the records of libraries."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if isinstance(record, _Line) else super().format(record)
