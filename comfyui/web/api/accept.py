"""Reads the ``Accept`` header of a client, and chooses one of our four forms of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastapi import Request

from comfyui.exceptions import NotAcceptableError
from comfyui.web.front.short_cache import short_cache

Form = Literal["json", "events", "raw", "zip"]

MEDIA = ("image/", "video/", "audio/", "model/")
ANY_BYTES = "application/octet-stream"
_FORMS: dict[str, Form] = {
    "*/*": "json",
    "application/*": "json",
    "application/json": "json",
    "text/event-stream": "events",
    "application/zip": "zip",
    ANY_BYTES: "raw",
}
# The end of a refusal.
_OFFERS = ", ".join([*(name for name in _FORMS if "*" not in name), *(f"{kind}*" for kind in MEDIA)])


@dataclass(frozen=True, slots=True)
class Accepted:
    """Media ranges with their weight, the most wanted first."""

    ranges: tuple[tuple[str, float], ...]

    @classmethod
    @short_cache(256)
    def parse(cls, header: str) -> Accepted:
        """RFC 9110's ``Accept``; unreadable parts are skipped. An empty header accepts everything."""
        ranges = []
        for part in header.split(","):
            media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
            if "/" in media_range:
                ranges.append((media_range, _weight(parameters)))
        ranges.sort(key=lambda item: -item[1])
        return cls(tuple(ranges) or (("*/*", 1.0),))

    def forms(self) -> list[Form]:
        """The forms that the client accepts, the most wanted first. Raises `NotAcceptableError` if there is none."""
        refused = {media_range for media_range, weight in self.ranges if not weight}
        found = [_form_of(media_range) for media_range, weight in self.ranges if weight]
        forms = [
            form for form in dict.fromkeys(found) if form and not (form == "json" and "application/json" in refused)
        ]
        if not forms:
            wanted = ", ".join(media_range for media_range, _ in self.ranges)
            raise NotAcceptableError(
                f"Accept: {wanted[:200]} names no form that the gateway can send; it can send {_OFFERS}"
            )
        return forms

    def takes(self, content_type: str) -> bool:
        """Whether the client accepts a file of this type by a range of media types."""
        kind = content_type.partition("/")[0]
        fits = {content_type, f"{kind}/*", ANY_BYTES}
        return any(weight and media_range in fits for media_range, weight in self.ranges)


def accepted_by(request: Request) -> Accepted:
    return Accepted.parse(",".join(request.headers.getlist("accept")))


def _form_of(media_range: str) -> Form | None:
    return "raw" if media_range.startswith(MEDIA) else _FORMS.get(media_range)


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0
