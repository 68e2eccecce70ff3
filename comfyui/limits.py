"""How much of each kind a request may bring. The web layer, the handler and the checks share these limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from comfyui.exceptions import ComfyUILimitError, ComfyUIUnreadableError

# A name is cut to this many characters in a refusal: it may be as long as the body.
_SHOWN = 60
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one request. Only `max_json_values` is a setting.

    Attributes:
        max_json_values: values in one JSON body, of all kinds and at every depth (MAX_JSON_VALUES).
        max_json_depth: nesting depth of lists and objects in one JSON body; Python's limit is 1000.
        max_workflow_nodes: nodes of one workflow, including its subgraphs.
        max_node_inputs: inputs of one node.
        max_inputs: files that are staged for one prompt.
        max_name_length: characters of a node id, a class name or an input's name.
        max_problems: errors that an answer lists, and as many warnings.
    """

    max_json_values: int = 250_000
    max_json_depth: int = 900
    max_workflow_nodes: int = 10_000
    max_node_inputs: int = 1_000
    max_inputs: int = 1_000
    max_name_length: int = 512
    max_problems: int = 500


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """How much ComfyUI may send at once. It is trusted with prompts, but one wrong answer must not end us.

    Attributes:
        max_bytes: of an answer that is read as a whole, and of one message of a websocket.
    """

    max_bytes: int = 256_000_000

    def too_long(self, what: str) -> ComfyUIUnreadableError:
        return ComfyUIUnreadableError(f"{what}: the answer is larger than {self.max_bytes / 1e6:g} MB (MAX_ANSWER_MB)")

    @property
    def frame_too_long(self) -> str:
        return f"ComfyUI sent a message of more than {self.max_bytes / 1e6:g} MB (MAX_ANSWER_MB)"


DEFAULT_ANSWERS = AnswerLimits()
JSON_OF_COMFYUI = Limits(max_json_values=1_000_000)
"""The limits of ComfyUI's long answers and messages. A million values are read in a fraction of a second."""


def over(what: str, limit: int, setting: str = "") -> ComfyUILimitError:
    """The error for something over a limit: ``the JSON has more than 250000 values (MAX_JSON_VALUES)``.

    Args:
        what: the text, with ``{limit}`` for the limit; it may contain names from a caller.
        setting: the setting that an operator can raise; empty if the limit has none.
    """
    return ComfyUILimitError(what.replace("{limit}", str(limit)) + (f" ({setting})" if setting else ""))


def short(name: str, most: int = _SHOWN) -> str:
    """A name for people to read, cut to `most` characters."""
    return name if len(name) <= most else f"{name[:most]}…"


def named(names: Iterable[str], count: int) -> str:
    """The first of `count` names in one line, and the number of the others."""
    shown = [short(name) for name, _ in zip(names, range(_MOST_NAMED), strict=False)]
    more = f" and {count - _MOST_NAMED} more" if count > _MOST_NAMED else ""
    return ", ".join(shown) + more
