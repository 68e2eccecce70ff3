"""``python server.py keys add NAME --role user``: makes a key, writes its table into KEYS_FILE, prints the key once."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import secrets
from pathlib import Path
from typing import Any, get_args

import tomlkit
from tomlkit.exceptions import TOMLKitError

from comfyui.exceptions import SettingsError
from comfyui.owners import Role
from comfyui.web.front.keys_file import NAME, NAME_IS, KnownNames, names_file, parse_keys

_KEY_BYTES = 32
# Fields of a table that the command line may give, with how each is read.
_NUMBERS = {"max_queued": int, "per_minute": int, "max_running": int, "max_priority": int, "weight": float}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments after ``keys``."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="add")
    add = verbs.add_parser(
        "add", help="create a key: add its table to KEYS_FILE, and print the key itself this one time"
    )
    add.add_argument("name", help=NAME_IS)
    add.add_argument("--role", required=True, choices=get_args(Role))
    for field, kind in _NUMBERS.items():
        add.add_argument(
            f"--{field.replace('_', '-')}", type=kind, help=f"the value of {field} in the key's table (docs/keys.md)"
        )
    more = "a named workflow that the key may run, besides which it may run none; may be repeated"
    add.add_argument("--workflow", action="append", dest="workflows", metavar="NAME", help=more)


def run(arguments: argparse.Namespace, keys_file: Path | None, state_dir: Path | None) -> str:
    """The text to print: the new key. Raises `SettingsError` if none can be made."""
    if keys_file is None:
        raise SettingsError("KEYS_FILE is not set; set it to the file that the key is added to")
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two of these commands at once would each write the file without the other's key.
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = path.read_text() if path.exists() else ""
            _check(before, name, state_dir)
            table = {"sha256": hashlib.sha256(key.encode()).hexdigest(), **fields}
            after = _with_table(before, name, table)
            parse_keys(after)
            _write(path, after)
    except OSError as error:
        raise SettingsError(f"KEYS_FILE: {error.strerror}") from error
    except (ValueError, TOMLKitError) as error:
        raise SettingsError(f"KEYS_FILE: {error}") from error
    return key


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
