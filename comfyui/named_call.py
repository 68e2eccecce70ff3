"""The call of a named workflow, as its request, its job and its result know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui.answer_json import WorkflowEntry


@dataclass(frozen=True, slots=True)
class NamedCall:
    """The call of a named workflow. Only `comfyui.named.binding` makes one.

    Attributes:
        version: SHA-256 of the workflow's files, in hex.
        parameters: the given ones; a file as ``sha256:…`` or its URL without the query, never its content.
        used: the values that were set, with the seed that was chosen.
        ignored: given names that the workflow does not know.
        outputs: names of outputs by node id; empty if every output node counts.
        digest: SHA-256 over the name and the given parameters, in hex; it is part of a request's fingerprint.
    """

    name: str
    version: str
    parameters: Mapping[str, Any]
    used: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""

    def to_fields(self) -> list[Any]:
        """All fields as JSON, for `of_fields`."""
        return [self.name, self.version, self.parameters, self.used, self.ignored, self.outputs, self.digest]

    @classmethod
    def of_fields(cls, fields: Sequence[Any]) -> NamedCall:
        """The inverse of `to_fields`."""
        name, version, parameters, used, ignored, outputs, digest = fields
        return cls(name, version, parameters, used, tuple(ignored), outputs, digest)

    def to_json(self) -> WorkflowEntry:
        """The entry of an answer."""
        return {"name": self.name, "version": self.version, "parameters": self.used, "ignored": list(self.ignored)}


# Stands between a parameter's name, which cannot contain it by chance, and the hash of its file.
_MARK = "-sha256-"


def file_name(parameter: str, digest: str, ending: str = "") -> str:
    """The name by which the workflow refers to the file of a parameter. Each content has its own name: if a node takes
    a name that cannot be rewritten, callers must not get each other's files.
    """
    return f"{parameter}{_MARK}{digest}{ending}"


def parameter_of(name: str) -> str:
    """The parameter whose file has this name; "" for a file of another kind of request."""
    return name.rpartition(_MARK)[0]
