"""`Prefer: respond-async, wait=20` (RFC 7240), which may also be in the query."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from comfyui.exceptions import QueryError, RequestError

_RESPOND_ASYNC = "respond-async"
_WAIT = "wait"
# Everything up to the next comma that stands in no quotes.
_MEMBER = re.compile(r'(?:"(?:[^"\\]|\\.)*(?:"|$)|[^",])+')
# A name with an optional value. After a semicolon come parameters; ours have none.
_PREFERENCE = re.compile(
    r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^;"]*?)\s*)?(?:;.*)?""", re.DOTALL
)
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?([eE][0-9]{1,3})?")
_SHOWN = 20
_WRITTEN = f"write '{_RESPOND_ASYNC}', or '{_RESPOND_ASYNC}, {_WAIT}=20'"


@dataclass(frozen=True, slots=True)
class Preferences:
    """The known preferences of a request.

    Attributes:
        respond_async: it does not wait for the end.
        wait_s: so long it waits first.
    """

    respond_async: bool = False
    wait_s: float = 0.0

    @property
    def applied(self) -> str:
        """The value of `Preference-Applied`."""
        return f"{_RESPOND_ASYNC}, {_WAIT}={self.wait_s:g}" if self.wait_s else _RESPOND_ASYNC

    def within(self, timeout_s: float | None) -> Preferences:
        """The same, with a wait of at most this time; None if the request names no time."""
        return self if timeout_s is None or self.wait_s <= timeout_s else replace(self, wait_s=timeout_s)


NO_PREFERENCES = Preferences()


def preferences(header: str | None, query: str | None, longest_s: float) -> Preferences:
    """The preferences in header and query; the header wins if they differ.

    Other preferences in the header are ignored, as the RFC wants it. The query's parameter is ours, so an unknown word
    in it is refused.

    Raises:
        QueryError: the query has a preference that we do not know, or a `wait` alone.
        RequestError: `wait` is no number of seconds, or more than MAX_TIMEOUT.
    """
    if header is None and query is None:
        return NO_PREFERENCES
    in_header = {} if header is None else _read(header)
    in_query = {} if query is None else _read(query)
    found = in_query | in_header
    if query is not None:
        _check_query(in_query, found)
    if found.get(_RESPOND_ASYNC) != "":
        return NO_PREFERENCES
    if _WAIT not in found:
        return Preferences(respond_async=True)
    wait_s = _wait_s("Prefer" if _WAIT in in_header else "prefer", found[_WAIT], longest_s)
    return Preferences(respond_async=True, wait_s=wait_s)


def _check_query(in_query: Mapping[str, str], found: Mapping[str, str]) -> None:
    for name, value in in_query.items():
        if name not in {_RESPOND_ASYNC, _WAIT} or (name == _RESPOND_ASYNC and value):
            raise QueryError(f"prefer: there is no preference {_shown(name, value)}; {_WRITTEN}")
    if _RESPOND_ASYNC not in found:
        raise QueryError(f"prefer: {_RESPOND_ASYNC} is missing; {_WRITTEN}")


def _read(text: str) -> dict[str, str]:
    """Values by lower-case names, "" if there is none. The first one counts if a preference is given twice."""
    found: dict[str, str] = {}
    for member in _MEMBER.findall(text):
        if (preference := _PREFERENCE.fullmatch(member)) is not None:
            name, value = preference.groups(default="")
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            found.setdefault(name.lower(), value)
    return found


def _wait_s(where: str, text: str, longest_s: float) -> float:
    if not _SECONDS.fullmatch(text):
        raise RequestError(f"{where}: {_shown(_WAIT, text)} must be a number of seconds, 0 or more, such as wait=20")
    if (wait_s := float(text)) > longest_s:
        raise RequestError(f"{where}: wait must be at most {longest_s:g} seconds (MAX_TIMEOUT)")
    return wait_s


def _shown(name: str, value: str) -> str:
    shown = f"{name[:_SHOWN]}={value[:_SHOWN]}" if value else name[:_SHOWN]
    return repr(shown)
