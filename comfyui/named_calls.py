"""`NamedCall`: which named workflow a request ran, and with which parameters. It goes with the request everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NamedCall:
    """A call of a named workflow, as results tell of it.

    Attributes:
        version: SHA-256 of the workflow's files, in hexadecimal.
        parameters: as they were given. A file is ``sha256:…`` of the text that it came as, its URL without its query,
            or ``file:…`` with the name of a form's file.
        used: what was put into the workflow, with the seed that was chosen; files as in `parameters`.
        ignored: parameters that were given as null, which counts as not given.
        outputs: the names of the outputs by their nodes; empty: the files of every node are the result.
        digest: SHA-256 over the name and the parameters as they were given, in hexadecimal.
    """

    name: str
    version: str
    parameters: Mapping[str, Any]
    used: Mapping[str, Any]
    ignored: tuple[str, ...]
    outputs: Mapping[str, str]
    digest: str
