"""How a page of the console is made: a template of `templates/` in the frame that all pages have, and its headers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request, Response

from comfyui.jsonio import without_surrogates
from comfyui.web.console.static_files import static_folder
from comfyui.web.console.texts import TEXTS
from comfyui.web.console.viewer import visitor_of

_FOLDER = Path(__file__).parent / "templates"
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " media-src 'self' blob:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    # Not no-referrer: with that, a form's POST has the Origin "null" and is refused.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""The headers of every page. Only files of ours run or are loaded; no style stands in an attribute."""


def page(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """A whole page. `context` is for the template, beside what `fragment` gives it."""
    return Response(fragment(request, template, **context), status, HEADERS, media_type="text/html; charset=utf-8")


def fragment(request: Request, template: str, **context: Any) -> str:
    """A template as text: HTML in which every value is escaped.

    Templates have `root` (before a path of ours: ``{{ root }}console/queue``), `static` (before a file's name), `t`
    (the texts), `visitor`, and the filters of this module.
    """
    root = root_of(request)
    return render(
        template,
        root=root,
        static=f"{root}{static_folder()}",
        visitor=visitor_of(request),
        **context,
    )


def render(template: str, **context: Any) -> str:
    """A template for no request in particular: the caller gives `root`, `static` and `visitor` where it needs them.

    UTF-8 cannot carry lone surrogates, which a workflow may have: U+FFFD stands in their place.
    """
    return without_surrogates(_environment().get_template(template).render(**context))


def root_of(request: Request) -> str:
    """The relative path from the requested page to the root of the gateway.

    A proxy may serve the gateway below a path of its own without telling it: relative links are right all the same.
    """
    path = (request.scope.get("raw_path") or request.scope["path"].encode()).decode("latin-1")
    return "../" * (path.count("/") - 1) or "./"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals["t"] = TEXTS
    environment.filters |= {"iso": iso, "seconds": seconds, "bytes": size}
    return environment


def iso(at: float) -> str:
    """Unix time in seconds as ``2026-11-29T19:04:12Z``, for ``<time datetime>``."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def seconds(value: float) -> str:
    """A duration for people: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(value: float) -> str:
    """A number of bytes for people: ``512 B``, ``1.4 MB``, ``24 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
