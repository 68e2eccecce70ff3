"""`RunTimes`: how long prompts ran before, by the shape of their workflows. In memory, and bounded. Pure."""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

from comfyui.workflows.needs import Needs

# Of each shape, and of all prompts together.
_LAST_OF_SHAPE = 9
_LAST = 50
_MOST_SHAPES = 500
# Prompts whose shape is known only because someone asked how long they take.
_MOST_LOOKED_AT = 1000

Shape = tuple[frozenset[str], frozenset[str]]
"""The node classes of a workflow, and the models that it loads: what mostly decides how long it takes."""


def shape_of(needs: Needs) -> Shape:
    """The shape of a workflow with these needs. Files that it reads are left out: each run may read another one."""
    return needs.classes, needs.models


class RunTimes:
    """Is told of each prompt that ended well, which costs one look into a dictionary."""

    def __init__(self) -> None:
        self._of: dict[Shape, deque[float]] = {}
        self._last: deque[float] = deque(maxlen=_LAST)
        self._looked_at: dict[str, Shape] = {}

    def look_at(self, prompt_id: str, needs: Needs) -> None:
        """The prompt has these needs. Its run counts when it ends, though the queue knows nothing of its workflow."""
        if len(self._looked_at) >= _MOST_LOOKED_AT:
            del self._looked_at[next(iter(self._looked_at))]
        self._looked_at[prompt_id] = shape_of(needs)

    def looked_at(self, prompt_id: str) -> Shape | None:
        """The shape of a prompt that was looked at."""
        return self._looked_at.get(prompt_id)

    def ended(self, prompt_id: str, needs: Needs | None, seconds: float) -> None:
        """The prompt is over, and was executed for so long; 0 where it did not end well."""
        shape = self._looked_at.pop(prompt_id, None) if needs is None else shape_of(needs)
        if shape is None or seconds <= 0:
            return
        self._last.append(seconds)
        runs = self._of.get(shape)
        if runs is None:
            if len(self._of) >= _MOST_SHAPES:
                del self._of[next(iter(self._of))]
            runs = self._of[shape] = deque(maxlen=_LAST_OF_SHAPE)
        runs.append(seconds)

    def expected_s(self, shape: Shape | None) -> float | None:
        """How long a prompt of this shape runs, about: as the middle one of the last runs. None where it never ran.

        The first run after a start loads models, and one whose nodes are all cached takes no time: neither counts much.
        """
        runs = None if shape is None else self._of.get(shape)
        return None if runs is None else median(runs)

    @property
    def mean_s(self) -> float | None:
        """How long the last prompts ran, of any shape; None before the first one."""
        return fmean(self._last) if self._last else None
