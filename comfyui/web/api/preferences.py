"""`Prefer: respond-async, wait=20` (RFC 7240), which may stand in the query as well."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from comfyui.exceptions import RequestError


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a request prefers of what we know; all else is left alone, as the RFC says.

    Attributes:
        respond_async: it does not wait for the end.
        wait_s: so long it waits first.
    """

    respond_async: bool = False
    wait_s: float = 0.0

    @property
    def applied(self) -> str:
        """For `Preference-Applied`."""
        return f"respond-async, wait={self.wait_s:g}" if self.wait_s else "respond-async"


NO_PREFERENCES = Preferences()


def preferences(header: str | None, query: str | None, longest_s: float) -> Preferences:
    """What header and query say together.

    Raises:
        RequestError: `wait` is no number of seconds, or more than MAX_TIMEOUT.
    """
    if header is None and query is None:
        return NO_PREFERENCES
    found: dict[str, str] = {}
    for text in (header or "", query or ""):
        for preference in text.split(","):
            # What stands behind a semicolon are parameters; ours have none.
            name, _, value = preference.partition(";")[0].partition("=")
            # The first one holds where a preference stands twice.
            found.setdefault(name.strip().lower(), value.strip().strip('"'))
    if "respond-async" not in found:
        return NO_PREFERENCES
    return Preferences(respond_async=True, wait_s=_wait_s(found.get("wait", "0"), longest_s))


def _wait_s(text: str, longest_s: float) -> float:
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not isfinite(wait_s) or wait_s < 0:
        raise RequestError(f"Prefer: wait={text[:20]!r} is not a number of seconds")
    if wait_s > longest_s:
        raise RequestError(f"Prefer: wait is at most {longest_s:g} seconds (MAX_TIMEOUT)")
    return wait_s
