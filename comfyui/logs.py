"""structlog set up once for us, the standard library and uvicorn: one format for every line.

Whatever is bound with ``structlog.contextvars`` (request_id, prompt_id) stands on every line of that request.
"""

from __future__ import annotations

import logging
import logging.config
import sys
from pathlib import Path
from typing import Any

import structlog

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
    if output == "console":
        handler: dict[str, Any] = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"}
        # Plain tracebacks: rich ones cost seconds, in the event loop.
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=26, exception_formatter=structlog.dev.plain_traceback
        )
        renderer: list[Any] = [console]
    else:
        handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"}
        if output != "json":
            path = Path(output)
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = {"class": "logging.handlers.WatchedFileHandler", "filename": str(path), "encoding": "utf-8"}
        # As it comes, it writes the variables of every frame, with whatever keys and prompts are in them.
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderer = [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "gateway": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": _SHARED,
                    "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
                }
            },
            "handlers": {"default": {**handler, "formatter": "gateway"}},
            "root": {"handlers": ["default"], "level": level},
            "loggers": {
                # Our own access line has the request id and the duration; uvicorn's would say the same again.
                "uvicorn.access": {"level": "CRITICAL"},
                "uvicorn.error": {"level": level},
                "asyncio": {"level": "WARNING"},
            },
        }
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
