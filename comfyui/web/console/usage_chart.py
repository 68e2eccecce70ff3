"""Bars for each day, week or month, as the numbers of an SVG. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

MOST_BARS = 100
"""With more days than this, a bar stands for a week; with more weeks than this, for a month."""
MOST_SERIES = 5
"""So many names have a colour of their own; the others share the last one."""
HEIGHT = 100.0
SLOT = 10.0
_BAR = 8.0


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle: one name's part of a bar. `y` is its upper edge, from the top of the picture."""

    series: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """Attributes:
    x: its left edge.
    day: its first day.
    values: name and value of each part that is not nothing, as `Chart.names` has them.
    """

    x: float
    day: str
    parts: tuple[Part, ...]
    values: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Attributes:
    bars: also those without any value, in the order of days.
    names: of the series, those of the most first.
    step: what a bar stands for: ``day``, ``week`` or ``month``.
    top: the value of a bar that is as high as the picture.
    """

    bars: tuple[Bar, ...]
    names: tuple[str, ...]
    step: str
    top: float

    @property
    def width(self) -> float:
        """The width of the picture, in the units of `Part`. Its height is `HEIGHT`; each bar is `bar_width` wide."""
        return len(self.bars) * SLOT

    bar_width = _BAR
    height = HEIGHT


def chart_of(
    values: Iterable[tuple[str, str, float]], order: Sequence[str], since: str, until: str, *, others: str
) -> Chart:
    """The picture of some days.

    Args:
        values: day, name and value; several of one day and name are added up.
        order: the names, those that are to have a colour of their own first.
        others: the name of all for which no colour is left.
    """
    found = list(values)
    first, last = date.fromisoformat(since), date.fromisoformat(until)
    if (last - first).days >= MOST_BARS:
        # A long range is drawn from the first day that has something.
        first = max(first, min((date.fromisoformat(day) for day, _, value in found if value), default=last))
    step, starts = _starts(first, last)
    names = list(order) if len(order) <= MOST_SERIES + 1 else [*order[:MOST_SERIES], others]
    places = {name: index for index, name in enumerate(names)}
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * len(names))
    start_of = _STEPS[step]
    for day, name, value in found:
        sums[start_of(date.fromisoformat(day)).isoformat()][places.get(name, len(names) - 1)] += value
    top = max((sum(one) for one in sums.values()), default=0.0) or 1.0
    bars = []
    for index, start in enumerate(starts):
        day = start.isoformat()
        heights = sums.get(day, [])
        named = tuple((name, value) for name, value in zip(names, heights, strict=False) if value)
        bars.append(Bar(index * SLOT + (SLOT - _BAR) / 2, day, tuple(_stacked(heights, top)), named))
    return Chart(tuple(bars), tuple(names), step, top)


def _stacked(values: Sequence[float], top: float) -> Iterable[Part]:
    """The parts of a bar from the bottom up, the first series lowest."""
    below = 0.0
    for series, value in enumerate(values):
        if value:
            height = value / top * HEIGHT
            yield Part(series, round(HEIGHT - below - height, 3), round(height, 3))
            below += height


def _week(day: date) -> date:
    # The first days of the calendar belong to a week that it does not have.
    return date.fromordinal(max(1, day.toordinal() - day.weekday()))


def _month(day: date) -> date:
    return day.replace(day=1)


_STEPS: dict[str, Callable[[date], date]] = {"day": lambda day: day, "week": _week, "month": _month}


def _starts(first: date, last: date) -> tuple[str, list[date]]:
    """The finest step with few enough bars, and the first day of each bar."""
    days = (last - first).days + 1
    step = "day" if days <= MOST_BARS else "week" if days <= 7 * MOST_BARS else "month"
    start_of = _STEPS[step]
    # A day in each bar tells the bar's first day.
    stride = timedelta(1 if step == "day" else 7)
    starts, day = dict.fromkeys([start_of(first)]), first
    while day < last:
        day = min(day + stride, last) if day <= date.max - stride else last
        starts[start_of(day)] = None
    return step, list(starts)
