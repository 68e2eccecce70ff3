"""The parts of a named workflow: its parameters and outputs, and the workflow itself. All are frozen."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError, NamedWorkflowUnusableError

Kind = Literal["text", "integer", "number", "boolean", "choice", "file", "any"]
Medium = Literal["image", "video", "audio", "3d", "file"]
Cast = Literal["", "integer", "number", "text"]

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
"""The form of a parameter's and an output's name. Our own names in a body, such as `$options`, never have it."""
NAME_IS: Final = "a name must be 1 to 64 letters, digits, _ and -, and must begin with a letter or _"
WORKFLOW_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WORKFLOW_NAME_IS: Final = "a name must be 1 to 64 letters, digits, dots, _ and -, and must begin with a letter or digit"
ROLES: Final = ("prompt", "negative_prompt", "image", "mask", "width", "height", "seed", "n")
"""The role of a parameter for a client that does not know our names, such as OpenAI's image API."""
RANDOM: Final = "random"
"""Stands for a seed that the gateway chooses."""


class Missing(enum.Enum):
    """A value that is not given; None is a value in JSON."""

    MISSING = "MISSING"


MISSING: Final = Missing.MISSING


@dataclass(frozen=True, slots=True)
class Target:
    """An input of a node in a workflow in API format, which is not linked.

    Attributes:
        cast: the type of the value for this input, if one value goes to inputs of different types.
    """

    node_id: str
    input: str
    cast: Cast = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A parameter as a file describes it; the node definitions add the rest.

    Attributes:
        source: who says it, in the words of `finding`: ``sidecar``, ``title``, …
        default: `MISSING` if the file names none, so that the workflow's own value counts.
        kind, seed: if the file says so; None: as in the definition of the target's node.
    """

    name: str
    targets: tuple[Target, ...]
    source: str
    title: str = ""
    description: str = ""
    default: Any = MISSING
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    required: bool | None = None
    role: str | None = None
    advanced: bool = False
    kind: Kind | None = None
    seed: bool | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter with its type and its limits.

    Attributes:
        required: a call has to give it.
        default: the value if a call does not give one; `MISSING`: the workflow keeps its own value, or has none.
        own: the workflow's own value, for people; `MISSING` if it has none.
        choices: the allowed values; None if any value of its kind is allowed.
        spellings: a value as it is given to the choice that it means; with folders of Windows as ours.
        many: the value is a list of choices.
        medium: of a file.
        seed: whether one is chosen if the call gives none, or "random".
        boxed_as: ComfyUI's type of a widget that takes its lists in a box of that name.
    """

    name: str
    kind: Kind
    targets: tuple[Target, ...]
    title: str = ""
    description: str = ""
    required: bool = False
    default: Any = MISSING
    own: Any = MISSING
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: Sequence[Any] | None = None
    spellings: Mapping[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    many: bool = False
    medium: Medium | None = None
    role: str | None = None
    seed: bool = False
    multiline: bool = False
    advanced: bool = False
    boxed_as: str = ""


@dataclass(frozen=True, slots=True)
class NamedOutput:
    """A node whose files are an answer's, by the name that they have there."""

    name: str
    node_id: str


@dataclass(frozen=True, slots=True)
class Fallback:
    """Replaces a file that a call does not give: the link of the workflow's own default.

    Attributes:
        parameter: "" if no parameter sets the file any longer, so that the default counts.
        node_id: the node whose consumers get the link instead.
        link: node id and output.
        unused: the nodes that are left out.
    """

    parameter: str
    node_id: str
    link: tuple[str, int]
    unused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NamedWorkflow:
    """A workflow that can be called by its name.

    Attributes:
        version: SHA-256 of its files, in hexadecimal.
        outputs: empty: the files of all output nodes.
        prompt: in API format; it is shared by all calls and never changed.
        warnings: odd things in the file, for its author.
        schema: JSON Schema (2020-12) of the parameters.
        example: a body that the schema takes.
        classes: of all nodes of the file; it is loaded again when a server declares one of them otherwise.
        fallbacks: by a parameter of a file that a call may leave out, what stands in for it.
    """

    name: str
    version: str
    title: str
    description: str
    parameters: tuple[Parameter, ...]
    outputs: tuple[NamedOutput, ...]
    prompt: Mapping[str, Any] = field(repr=False)
    warnings: tuple[str, ...]
    schema: Mapping[str, Any] = field(repr=False)
    example: Mapping[str, Any]
    by_name: Mapping[str, Parameter] = field(repr=False, compare=False)
    fallbacks: tuple[Fallback, ...] = ()
    classes: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def problem(self) -> None:
        """It has none, unlike `Unusable`."""
        return None


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file of the folder that cannot be called.

    Attributes:
        problem: why, for people.
        waits: whether it may become usable as soon as some server gives its node definitions.
        classes: as of `NamedWorkflow`.
    """

    name: str
    version: str
    problem: str
    waits: bool = False
    classes: frozenset[str] = field(default=frozenset(), repr=False)

    def as_error(self) -> ComfyUIError:
        """The error of its call."""
        if self.waits:
            return ComfyUIConnectionError(f"the workflow {self.name} cannot be used yet: {self.problem}")
        return NamedWorkflowUnusableError(f"the workflow {self.name} cannot be used: {self.problem}")
