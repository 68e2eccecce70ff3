"""KEYS_FILE: keys with names, roles and limits, in TOML. It is read again when it changes.

A file that cannot be used stops the start; later the last good one stays, and the log and ``/health/ready`` say why.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from comfyui import jsonio
from comfyui.exceptions import SettingsError
from comfyui.jobs.webhooks.signing import key_of
from comfyui.owners import HIGHEST_PRIORITY, KeyRules, is_given_name
from comfyui.tasks import SideTasks
from comfyui.web.front.errors import describe_validation
from comfyui.web.front.keys import KeyRing, NamedKey

_log = structlog.get_logger("gateway")

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""The form of a key's name. It occurs in logs and metrics, and in file names that every file system tells apart."""
NAME_IS = "a key's name must be 1 to 64 lower-case letters, digits, - and _, and must begin with a letter or digit"
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_NO_PERSON_IN = frozenset({"authorization", "cookie", "x-api-key", "host", "origin"})
_MAX_BYTES = 4_000_000
_LOOK_S = 1.0
_SECRET_BYTES = 32

Count = Annotated[int, Field(ge=1, le=1_000_000)]


class KeyTable(BaseModel):
    """One table ``[keys.NAME]``."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    sha256: str
    old_sha256: str | None = None
    role: Literal["user", "read", "admin"]
    webhook_secret: Annotated[str, Field(min_length=16, max_length=512)] | None = None
    max_queued: Count | None = None
    per_minute: Annotated[int, Field(ge=1, le=60_000)] | None = None
    max_running: Count | None = None
    max_priority: Annotated[int, Field(ge=-HIGHEST_PRIORITY, le=HIGHEST_PRIORITY)] | None = None
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    user_header: str | None = None
    workflows: list[Annotated[str, Field(min_length=1, max_length=256)]] | None = None

    @field_validator("sha256", "old_sha256")
    @classmethod
    def _of_a_key(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _SHA256.fullmatch(value):
            raise ValueError(f"must be 64 hex digits, as sha256sum prints them; it has {len(value)} characters")
        if value.lower() == _EMPTY_SHA256:
            raise ValueError("must not be the SHA-256 of an empty key")
        return value.lower()

    @field_validator("webhook_secret")
    @classmethod
    def _for_receivers(cls, value: str | None) -> str | None:
        if value is not None:
            key_of(value)
        return value

    @field_validator("user_header")
    @classmethod
    def _not_a_key_s(cls, value: str | None) -> str | None:
        if value is not None and not _HEADER.fullmatch(value):
            raise ValueError("must be the name of a header, such as X-User: 1 to 64 letters, digits and -")
        if value is not None and value.lower() in _NO_PERSON_IN:
            raise ValueError("must not be a header with another meaning; use one of your own, such as X-User")
        return value

    def named(self, name: str) -> NamedKey:
        """The key of this table. A user's may not go before others, unless its table says so."""
        highest = 0 if self.role == "user" else HIGHEST_PRIORITY
        rules = KeyRules(
            name=name,
            role=self.role,
            webhook_secret=self.webhook_secret,
            max_queued=self.max_queued,
            per_minute=self.per_minute,
            max_running=self.max_running,
            max_priority=highest if self.max_priority is None else self.max_priority,
            weight=self.weight,
            user_header=None if self.user_header is None else self.user_header.lower(),
            workflows=None if self.workflows is None else frozenset(self.workflows),
        )
        old = None if self.old_sha256 is None else bytes.fromhex(self.old_sha256)
        return NamedKey(bytes.fromhex(self.sha256), rules, old)


def parse_keys(text: str) -> list[NamedKey]:
    """The keys of a file.

    Raises:
        ValueError: with the line, the key and the field that cannot be used. No value stands in it.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the file is not TOML: {error}") from None
    if unknown := [name for name in tables if name != "keys"]:
        raise ValueError(f"{_line(text, unknown[0])}{unknown[0]!r} is unknown; each key must be a table [keys.NAME]")
    keys = tables.get("keys", {})
    if not isinstance(keys, dict):
        raise ValueError(f"{_line(text, 'keys')}keys must consist of tables [keys.NAME]")
    parsed: list[NamedKey] = []
    owners: dict[bytes, str] = {}
    for name, table in keys.items():
        key = _key(text, name, table)
        for digest, field in zip(key.digests, ("sha256", "old_sha256"), strict=False):
            if (other := owners.get(digest)) is not None:
                raise ValueError(f"{_line(text, name, field)}[keys.{name}] has the same {field} as [keys.{other}]")
            owners[digest] = name
        parsed.append(key)
    return parsed


def _key(text: str, name: str, table: Any) -> NamedKey:
    shown = name if NAME.fullmatch(name) else repr(name[:64])
    if not NAME.fullmatch(name):
        raise ValueError(f"{_line(text, name)}[keys.{shown}]: {NAME_IS}")
    if is_given_name(name):
        raise ValueError(
            f"{_line(text, name)}[keys.{shown}]: the gateway reserves this name for itself; choose another one"
        )
    if not isinstance(table, dict):
        raise ValueError(f"{_line(text, name)}keys.{shown} must be a table [keys.{shown}]")
    try:
        return KeyTable.model_validate(table).named(name)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        field = str(problems[0]["loc"][0]) if problems[0]["loc"] else ""
        raise ValueError(f"{_line(text, name, field)}[keys.{shown}] {describe_validation(problems)}") from None


def _line(text: str, name: str, field: str = "") -> str:
    """The place at which a table, or a field of it, begins: ``line 7: ``. "" if it is written in an unusual way."""
    quoted = re.escape(name)
    table = re.compile(rf"\s*\[\s*(?:keys\s*\.\s*)?[\"']?{quoted}[\"']?\s*\]|\s*{quoted}\s*=")
    begun = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not begun and table.match(line):
            begun = number
            if not field:
                break
        elif begun and line.lstrip().startswith("["):
            break
        elif begun and re.match(rf"\s*[\"']?{re.escape(field)}[\"']?\s*=", line):
            return f"line {number}: "
    return f"line {begun}: " if begun else ""


class KnownNames:
    """The names that KEYS_FILE has had, in the file at `path`; None: in memory.

    A name that was taken out keeps its jobs and files. It comes back with the key that it had; with another key it
    would be another customer's, so that is refused.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._held: dict[str, dict[str, Any]] = {}

    def read(self) -> dict[str, dict[str, Any]]:
        """By name: the hash of the key that it has or had, and whether it was removed. Raises OSError, ValueError."""
        if self._path is None:
            return self._held
        try:
            known = jsonio.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        if not isinstance(known, dict):
            raise ValueError(f"STATE_DIR: the file {self._path.name} is not in the gateway's format")
        return known

    def take_over(self, keys: Sequence[NamedKey]) -> None:
        """These are the names from now on. Raises OSError, and ValueError for a name that was another key's."""
        known = self.read()
        present = {key.rules.name: key.digest.hex() for key in keys}
        check_names(known, present)
        newer = {name: {**entry, "removed": True} for name, entry in known.items()}
        newer |= {name: {"sha256": digest, "removed": False} for name, digest in present.items()}
        if self._path is None:
            self._held = newer
        elif newer != known:
            written = self._path.with_suffix(".new")
            write_private(written, jsonio.dumps(newer))
            written.replace(self._path)


def check_names(known: Mapping[str, Mapping[str, Any]], present: Mapping[str, str]) -> None:
    """Raise ValueError for a name of `present` (name to hash) that was taken out with another key."""
    for name, digest in present.items():
        before = known.get(name)
        if before is not None and before.get("removed") and before.get("sha256") != digest:
            raise ValueError(
                f"[keys.{name}]: a key that was removed had this name, and its jobs and files are still"
                " stored under it. Choose another name"
            )


def write_private(path: Path, content: bytes) -> None:
    """A file that only this user may read, also while it is written."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)


def signing_secret(state_dir: Path | None) -> bytes | None:
    """The secret of `KeyRing`, the same after a restart; None without a STATE_DIR. Raises `SettingsError`."""
    if state_dir is None:
        return None
    path = state_dir / "sessions.secret"
    try:
        if not path.exists():
            write_private(path, secrets.token_bytes(_SECRET_BYTES))
        found = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"STATE_DIR: the file {path.name} cannot be read or written: {error.strerror}") from error
    if len(found) < _SECRET_BYTES:
        raise SettingsError(f"STATE_DIR: the file {path.name} is too short; remove it, and the gateway makes a new one")
    return found


def names_file(state_dir: Path | None) -> Path | None:
    """The file of `KnownNames`."""
    return None if state_dir is None else state_dir / "key-names.json"


class KeysFile:
    """The file at `path`. `state_dir` keeps the names over restarts; None: only while the process runs."""

    def __init__(self, path: Path, state_dir: Path | None) -> None:
        self.path = path
        self._names = KnownNames(names_file(state_dir))
        self._seen: tuple[int, ...] | None = None
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """The reason for which the present file is not in use; None if it is."""
        return self._problem

    def load(self) -> list[NamedKey]:
        """The keys in the file. Raises ValueError, with the reason for people, if it cannot be used."""
        self._seen = self._signature()
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise ValueError(f"the file cannot be read: {error.strerror}") from None
        if len(content) > _MAX_BYTES:
            raise ValueError(f"the file must not be larger than {_MAX_BYTES / 1e6:g} MB")
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise ValueError("the file must be text in UTF-8") from None
        return parse_keys(text)

    def remember(self, keys: Sequence[NamedKey]) -> None:
        """These keys are in use from now on. Raises ValueError, as `load`, for a name that was another key's."""
        try:
            self._names.take_over(keys)
        except OSError as error:
            raise ValueError(f"STATE_DIR: the names of the keys cannot be stored: {error.strerror}") from None

    @asynccontextmanager
    async def following(self, ring: KeyRing) -> AsyncIterator[None]:
        """While open, `ring` has the keys of the file."""

        async def follow() -> None:
            while True:
                await asyncio.sleep(_LOOK_S)
                if await asyncio.to_thread(self._has_changed):
                    await self._take_over(ring)

        async with SideTasks() as tasks:
            tasks.start(follow(), "keys file")
            yield

    async def _take_over(self, ring: KeyRing) -> None:
        try:
            keys = await asyncio.to_thread(self.load)
            ring.check_named(keys)
            await asyncio.to_thread(self.remember, keys)
            ring.set_named(keys)
        except ValueError as error:
            self._problem = f"KEYS_FILE was changed but cannot be used, so the earlier keys stay in force: {error}"
            _log.error("keys.not_reloaded", path=str(self.path), reason=str(error))
        else:
            self._problem = None
            _log.info("keys.reloaded", keys=len(keys))

    def _has_changed(self) -> bool:
        return self._signature() != self._seen

    def _signature(self) -> tuple[int, ...] | None:
        """Differs after each change, also where another file was renamed to this name."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
