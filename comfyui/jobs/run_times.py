"""`RunTimes`: how long earlier prompts ran, by the shape of their workflows. In memory, and bounded. Pure."""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

from comfyui.workflows.needs import Needs

# The number of runs for each shape, and for all prompts together.
_LAST_OF_SHAPE = 9
_LAST = 50
_MOST_SHAPES = 500
# The number of prompts whose shape is known only because someone asked for their forecast.
_MOST_LOOKED_AT = 1000

Shape = tuple[frozenset[str], frozenset[str]]
"""The node classes of a workflow, and the models that it loads: what mostly decides how long it takes."""


def shape_of(needs: Needs) -> Shape:
    """The shape of a workflow with these needs. Files that it reads are left out: each run may read another one."""
    return needs.classes, needs.models


class RunTimes:
    """Gets each prompt that ended well, which costs one look-up in a dictionary."""

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
        """The prompt is over, and was executed for this time; 0 if it did not end well."""
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
        """About how long a prompt of this shape runs: the median of the last runs. None if it never ran.

        The first run after a start loads models, and one whose nodes are all cached takes no time: neither counts much.
        """
        runs = None if shape is None else self._of.get(shape)
        return None if runs is None else median(runs)

    @property
    def mean_s(self) -> float | None:
        """The mean duration of the last prompts, of any shape; None before the first one."""
        return fmean(self._last) if self._last else None
