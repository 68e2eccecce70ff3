"""Sorts paths: the gateway's own, relayed to ComfyUI, or denied. Pure; relayed paths themselves are never changed.

A rule must hold for whatever ComfyUI would make of the path, so it is matched against the path as a server may read it:
percent-decoded as often as it changes, backslashes and doubled slashes folded, dots resolved, without ``/api``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

from comfyui.web.front.short_cache import short_cache

ProxyMode = Literal["full", "api", "off"]

PROBES = frozenset({"/health", "/health/live", "/health/ready", "/api/v2/health"})

# Logs and folder paths reveal the server, and tell an attacker where to look. The web frontend needs only the file
# names that fill the choices of its Load Image (from Outputs) node.
DEFAULT_DENY = (
    "/internal",
    "/internal/*",
    "!/internal/files/output",
    "!/internal/files/input",
    "!/internal/files/temp",
)

# The paths that client libraries call; the web frontend needs more.
_API_MODE = (
    "/prompt",
    "/queue",
    "/history",
    "/history/*",
    "/history_v2",
    "/history_v2/*",
    "/jobs",
    "/jobs/*",
    "/interrupt",
    "/free",
    "/view",
    "/view_metadata/*",
    "/upload/image",
    "/upload/mask",
    "/object_info",
    "/object_info/*",
    "/system_stats",
    "/features",
    "/embeddings",
    "/models",
    "/models/*",
    "/ws",
)
# Label values of metrics: the first part of a path, if it is one of ComfyUI's own.
_ROUTES = frozenset(
    [
        "prompt",
        "queue",
        "history",
        "history_v2",
        "jobs",
        "interrupt",
        "free",
        "view",
        "view_metadata",
        "upload",
        "object_info",
        "system_stats",
        "features",
        "embeddings",
        "models",
        "ws",
        "userdata",
        "users",
        "settings",
        "extensions",
        "i18n",
        "workflow_templates",
        "docs",
        "internal",
        "assets",
        "scripts",
        "templates",
        "experiment",
    ]
)
_MAX_DECODINGS = 5
_SERVERS = "/servers/"


class OwnPaths:
    """The requests that the gateway answers itself, as its routes say; all others are for ComfyUI.

    A path is the gateway's own for every method, and only that path: paths below ``/docs/`` are ComfyUI's. All paths
    below a path with a parameter are the gateway's own.

    Args:
        routes: path and method of every route, the path as the route writes it: ``/prompt_sync/{prompt_id}``.
        shared: paths that ComfyUI has, too, or may have: of these only the methods of `routes` are the gateway's own,
            and nothing that is below them.

    Raises:
        ValueError: a route begins with a parameter, and so has every path.
    """

    def __init__(self, routes: Iterable[tuple[str, str]], shared: Collection[str] = ()) -> None:
        routes = list(routes)
        own = {path for path, _ in routes if path not in shared}
        self._shared_patterns = [(_pattern(path), method) for path, method in routes if path in shared and "{" in path]
        self._exact = frozenset(path for path in own if "{" not in path)
        self._below = tuple({path.partition("{")[0] for path in own if "{" in path})
        if "/" in self._below:
            raise ValueError(f"no path would be left to ComfyUI: {sorted(own)}")
        self._shared = frozenset((path, method) for path, method in routes if path in shared)

    def has(self, method: str, path: str) -> bool:
        if path in self._exact or path.startswith(self._below) or (path, method) in self._shared:
            return True
        return any(own == method and pattern.fullmatch(path) for pattern, own in self._shared_patterns)


def _pattern(route: str) -> re.Pattern[str]:
    """The paths of a route with parameters: ``{name:path}`` is any part of a path, ``{name}`` has no slash."""
    parts = re.split(r"(\{[^}]*\})", route)
    written = (re.escape(part) if part[:1] != "{" else ".+" if part.endswith(":path}") else "[^/]+" for part in parts)
    return re.compile("".join(written))


class ServerPath(NamedTuple):
    """A path of exactly one server: its name, and the path as that server is asked, percent-encoded."""

    name: str
    rest: str


def server_path(raw_path: str) -> ServerPath | None:
    """The meaning of a path below ``/servers/``; None for any other. It must be spelled plainly."""
    if not raw_path.startswith(_SERVERS):
        return None
    name, slash, rest = raw_path.removeprefix(_SERVERS).partition("/")
    return ServerPath(unquote(name, errors="replace"), f"{slash}{rest}")


@short_cache(2048)
def normalised(raw_path: str) -> str | None:
    """The path as a server may read it, without ``/api``; None if it is encoded unreasonably often."""
    path = raw_path
    for _ in range(_MAX_DECODINGS):
        decoded = unquote(path, errors="replace").replace("\\", "/")
        if decoded == path:
            break
        path = decoded
    else:
        return None
    path = posixpath.normpath(re.sub(r"/+", "/", f"/{path}".split("\0", maxsplit=1)[0]))
    while path == "/api" or path.startswith("/api/"):
        path = path.removeprefix("/api") or "/"
    return path


@short_cache(2048)
def route_of(raw_path: str) -> str:
    """A metric's label for a relayed path: from a small fixed set."""
    path = normalised(raw_path) or ""
    first = path[1:].split("/", maxsplit=1)[0]
    if first in _ROUTES:
        return f"/{first}" if path.count("/") == 1 else f"/{first}/*"
    return "/" if path == "/" else "other"


def target_of(scope_path: str, raw_path: bytes | None, query: bytes) -> str:
    """The request target, as it came."""
    path = raw_path.decode("latin-1") if raw_path else quote(scope_path)
    return f"{path}?{query.decode('latin-1')}" if query else path


@dataclass(frozen=True)
class PathRules:
    """The relayed paths. `deny` has patterns with ``*``; one that begins with ``!`` is an exception from the others.

    An exception is for paths that are spelt plainly, with or without ``/api``: tricks find none.
    """

    mode: ProxyMode = "full"
    deny: tuple[str, ...] = DEFAULT_DENY

    @short_cache(2048)
    def verdict(self, raw_path: str) -> Literal["relay", "denied", "not_relayed"]:
        if self.mode == "off":
            return "not_relayed"
        path = normalised(raw_path)
        if path is None:
            return "denied"
        plain = raw_path in {path, f"/api{path}"}
        denied = _matches(path, (pattern for pattern in self.deny if not pattern.startswith("!")))
        excepted = plain and _matches(path, (pattern[1:] for pattern in self.deny if pattern.startswith("!")))
        if denied and not excepted:
            return "denied"
        return "relay" if self.mode == "full" or _matches(path, _API_MODE) else "not_relayed"


def _matches(path: str, patterns: Iterable[str]) -> bool:
    # Windows and some mounts do not tell cases apart.
    folded = path.casefold()
    return any(fnmatchcase(folded, pattern.casefold()) for pattern in patterns)
