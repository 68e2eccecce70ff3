"""A call of a named workflow as a program: for the shell, in Python and in JavaScript. Pure.

Each value is written as data of its language: it cannot end its text and go on as code.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from comfyui import jsonio

KEY_VARIABLE: Final = "COMFYUI_GATEWAY_API_KEY"
"""The variable of the environment that has the key: no program has it in its text."""
# JavaScript's numbers are doubles; the gateway takes a number as text, too.
_MOST_EXACT = 2**53 - 1
# JSON writes other characters beyond ASCII as they are. These end a line in some readers, or turn its direction.
_INVISIBLE = re.compile("[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
_BARE = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


@dataclass(frozen=True, slots=True)
class NamedRun:
    """A run of a named workflow.

    Attributes:
        base: where the gateway is, without a slash at its end.
        values: by the names of parameters, without files.
        files: by the name of a file's parameter, the name of the file on the caller's disk.
        with_key: the gateway asks for a key.
    """

    base: str
    name: str
    values: Mapping[str, Any]
    files: Mapping[str, str]
    with_key: bool

    @property
    def url(self) -> str:
        """The address to which the run is posted."""
        return f"{self.base}/workflows/{quote(self.name)}"


def as_curl(run: NamedRun) -> str:
    """For a POSIX shell. A form where there are files, else JSON."""
    lines = [f"curl {shlex.quote(run.url)}"]
    if run.with_key:
        lines.append(f'-H "Authorization: Bearer ${KEY_VARIABLE}"')
    if run.files:
        lines += [f"-F {shlex.quote(f'{name}=@{_curl_path(path)}')}" for name, path in run.files.items()]
        lines += [f"--form-string {shlex.quote(f'{name}={_form_text(value)}')}" for name, value in run.values.items()]
    else:
        lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(_json(run.values))}"]
    return " \\\n  ".join(lines)


def as_python(run: NamedRun) -> str:
    """With nothing but Python's own library."""
    modules = ["base64"] if run.files else []
    modules += ["json", *(["os"] if run.with_key else []), "urllib.request"]
    lines = [f"import {module}" for module in modules]
    if run.files:
        lines.append("from pathlib import Path")
    members = [f"    {_python(name)}: {_python(value)}," for name, value in run.values.items()]
    members += [
        f"    {_python(name)}: base64.b64encode(Path({_python(path)}).read_bytes()).decode(),"
        for name, path in run.files.items()
    ]
    lines += ["", *_braced("parameters = {", members, "}")]
    lines += [
        "request = urllib.request.Request(",
        f"    {_python(run.url)},",
        "    data=json.dumps(parameters).encode(),",
    ]
    headers = ['"Content-Type": "application/json"']
    if run.with_key:
        headers.append(f'"Authorization": "Bearer " + os.environ["{KEY_VARIABLE}"]')
    lines += [f"    headers={{{', '.join(headers)}}},", ")"]
    lines += [
        "with urllib.request.urlopen(request) as answer:",
        "    result = json.load(answer)",
        'for file in result["images"]:',
        '    print(file["url"])',
    ]
    return "\n".join(lines)


def as_javascript(run: NamedRun) -> str:
    """A module for Node and, where it reads no file, for browsers."""
    lines = ["import { readFile } from 'node:fs/promises'", ""] if run.files else []
    members = [f"  {_member(name)}: {_javascript(value)}," for name, value in run.values.items()]
    members += [
        f"  {_member(name)}: await readFile({_javascript(path)}, 'base64')," for name, path in run.files.items()
    ]
    lines += _braced("const parameters = {", members, "}")
    headers = ["'Content-Type': 'application/json'"]
    if run.with_key:
        headers.append(f"Authorization: `Bearer ${{process.env.{KEY_VARIABLE}}}`")
    lines += [
        f"const answer = await fetch({_javascript(run.url)}, {{",
        "  method: 'POST',",
        f"  headers: {{ {', '.join(headers)} }},",
        "  body: JSON.stringify(parameters),",
        "})",
        "const result = await answer.json()",
        "if (!answer.ok) throw new Error(result.detail)",
        "for (const file of result.images) console.log(file.url)",
    ]
    return "\n".join(lines)


def _braced(begin: str, members: Sequence[str], end: str) -> list[str]:
    return [begin, *members, end] if members else [begin + end]


def _text(text: str) -> str:
    """A text in quotation marks as JSON, Python and JavaScript all read it, in which every character can be seen."""
    shown = jsonio.dumps(text).decode()
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", shown)


def _json(value: Any) -> str:
    match value:
        case str():
            return _text(value)
        case Mapping():
            return "{" + ", ".join(f"{_text(name)}: {_json(one)}" for name, one in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_json, value)) + "]"
    return jsonio.dumps(value).decode()


def _python(value: Any) -> str:
    match value:
        case str():
            return _text(value)
        case Mapping():
            return "{" + ", ".join(f"{_text(name)}: {_python(one)}" for name, one in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_python, value)) + "]"
    return repr(value)


def _javascript(value: Any) -> str:
    match value:
        case str():
            return _text(value)
        case int() if abs(value) > _MOST_EXACT:
            return f"'{value}'"
        case Mapping():
            return "{ " + ", ".join(f"{_member(name)}: {_javascript(one)}" for name, one in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(map(_javascript, value)) + "]"
    return jsonio.dumps(value).decode()


def _member(name: str) -> str:
    """The name of a member of an object. ``__proto__`` would mean another thing."""
    if name == "__proto__":
        return '["__proto__"]'
    return name if _BARE.fullmatch(name) else _text(name)


def _form_text(value: Any) -> str:
    """A value as a field of a form: a text as it is, all else as JSON."""
    # No argument of a program can have this character.
    text = value if isinstance(value, str) else _json(value)
    return jsonio.without_surrogates(text.replace("\0", ""))


def _curl_path(path: str) -> str:
    """The name of a file within `-F`, which gives a meaning to some characters."""
    path = jsonio.without_surrogates(path.replace("\0", ""))
    if not re.search(r'[",;\\]', path):
        return path
    quoted = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'
