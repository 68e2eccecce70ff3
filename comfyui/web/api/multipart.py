"""multipart/form-data: text fields in memory, files on disk, each with its cap, at the speed at which they come."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from blake3 import blake3
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from comfyui.exceptions import ComfyUIInputError, RequestError
from comfyui.inputs.content import SpooledFiles, temporary_file_errors, too_large
from comfyui.limits import over
from comfyui.offload import finished_in_thread
from comfyui.transport.form_names import parse_disposition, settle

# Fields whose content is text even if a client sends it as a file: `curl -F workflow=@workflow.json`.
WORKFLOW_FIELDS = ("workflow", "prompt")
_WRITE_AT_ONCE = 1 << 20
# The parser gets so much at once, and goes on for so long in one turn of the event loop: a part that consists of what
# looks like the boundary takes it 60 ms for each read of 256 KB.
_PIECE = 8 * 1024
_TURN_S = 0.002
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}$")
_NO_LISTS: Mapping[str, list[bytes]] = {}


@dataclass(frozen=True, slots=True)
class FormLimits:
    """Limits in bytes: of one file, and of all text fields together. `hold` is called with texts as they arrive, and
    may raise.

    `max_parts` is how many fields and files the form may have.

    Attributes:
        lists: of texts that may come several times, by the name of their field: each is added to its list.
        with_blake3: each file is hashed by BLAKE3, too.
        text_fields: fields whose content is text even if a client sends it as a file.
    """

    max_file_bytes: int
    max_text_bytes: int
    hold: Callable[[int], None]
    max_parts: int = 1000
    lists: Mapping[str, list[bytes]] = field(default_factory=lambda: _NO_LISTS)
    with_blake3: bool = False
    text_fields: Collection[str] = WORKFLOW_FIELDS


@dataclass(slots=True)
class _Part:
    """One part while it arrives; `file` gets its bytes, None for a text.

    Attributes:
        is_text: its content is kept as a text, though it may have the name of a file.
        filenames: the possible names of the file: see `Disposition`; none for a text.
    """

    name: str = ""
    filenames: tuple[str, ...] = ()
    is_text: bool = True
    header: bytearray = field(default_factory=bytearray)
    headers: dict[bytes, bytes] = field(default_factory=dict)
    pending: bytearray = field(default_factory=bytearray)
    size: int = 0
    ended: bool = False
    path: Path | None = None
    """The path of the file, once it has been begun."""
    file: IO[bytes] | None = None
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    blake3: blake3 | None = None

    @property
    def is_no_choice(self) -> bool:
        """A file field in which nothing was chosen, as browsers send it."""
        return self.filenames == ("",) and self.ended and not self.size


async def read_form(
    chunks: AsyncIterator[bytes], content_type: str, limits: FormLimits
) -> tuple[dict[str, bytes | bytearray], FormFiles | None]:
    """The unchanged text fields, and the files; None if there is no file.

    A form without files touches no disk, and a form that fails leaves nothing there.

    Raises:
        RequestError: not a form, the same field or file name twice, too much text.
        ComfyUIInputError: a file is too large.
        ComfyUIDiskError: a file cannot be kept.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise RequestError("Content-Type must be multipart/form-data for a form")
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError("Content-Type must have the boundary of the form (multipart/form-data)")
    try:
        form = _Form(boundary, limits)
    except FormParserError as error:
        raise RequestError(f"the boundary of the form cannot be used: {error}") from None
    try:
        async for chunk in chunks:
            await form.feed(chunk)
        form.finish()
    except BaseException as error:
        await finished_in_thread(form.remove)
        if isinstance(error, FormParserError):
            raise RequestError(f"the body is not multipart/form-data: {error}") from None
        raise
    # Nothing is awaited between here and the caller, so no cancellation can leave the files without an owner.
    return form.texts, form.files


class FormFiles:
    """The files of a form before they have their names: their owner calls `named`, or `remove`."""

    def __init__(self, folder: Path, parts: Sequence[_Part]) -> None:
        self._folder = folder
        self._parts = parts

    @property
    def fields(self) -> list[str]:
        """The name of each file's field, in their order."""
        return [part.name for part in self._parts]

    @property
    def blake3s(self) -> list[str]:
        """BLAKE3 of each file in hex, if the form was read with it."""
        return [part.blake3.hexdigest() for part in self._parts if part.blake3 is not None]

    @property
    def endings(self) -> list[str]:
        """The ending of each file's own name, with its dot, in lower case; "" if it is not a plain ending."""
        found = (_ENDING.search(part.filenames[0]) for part in self._parts)
        return ["" if ending is None else ending[0].lower() for ending in found]

    @property
    def sha256s(self) -> list[str]:
        """SHA-256 of each file in hex."""
        return [part.digest.hexdigest() for part in self._parts]

    def named_as(self, names: Sequence[str]) -> SpooledFiles:
        """The files by these names, one for each in order; no one holds them yet."""
        paths = {name: part.path for name, part in zip(names, self._parts, strict=True) if part.path}
        return SpooledFiles(self._folder, paths, dict(zip(names, self.sha256s, strict=True)))

    def named(self, references: Collection[str]) -> SpooledFiles:
        """Each file by the workflow's name for it; no one holds them yet.

        Args:
            references: the texts of the workflow's inputs: see `settle`.

        Raises:
            RequestError: two files have one name.
        """
        files: dict[str, _Part] = {}
        for name, part in zip(settle([part.filenames for part in self._parts], references), self._parts, strict=True):
            if name in files:
                raise RequestError(f"{part.name}: two files have the name {name!r}; rename one")
            files[name] = part
        digests = {name: part.digest.hexdigest() for name, part in files.items()}
        return SpooledFiles(self._folder, {name: part.path for name, part in files.items() if part.path}, digests)

    async def remove(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder, True)


class _Form:
    """The parser's callbacks only note what came; what takes time is done after each chunk, off the event loop."""

    def __init__(self, boundary: bytes, limits: FormLimits) -> None:
        self.texts: dict[str, bytes | bytearray] = {}
        self._files: list[_Part] = []
        self._folder: Path | None = None
        self._limits = limits
        self._part = _Part()
        self._touched: list[_Part] = []
        self._count = 0
        self._text_bytes = 0
        self._header_name = bytearray()
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begun,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ended,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._ended,
                "on_end": self._form_ended,
            },
        )

    async def feed(self, chunk: bytes) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + _TURN_S
        for start in range(0, len(chunk), _PIECE):
            self._parser.write(chunk[start : start + _PIECE])
            if loop.time() > end:
                await asyncio.sleep(0)
                end = loop.time() + _TURN_S
        touched, self._touched = self._touched, []
        for part in touched:
            await self._absorb(part)

    def finish(self) -> None:
        self._parser.finalize()
        if not self._complete:
            raise RequestError("the body is not multipart/form-data: it ends before its last boundary")

    @property
    def files(self) -> FormFiles | None:
        """The files of a finished form, all closed. None if there is none."""
        return FormFiles(self._folder, self._files) if self._folder is not None else None

    def remove(self) -> None:
        """Closes all files and removes them. Blocks."""
        for part in self._files:
            if part.file is not None:
                part.file.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _absorb(self, part: _Part) -> None:
        """Take what came of a part: a text is kept, a file's bytes go to disk."""
        if part.is_text:
            if part.ended:
                self._keep_text(part)
            return
        if part.is_no_choice:
            return
        if not self._files or self._files[-1] is not part:
            self._new_file(part)
        if part.size > self._limits.max_file_bytes:
            raise ComfyUIInputError(f"files[{part.filenames[0]!r}]: {too_large(self._limits.max_file_bytes).detail}")
        if part.ended or len(part.pending) >= _WRITE_AT_ONCE:
            block, part.pending = bytes(part.pending), bytearray()
            with temporary_file_errors():
                await finished_in_thread(functools.partial(self._write, part, block))

    def _new_file(self, part: _Part) -> None:
        if not part.filenames[0]:
            raise RequestError(f"{part.name}: the file must have a file name, by which the workflow refers to it")
        if self._limits.with_blake3:
            part.blake3 = blake3()
        self._files.append(part)

    def _keep_text(self, part: _Part) -> None:
        if (several := self._limits.lists.get(part.name)) is not None:
            several.append(bytes(part.pending))
            return
        if part.name in self.texts:
            raise RequestError(f"{part.name} must not be given twice")
        self.texts[part.name] = part.pending

    def _write(self, part: _Part, block: bytes) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="comfyui-form-"))
        if part.file is None:
            # Two parts are never written at once, and a file that has ended keeps its path.
            part.path = self._folder / str(sum(known.path is not None for known in self._files))
            part.file = part.path.open("wb")
        part.file.write(block)
        part.digest.update(block)
        if part.blake3 is not None:
            part.blake3.update(block)
        if part.ended:
            part.file.close()

    # Called by the parser

    def _begun(self) -> None:
        self._part = _Part()
        self._count += 1
        if self._count > self._limits.max_parts:
            raise over("the form has more than {limit} parts", self._limits.max_parts)

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def _header_ended(self) -> None:
        self._part.headers[bytes(self._header_name).lower()] = bytes(self._part.header)
        self._header_name, self._part.header = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        said = parse_disposition(self._part.headers.get(b"content-disposition", b""))
        if said.name is None:
            raise RequestError("every part of the form must have a name")
        self._part.name = said.name
        self._part.filenames = said.filenames
        self._part.is_text = not said.filenames or said.name in self._limits.text_fields

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        part.pending += data[start:end]
        part.size += end - start
        if part.is_text:
            self._text_bytes += end - start
            if self._text_bytes > self._limits.max_text_bytes:
                limit = f"{self._limits.max_text_bytes / 1e6:g} MB (MAX_REQUEST_BODY_MB)"
                raise RequestError(f"{part.name}: the texts of the form together are larger than {limit}")
            self._limits.hold(end - start)
        self._touch()

    def _ended(self) -> None:
        self._part.ended = True
        self._touch()

    def _form_ended(self) -> None:
        self._complete = True

    def _touch(self) -> None:
        if not self._touched or self._touched[-1] is not self._part:
            self._touched.append(self._part)
