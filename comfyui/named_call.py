"""How a named workflow was called: what a request, its job and its result know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui.answer_json import WorkflowEntry


@dataclass(frozen=True, slots=True)
class NamedCall:
    """How a named workflow was called. Only `comfyui.named.binding` makes one.

    Attributes:
        version: SHA-256 of the workflow's files, in hex.
        parameters: as they were given; a file by ``sha256:…`` or its URL without the query, never its content.
        used: what was set, with the seed that was chosen.
        ignored: names that were given and mean nothing.
        outputs: names of outputs by node id; empty where every output node counts.
        digest: SHA-256 over name and parameters as they were given, in hex: it stands in a request's fingerprint.
    """

    name: str
    version: str
    parameters: Mapping[str, Any]
    used: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""

    def to_fields(self) -> list[Any]:
        """All of it as JSON, for `of_fields`."""
        return [self.name, self.version, self.parameters, self.used, self.ignored, self.outputs, self.digest]

    @classmethod
    def of_fields(cls, fields: Sequence[Any]) -> NamedCall:
        """What `to_fields` gave."""
        name, version, parameters, used, ignored, outputs, digest = fields
        return cls(name, version, parameters, used, tuple(ignored), outputs, digest)

    def to_json(self) -> WorkflowEntry:
        """As answers have it."""
        return {"name": self.name, "version": self.version, "parameters": self.used, "ignored": list(self.ignored)}


# Between the name of a parameter, which has no such text by chance, and the hash of its file.
_MARK = "-sha256-"


def file_name(parameter: str, digest: str, ending: str = "") -> str:
    """Under which name the workflow refers to the file of a parameter. Another content has another name: where a node
    takes a name that cannot be rewritten, callers must not get each other's files."""
    return f"{parameter}{_MARK}{digest}{ending}"


def parameter_of(name: str) -> str:
    """The parameter whose file has this name; "" for a file of another kind of request."""
    return name.rpartition(_MARK)[0]
