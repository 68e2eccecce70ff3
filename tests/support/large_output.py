"""An output that is large enough to measure the memory that it costs."""

from __future__ import annotations

import os

SIZE = int(os.environ.get("OUTPUT_MB", "256")) * 1_000_000
