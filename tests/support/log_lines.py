"""Lines of the log, as structlog captures them."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

Lines = list[MutableMapping[str, Any]]
