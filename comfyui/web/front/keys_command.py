"""``python server.py keys add NAME --role user``: makes a key, writes its table into KEYS_FILE, prints the key once.

``keys rotate NAME`` gives a table a new key, beside which the old one stays valid.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import tomlkit
from tomlkit.exceptions import TOMLKitError

from comfyui.exceptions import SettingsError
from comfyui.owners import Role
from comfyui.web.front.keys_file import NAME, NAME_IS, KnownNames, names_file, parse_keys

_KEY_BYTES = 32
# Fields of a table that the command line may give: how each is read, and what it says.
_NUMBERS: dict[str, tuple[Callable[[str], float], str]] = {
    "max_queued": (int, "jobs of the key that may wait at once; a further one gets 429"),
    "per_minute": (int, "submissions of the key within 60 seconds; a further one gets 429"),
    "max_running": (int, "jobs of the key that run at once; others wait"),
    "max_priority": (int, "highest priority that a submission may ask for (0 for a user)"),
    "weight": (float, "share of the servers when several keys wait (1)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments after ``keys``."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{add,rotate}")
    add = verbs.add_parser(
        "add", help="create a key: add its table to KEYS_FILE, and print the key itself this one time"
    )
    add.add_argument("name", help="1 to 64 lower-case letters, digits, - and _")
    add.add_argument("--role", required=True, choices=get_args(Role), help="docs/keys.md says what each may do")
    for field, (kind, meaning) in _NUMBERS.items():
        add.add_argument(f"--{field.replace('_', '-')}", type=kind, metavar="N", help=meaning)
    more = "a named workflow that the key may run, and no other; may be repeated"
    add.add_argument("--workflow", action="append", dest="workflows", metavar="NAME", help=more)
    rotate = verbs.add_parser(
        "rotate", help="give a key a new value, and print it this one time; the old value stays valid beside it"
    )
    rotate.add_argument("name", help="the name of the key in KEYS_FILE")


def run(arguments: argparse.Namespace, keys_file: Path | None, state_dir: Path | None) -> str:
    """The text to print: the new key. Raises `SettingsError` if none can be made."""
    if keys_file is None:
        raise SettingsError("KEYS_FILE is not set; set it to the file of the keys")
    if arguments.verb == "rotate":
        return rotate_key(keys_file, arguments.name)
    given = {field: getattr(arguments, field) for field in _NUMBERS}
    fields = {"role": arguments.role, **given, "workflows": arguments.workflows}
    return add_key(keys_file, state_dir, arguments.name, fields)


def add_key(path: Path, state_dir: Path | None, name: str, fields: dict[str, Any]) -> str:
    """A new key, whose table with `fields` is now in the file at `path`. Fields that are None are left out.

    Raises:
        SettingsError: the name cannot be used, or the file cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise SettingsError(f"{name[:64]!r}: {NAME_IS}")
    key = secrets.token_urlsafe(_KEY_BYTES)

    def added(text: str) -> str:
        _check(text, name, state_dir)
        return _with_table(text, name, {"sha256": _sha256(key), **fields})

    _edit(path, added)
    return key


def rotate_key(path: Path, name: str) -> str:
    """A new key for the table `name` in the file at `path`. The key that it had stays valid, as `old_sha256`.

    Raises:
        SettingsError: there is no such table, it has an old key already, or the file cannot be read or written.
    """
    key = secrets.token_urlsafe(_KEY_BYTES)

    def rotated(text: str) -> str:
        present = next((one for one in parse_keys(text) if one.rules.name == name), None)
        if present is None:
            raise ValueError(f"there is no key [keys.{name}]; `keys add` makes one")
        if present.old_digest is not None:
            raise ValueError(
                f"[keys.{name}] has an old_sha256, which is still valid; remove this line when its customer uses the"
                " present key, then try again"
            )
        old = present.digest.hex()
        # Not by tomlkit, which would write the new line below the comments that precede the next table.
        after, lines = re.subn(
            rf"""(?im)^([ \t]*)sha256([ \t]*=[ \t]*)["']{old}["'](.*)$""",
            rf'\1sha256\2"{_sha256(key)}"\3\n\1old_sha256 = "{old}"',
            text,
        )
        if not lines:
            raise ValueError(f"[keys.{name}] has no line for its sha256; write sha256 and old_sha256 by hand")
        return after

    _edit(path, rotated)
    return key


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _edit(path: Path, change: Callable[[str], str]) -> None:
    """Replaces the text of KEYS_FILE by what `change` makes of it. Raises `SettingsError`, and leaves the file then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two of these commands at once would each write the file without the other's key.
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            after = change(path.read_text() if path.exists() else "")
            parse_keys(after)
            _write(path, after)
    except OSError as error:
        raise SettingsError(f"KEYS_FILE: {error.strerror}") from error
    except (ValueError, TOMLKitError) as error:
        raise SettingsError(f"KEYS_FILE: {error}") from error


def _check(text: str, name: str, state_dir: Path | None) -> None:
    if any(key.rules.name == name for key in parse_keys(text)):
        raise ValueError(f"[keys.{name}] already exists; choose another name")
    if name in KnownNames(names_file(state_dir)).read():
        raise ValueError(
            f"{name!r} was the name of an earlier key, and its jobs and files are still stored under it. Choose"
            " another name"
        )


def _with_table(text: str, name: str, fields: dict[str, Any]) -> str:
    """The text with one table more; all that stood in it stays, comments too."""
    document = tomlkit.parse(text)
    keys = document.get("keys")
    if keys is None:
        keys = document["keys"] = tomlkit.table(is_super_table=True)
    table = tomlkit.table()
    for field, value in fields.items():
        if value is not None:
            table[field] = value
    keys[name] = table
    written = tomlkit.dumps(document)
    return written if written.endswith("\n") else f"{written}\n"


def _write(path: Path, text: str) -> None:
    """Writes by a rename: a gateway that reads the file meanwhile gets the old one or the new one, never a half of
    it.
    """
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(mode)
    new.replace(path)
