"""The chart of usage: its days and its bars."""

from __future__ import annotations

import pytest

from comfyui.web.console.usage_chart import HEIGHT, MOST_BARS, MOST_SERIES, chart_of


def test_each_day_has_a_bar_even_without_usage() -> None:
    values = [("2026-11-01", "a", 1.0), ("2026-11-03", "a", 3.0), ("2026-11-03", "b", 1.0)]
    chart = chart_of(values, ["a", "b"], "2026-10-31", "2026-11-04", others="others")
    assert (chart.step, chart.top) == ("day", 4.0)
    assert [bar.day for bar in chart.bars] == ["2026-10-31", "2026-11-01", "2026-11-02", "2026-11-03", "2026-11-04"]
    assert [bar.values for bar in chart.bars] == [(), (("a", 1.0),), (), (("a", 3.0), ("b", 1.0)), ()]
    low, high = chart.bars[3].parts
    # The first series is at the bottom, and the highest bar is as high as the chart.
    assert (low.series, low.y, low.height) == (0, 25.0, 75.0)
    assert (high.series, high.y, high.height) == (1, 0.0, 25.0)
    assert chart.bars[1].parts[0].height == HEIGHT / 4


def test_names_beyond_the_number_of_colours_are_added_up() -> None:
    names = [f"key-{index}" for index in range(MOST_SERIES + 3)]
    chart = chart_of([("2026-11-01", name, 1.0) for name in names], names, "2026-11-01", "2026-11-01", others="others")
    assert chart.names == (*names[:MOST_SERIES], "others")
    assert chart.bars[0].values[-1] == ("others", 3.0)
    one_more = names[: MOST_SERIES + 1]
    chart = chart_of([("2026-11-01", name, 1.0) for name in one_more], one_more, "2026-11-01", "2026-11-01", others="o")
    assert chart.names == tuple(one_more)


@pytest.mark.parametrize(
    ("since", "step", "bars", "first"),
    [
        ("2026-08-23", "day", MOST_BARS, "2026-08-23"),
        ("2026-08-22", "week", 16, "2026-08-17"),
        ("2025-01-01", "week", 101, "2024-12-30"),
        ("2024-11-30", "month", 25, "2024-11-01"),
    ],
)
def test_a_long_range_has_bars_for_weeks_or_months(since: str, step: str, bars: int, first: str) -> None:
    values = [(since, "a", 1.0), ("2026-11-30", "a", 2.0)]
    chart = chart_of(values, ["a"], since, "2026-11-30", others="others")
    assert (chart.step, len(chart.bars), chart.bars[0].day) == (step, bars, first)
    assert chart.bars[0].values == (("a", 1.0),)
    assert chart.bars[-1].values == (("a", 2.0),)


@pytest.mark.parametrize(("since", "until"), [("0001-01-01", "2026-11-30"), ("2026-11-01", "9999-12-31")])
def test_the_first_and_last_day_of_the_calendar_are_accepted(since: str, until: str) -> None:
    chart = chart_of([("2026-11-30", "a", 1.0)], ["a"], since, until, others="others")
    assert [bar.values for bar in chart.bars if bar.values] == [(("a", 1.0),)]


def test_a_long_range_has_no_bar_before_the_first_use() -> None:
    chart = chart_of([("2026-11-01", "a", 1.0)], ["a"], "0001-01-01", "2026-11-30", others="others")
    assert (chart.step, chart.bars[0].day) == ("day", "2026-11-01")
    assert len(chart_of([], [], "0001-01-01", "2026-11-30", others="others").bars) == 1
