"""Reads a call of OpenAI's image API: the body of a generation or an edit, as JSON or as a form."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from starlette.requests import Request

from comfyui import jsonio
from comfyui.exceptions import ImageCallError, RequestError
from comfyui.inputs.content import SpooledFiles
from comfyui.limits import Limits
from comfyui.models import ImageConversion, ImageFormat
from comfyui.named_call import file_name
from comfyui.offload import offloaded
from comfyui.web.api.bodies import json_object
from comfyui.web.api.multipart import FormLimits, read_form
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.middleware import is_form
from comfyui.web.front.request_state import state_of

ResponseFormat = Literal["url", "b64_json"]
MOST_IMAGES: Final = 10
_FORMATS: Final[Mapping[str, ImageFormat]] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
# The fields that have a meaning here; any other field may be a parameter of the workflow.
_READ = frozenset(
    {
        *("model", "prompt", "n", "size", "response_format", "output_format", "output_compression"),
        *("stream", "partial_images", "image", "image[]", "mask", "user", "safety_identifier"),
    }
)
_FILES = ("image", "image[]", "mask")
_IMAGES = ("image", "image[]")
_LONGEST_NAME = 256
_MOST_FIELDS = 100


@dataclass(frozen=True, slots=True)
class ImageCall:
    """One request for pictures.

    Attributes:
        size: width and height in pixels; None if the workflow decides.
        response_format: None if the client does not say: see `answer_format`.
        convert: None if pictures stay as the workflow made them.
        person: the person behind the caller's key; "" if the body does not say.
        images: each a URL, a data URI or base64; None for a file of the form.
        mask: in the form of `images`; "" if there is none.
        further: fields that are not OpenAI's, or that only some of its models have, by name.
        files: of the form; None if there are none.
        image_files: the names in `files` of those of `images` that are files, in their order.
        mask_file: the name in `files` of the mask; None if it is not a file.
        digest: SHA-256 of everything that decides the pictures.
        bytes: of the body, without files of a form.
    """

    model: str | None
    prompt: str | None
    n: int
    size: tuple[int, int] | None
    response_format: ResponseFormat | None
    convert: ImageConversion | None
    stream: bool
    partial_images: int
    person: str
    images: tuple[str | None, ...]
    mask: str | None
    further: Mapping[str, Any]
    digest: str
    bytes: int
    files: SpooledFiles | None = None
    image_files: tuple[str, ...] = ()
    mask_file: str | None = None

    @property
    def answer_format(self) -> ResponseFormat:
        """The format if the client does not say, as for OpenAI's models: the models of DALL·E gave URLs, all later ones
        bytes.
        """
        if self.response_format is not None:
            return self.response_format
        return "url" if (self.model or "").startswith("dall-e") else "b64_json"


@dataclass(slots=True)
class _Form:
    """A form's fields in the shape of JSON, and its files; `digests`: of each file its field and SHA-256, in order."""

    fields: dict[str, Any]
    files: SpooledFiles | None = None
    images: list[str] = field(default_factory=list)
    mask: str | None = None
    digests: list[tuple[str, str]] = field(default_factory=list)


async def read_call(request: Request) -> ImageCall:
    """The call in the body. No holder has its files yet.

    Raises:
        ImageCallError, RequestError: a field cannot be used; `param` names it.
        ComfyUIInputError: a file of the form is too large.
    """
    options = gateway_of(request).options
    if not is_form(request.scope):
        pieces = [chunk async for chunk in request.stream()]
        size = sum(map(len, pieces))
        return await offloaded(size, _of_json, pieces, size, options.limits)
    limits = FormLimits(
        options.max_input_bytes,
        options.max_body_bytes,
        state_of(request.scope).hold,
        max_parts=options.limits.max_inputs + _MOST_FIELDS,
        lists={name: [] for name in ("image[]",)},
    )
    texts, files = await read_form(request.stream(), request.headers["content-type"], limits)
    try:
        form = _Form({name: _text(name, value) for name, value in texts.items()})
        for value in limits.lists["image[]"]:
            form.fields.setdefault("image[]", []).append(_text("image[]", value))
        if files is not None:
            # The same as for named workflows: each content has its own name, and errors name the field.
            parts = zip(files.fields, files.sha256s, files.endings, strict=True)
            names = [file_name(place.removesuffix("[]"), digest, ending) for place, digest, ending in parts]
            for place, name in zip(files.fields, names, strict=True):
                if place not in _FILES:
                    raise ImageCallError(
                        f"{place} must not be a file; only image, image[] and mask may be files", place
                    )
                if place == "mask":
                    if form.mask is not None:
                        raise ImageCallError("mask must not be given twice", "mask")
                    form.mask = name
                else:
                    form.images.append(name)
            form.files = files.named_as(names)
            form.digests = list(zip(files.fields, files.sha256s, strict=True))
        return _call(form, sum(map(len, texts.values())))
    except BaseException:
        if files is not None:
            await files.remove()
        raise


def _of_json(pieces: list[bytes], size: int, limits: Limits) -> ImageCall:
    return _call(_Form(json_object(b"".join(pieces), "the body", limits, '{"prompt": "…"}')), size)


def _text(name: str, value: bytes | bytearray) -> str:
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ImageCallError(f"{name}: not text in UTF-8", name) from None


def _call(form: _Form, size: int) -> ImageCall:
    fields = {name: value for name, value in form.fields.items() if value is not None}
    if len(fields) > _MOST_FIELDS:
        raise RequestError(f"the body has more than {_MOST_FIELDS} fields")
    images: list[str | None] = [None] * len(form.images)
    for name in _IMAGES:
        given = fields.get(name, [])
        images += [_file_text("image", value) for value in (given if isinstance(given, list) else [given])]
    mask = _file_text("mask", fields["mask"]) if "mask" in fields else ("" if form.mask is None else None)
    quality = _whole(fields, "output_compression", 0, 100, None)
    person = _plain(fields, "safety_identifier") or _plain(fields, "user") or ""
    # The same files in other places are another call: a mask is no picture, and the first picture is not the second.
    asked = jsonio.canonical([form.digests, {name: fields[name] for name in sorted(fields)}])
    return ImageCall(
        model=_plain(fields, "model") or None,
        prompt=_plain(fields, "prompt", longest=None),
        n=_whole(fields, "n", 1, MOST_IMAGES, 1) or 1,
        size=_size(fields),
        response_format=_choice(fields, "response_format", ("url", "b64_json")),
        convert=_conversion(fields, quality),
        stream=_flag(fields, "stream"),
        partial_images=_whole(fields, "partial_images", 0, 3, 0) or 0,
        person=person,
        images=tuple(images),
        mask=mask,
        further={name: value for name, value in fields.items() if name not in _READ},
        digest=hashlib.sha256(asked).hexdigest(),
        bytes=size,
        files=form.files,
        image_files=tuple(form.images),
        mask_file=form.mask,
    )


def _file_text(name: str, value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("image_url"), str):
        value = value["image_url"]
    if not isinstance(value, str) or not value:
        raise ImageCallError(f"{name} must be a URL, a data URI or base64, or a file of a form", name)
    return value


def _plain(fields: Mapping[str, Any], name: str, longest: int | None = _LONGEST_NAME) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or (longest is not None and len(value) > longest):
        most = "" if longest is None else f" of up to {longest} characters"
        raise ImageCallError(f"{name} must be a text{most}", name)
    return value


def _whole(fields: Mapping[str, Any], name: str, low: int, high: int, default: int | None) -> int | None:
    value = fields.get(name, default)
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if value is None and default is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ImageCallError(f"{name} must be a whole number from {low} to {high}", name)
    return value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if value in (True, False):
        return bool(value)
    if value in ("true", "false"):
        return bool(value == "true")
    raise ImageCallError(f"{name} must be true or false", name)


def _choice(fields: Mapping[str, Any], name: str, choices: Sequence[Any]) -> Any:
    value = fields.get(name)
    if value is not None and value not in choices:
        raise ImageCallError(f"{name} must be {' or '.join(choices)}", name)
    return value


def _size(fields: Mapping[str, Any]) -> tuple[int, int] | None:
    text = _plain(fields, "size")
    if text is None or text in ("", "auto"):
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ImageCallError('size must be "auto" or a size such as "1024x1024"', "size")
    return int(match[1]), int(match[2])


def _conversion(fields: Mapping[str, Any], quality: int | None) -> ImageConversion | None:
    name = _choice(fields, "output_format", tuple(_FORMATS))
    return (
        None
        if name is None
        else ImageConversion(format=_FORMATS[name], quality=max(quality, 1) if quality is not None else None)
    )
