"""The keys of gateways that ask for some."""

from __future__ import annotations

KEY, OTHER_KEY = "correct-horse-battery", "second-key"
