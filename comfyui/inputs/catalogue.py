"""`Catalogue`: files that clients uploaded, by whose they are and the name that ComfyUI would know them by.

Behind several servers, an upload is first on none of them: its bytes are in the store of inputs, and go to a server
when a prompt that names them goes there. Each key of role `user` has its own names; all callers who see everything
share the names of the key "". The names are in memory and in the journal.
"""

from __future__ import annotations

import asyncio
import posixpath
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from weakref import WeakValueDictionary

import structlog

from comfyui.inputs.content import Content
from comfyui.inputs.plan import Upload, path_in
from comfyui.inputs.store import InputStore
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.writes import DropUploads, KeepUpload, KeptUpload, UseUpload
from comfyui.owners import OwnerRules, confined_to
from comfyui.workflows.api_format import LONGEST_PATH

SHARED = ""
"""The key of those who see everything."""
TYPES = ("input", "output", "temp")
# Limits of a name, in bytes of UTF-8 (as disks count), and of a whole folder, in characters.
_LONGEST_NAME, _LONGEST_FOLDER = 255, 1024
_LONGEST_ENDING = 32
# Control characters, and halves of letters that no file system takes.
_NEVER = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# How often the last use of a file is recorded.
_USED_EVERY_S = 3600.0

_log = structlog.get_logger(__name__)

Clock = Callable[[], float]
TakenElsewhere = Callable[[str], Awaitable[str | None]]
"""The SHA-256 of a server's file with a name that was never uploaded; None if there is none."""


@dataclass(frozen=True, slots=True)
class NewName:
    """The name under which a client asks to store a file, as ComfyUI reads it.

    Attributes:
        key: its owner; see `KeptUpload`.
        type: of ComfyUI's folder: ``input``, ``output`` or ``temp``.
        overwrite: whether it replaces the present file of that name.
    """

    key: str
    type: str
    subfolder: str
    filename: str
    overwrite: bool = False

    @property
    def is_shared(self) -> bool:
        return self.key == SHARED

    def place(self, filename: str) -> str:
        return place_at(self.type, posixpath.join(self.subfolder, filename))


class Catalogue:
    """Call `open` before it is used, and after the store and the journal are open; these belong to their creator.

    Args:
        owners: know whose names a job may use; None: all names are shared.
    """

    def __init__(
        self, journal: Journal, store: InputStore, owners: OwnerRules | None = None, *, clock: Clock = time.time
    ) -> None:
        self._journal = journal
        self._store = store
        self._owners = owners
        self._clock = clock
        # Ordered by the last use, the oldest first.
        self._kept: OrderedDict[tuple[str, str], KeptUpload] = OrderedDict()
        self._naming: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()

    async def open(self) -> None:
        """Reads the names. Names whose bytes are gone are forgotten. Raises `JournalError`."""
        gone = []
        for kept in await self._journal.uploads():
            if self._store.has(kept.digest):
                self._kept[kept.key, kept.place] = kept
            else:
                gone.append((kept.key, kept.place))
        if gone:
            _log.warning("uploads.gone", files=len(gone), detail="their content is no longer in the folder of inputs")
            await self._journal.write(DropUploads(tuple(gone)))

    # Questions

    def key_of(self, owner: str | None) -> str:
        """The key whose names a job of this owner may use."""
        return confined_to(owner, self._owners) or SHARED

    def find(self, key: str, place: str) -> KeptUpload | None:
        """The file of this name: see `place_at`. Below ``keys/<name>/`` of the input folder are those of that key."""
        if not self._kept:
            return None
        found = self._kept.get((key, place))
        if found is None and place.startswith("input/keys/"):
            owner, _, path = place.removeprefix("input/keys/").partition("/")
            if key in {SHARED, owner} and path:
                found = self._kept.get((owner, place_at("input", path)))
        return found

    def named_in(
        self, prompt: Mapping[str, Any], owner: str | None, brought: Collection[str] = ()
    ) -> Mapping[str, KeptUpload]:
        """The files that texts in a workflow's inputs may mean, by `path_in` of the text.

        `brought`: names that refer to files that come with the workflow.
        """
        if not self._kept:
            return {}
        found = {path_in(text): kept for text, kept in self._texts_in(prompt, owner)}
        for kept in found.values():
            self._use(kept)
        return {text: kept for text, kept in found.items() if text not in brought} if found else found

    def texts_in(self, prompt: Mapping[str, Any], owner: str | None) -> set[str]:
        """The texts themselves."""
        return {text for text, _ in self._texts_in(prompt, owner)} if self._kept else set()

    def _texts_in(self, prompt: Mapping[str, Any], owner: str | None) -> Iterator[tuple[str, KeptUpload]]:
        key = self.key_of(owner)
        for node in prompt.values():
            for value in node["inputs"].values():
                if isinstance(value, str) and 0 < len(value) <= LONGEST_PATH:
                    kept = self.find(key, _place_of(path_in(value)))
                    if kept is not None:
                        yield value, kept

    def names(self, key: str, folder_type: str = "input") -> list[str]:
        """Subfolder and name of each file of a key, the newest first."""
        start = f"{folder_type}/"
        mine = [kept for kept in self._kept.values() if kept.key == key and kept.place.startswith(start)]
        return [kept.place.removeprefix(start) for kept in sorted(mine, key=lambda kept: kept.at, reverse=True)]

    def digests(self) -> set[str]:
        """The hashes of all files."""
        return {kept.digest for kept in self._kept.values()}

    def oldest(self) -> Iterator[KeptUpload]:
        """The uploads that may be removed first: those of the key with the most bytes, by their last use."""
        sizes: dict[str, int] = {}
        for kept in self._kept.values():
            sizes[kept.key] = sizes.get(kept.key, 0) + kept.size
        lines = {key: iter([kept for kept in self._kept.values() if kept.key == key]) for key in sizes}
        while lines:
            key = max(lines, key=lambda name: sizes[name])
            first = next(lines[key], None)
            if first is None:
                del lines[key]
            else:
                sizes[key] -= first.size
                yield first

    @contextmanager
    def held(self, found: Collection[KeptUpload]) -> Iterator[None]:
        """The bytes of these files stay until the block ends."""
        digests = [kept.digest for kept in found]
        self._store.hold(digests)
        try:
            yield
        finally:
            self._store.let_go(digests)

    def content_of(self, kept: KeptUpload) -> Content:
        """The bytes, to be read while they are held."""
        return self._store.kept(kept.digest, PurePosixPath(kept.place).suffix)

    @asynccontextmanager
    async def opened(self, kept: KeptUpload) -> AsyncIterator[Content]:
        """The bytes, held until the block ends."""
        with self.held([kept]):
            yield self.content_of(kept)

    def to_place(self, found: Mapping[str, KeptUpload]) -> dict[str, Upload]:
        """The same files for `InputStager.stage`."""
        return {
            text: Upload(self.content_of(kept), path, plain=kept.key == SHARED and folder_type == "input")
            for text, kept in found.items()
            for folder_type, _, path in [kept.place.partition("/")]
        }

    # Changes

    async def add(self, wanted: NewName, content: Content, elsewhere: TakenElsewhere, *, like: str = "") -> str:
        """Keeps a file; the name that it has got, by ComfyUI's rule. It is in the journal when this returns.

        Args:
            content: is in the store, and held there.
            elsewhere: is asked of names that are not here.
            like: the SHA-256 with which a file of the same name counts as the same one; that of the content by default.

        Raises:
            JournalError: it cannot be kept.
        """
        scope = (wanted.key, wanted.type, wanted.subfolder)
        lock = self._naming.setdefault(scope, asyncio.Lock())
        async with lock:
            filename, kept = wanted.filename, None
            if not wanted.overwrite:
                filename, kept = await self._free_name(wanted, like or content.digest, elsewhere)
            if kept is not None:
                self._use(kept)
                return filename
            place, now = wanted.place(filename), self._clock()
            kept = KeptUpload(wanted.key, place, content.digest, content.size, now, now)
            await self._journal.write(KeepUpload(kept))
            self._kept[kept.key, kept.place] = kept
            self._kept.move_to_end((kept.key, kept.place))
            return filename

    async def _free_name(
        self, wanted: NewName, digest: str, elsewhere: TakenElsewhere
    ) -> tuple[str, KeptUpload | None]:
        """The first free name, or one with the same bytes, together with its upload."""
        filename, number = wanted.filename, 1
        while True:
            place = wanted.place(filename)
            kept = self._kept.get((wanted.key, place))
            if kept is not None and kept.digest == digest:
                return filename, kept
            if kept is None and await elsewhere(place) in {None, digest}:
                return filename, None
            filename = numbered(wanted.filename, number)
            number += 1

    async def drop(self, gone: Collection[KeptUpload]) -> None:
        """Forgets these names. Raises `JournalError`."""
        names = tuple((kept.key, kept.place) for kept in gone)
        await self._journal.write(DropUploads(names))
        for name in names:
            self._kept.pop(name, None)

    def _use(self, kept: KeptUpload) -> None:
        name, now = (kept.key, kept.place), self._clock()
        if self._kept.get(name) is not kept:
            return
        self._kept.move_to_end(name)
        if now - kept.used_at >= _USED_EVERY_S:
            self._kept[name] = kept._replace(used_at=now)
            self._journal.write_behind(UseUpload(*name, now), soon=False)


def numbered(filename: str, number: int) -> str:
    """The name as ComfyUI numbers it if it is taken, such as ``a (1).png``; a name that would be too long is cut."""
    stem, ending = posixpath.splitext(filename)
    if len(ending) > _LONGEST_ENDING:
        stem, ending = filename, ""
    while len(f"{posixpath.basename(stem)} ({number}){ending}".encode(errors="replace")) > _LONGEST_NAME:
        stem = stem[:-1]
    return f"{stem} ({number}){ending}"


def place_at(folder_type: str, path: str) -> str:
    """How the catalogue names a file of one of ComfyUI's folders. Raises ValueError for one that is not below it."""
    plain = posixpath.normpath(path.replace("\\", "/"))
    if not path or plain in {".", ".."} or plain.startswith(("/", "../")) or _NEVER.search(plain):
        raise ValueError("not below ComfyUI's folder")
    return f"{folder_type}/{plain}"


def _place_of(text: str) -> str:
    """The file that a loader takes the text for: one of the input folder, unless it names another. "" for no file."""
    folder_type = next((name for name in TYPES if text.endswith(f" [{name}]")), "")
    try:
        return place_at(folder_type or "input", text.removesuffix(f" [{folder_type}]"))
    except ValueError:
        return ""


def check_name(wanted: NewName) -> None:
    """Raise ValueError for a name or a folder that no file can have."""
    if wanted.type not in TYPES:
        raise ValueError("type must be input, output or temp")
    parts = posixpath.join(wanted.subfolder, wanted.filename).replace("\\", "/").split("/")
    is_long = any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in parts)
    if not wanted.filename or is_long or len(wanted.subfolder) > _LONGEST_FOLDER:
        raise ValueError(
            f"image and subfolder must have names of at most {_LONGEST_NAME} bytes, and subfolder at most"
            f" {_LONGEST_FOLDER} characters"
        )
    if wanted.filename.replace("\\", "/").endswith("/"):
        raise ValueError("image must be the name of a file")
    try:
        wanted.place(wanted.filename)
    except ValueError:
        raise ValueError("image must be a file name, and subfolder a folder below ComfyUI's own") from None
