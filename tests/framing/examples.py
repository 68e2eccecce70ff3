"""The examples that hypothesis draws for each of the three ways, and their number."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Iterator

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.framing.judges import end_of_answer
from tests.framing.live import Arena, Call, serving, through_client, through_gateway
from tests.framing.making import METHODS, answers, bodies, broken_once, header_lists, segments, targets, valid_answers
from tests.framing.reading import Tally, check_reading
from tests.support.running import running_gateway

_numbers = itertools.count(1)
_LONG = random.Random(0).randbytes(3_000_000)  # noqa: S311 - long enough for splice


@st.composite
def _parts(draw: DrawFn) -> list[bytes]:
    body = draw(bodies)
    return draw(st.one_of(st.just([body]), segments(body).map(lambda parts: [*parts, b""])))


@st.composite
def calls(draw: DrawFn, *, calm: bool, gateway: bool = False) -> Call:
    """One call; nothing is wrong with a calm one."""
    number = next(_numbers)
    raw = gateway and draw(st.sampled_from([False, False, True]))
    method = "GET" if raw else draw(st.sampled_from(METHODS))
    identity = b"id-%08d;" % number
    long = gateway and draw(st.sampled_from([False, False, False, True]))
    body = _LONG[: draw(st.sampled_from([1_100_000, 2_500_000, 3_000_000]))] if long else None
    made = draw((valid_answers if calm or long else answers)(method, identity, body))
    end = end_of_answer(method, made.data)
    # Bytes behind the answer come with its last byte: later, no client could tell them from the next answer.
    first = draw(segments(made.data[: max(0, end - 1)]))
    parts = None if raw else draw(st.one_of(st.none(), _parts()))
    return Call(
        number=number,
        method=method,
        path="" if raw else draw(targets),
        headers=[] if raw else draw(header_lists),
        body=parts,
        chunked=parts is not None and len(parts) > 1 and draw(st.booleans()),
        answer=[*first, made.data[max(0, end - 1) :]],
        valid=made.valid,
        early=not calm and parts is not None and draw(st.booleans()),
        then="keep" if calm else draw(st.sampled_from(["keep"] * 5 + ["close", "reset"])),
        cancelled_after=None if calm or gateway else draw(st.one_of(st.none(), st.none(), st.integers(0, 40))),
        raw=raw,
    )


class _DiffersError(BaseException):
    """Ends the examples. After an `Exception`, hypothesis would run this example again and look for more."""


def _run(tally: Tally, examples: int, check: Callable[[st.DataObject], None], seed: int | None) -> None:
    """Ends with the first example that differs, because a fault that lets callers wait makes each example slow."""

    def until_it_differs(data: st.DataObject) -> None:
        check(data)
        if tally.differences:
            raise _DiffersError

    shrinks = (Phase.explicit, Phase.generate)
    options = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=shrinks,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    test = options(given(st.data())(until_it_differs))
    if seed is not None:
        from hypothesis import seed as seeded

        test = seeded(seed)(test)
    with contextlib.suppress(_DiffersError):
        test()


def read_answers(examples: int, seed: int | None = None) -> Tally:
    """Compares our reader with the judges on the same bytes."""
    tally = Tally()

    def check(data: st.DataObject) -> None:
        method = data.draw(st.sampled_from(METHODS))
        made = data.draw(answers(method, b"id-1;"))
        ended = made.ends_with_connection or data.draw(st.booleans())
        check_reading(tally, method, data.draw(segments(made.data)), ended=ended, valid=made.valid)

    _run(tally, examples, check, seed)
    return tally


def read_each(methods: tuple[str, ...] = ("GET", "HEAD"), *, share: int = 1) -> Tally:
    """Every corruption at every place of some plain answers, or each `share`-th of them; nothing is random."""
    tally = Tally()
    for data in itertools.islice(broken_once(), 0, None, share):
        for method in methods:
            for ended in (False, True):
                check_reading(tally, method, [data], ended=ended, valid=False)
    return tally


def call_client(examples: int, seed: int | None = None, *, quick: bool = True) -> Tally:
    """Concurrent callers of one client, over real sockets. `quick`: in uvloop, as in production."""
    tally = Tally()
    arena = Arena(uvloop.new_event_loop() if quick else asyncio.new_event_loop())
    server = arena.open(serving(tally))

    def check(data: st.DataObject) -> None:
        calm = data.draw(st.booleans())
        made = data.draw(st.lists(calls(calm=calm), min_size=1, max_size=6))
        arena.run(through_client(server, made, data.draw(st.integers(0, 3))))

    with contextlib.closing(arena):
        _run(tally, examples, check, seed)
    return tally


def call_gateway(examples: int, seed: int | None = None, *, splice: bool = True) -> Tally:
    """Concurrent callers of a gateway: its relay, and the files in its answers. With `splice`, it runs in uvloop."""
    tally = Tally()
    arena = Arena(uvloop.new_event_loop() if splice else asyncio.new_event_loop())
    server = arena.open(serving(tally))

    def check(data: st.DataObject) -> None:
        calm = data.draw(st.booleans())
        made = data.draw(st.lists(st.lists(calls(calm=calm, gateway=True), min_size=1, max_size=3), max_size=4))
        arena.run(through_gateway(server, gateway.url, made))

    with contextlib.closing(arena), _splice(on=splice):
        gateway = arena.open(running_gateway(server.url, ready=False, http_retries=0))
        _run(tally, examples, check, seed)
    return tally


@contextlib.contextmanager
def _splice(*, on: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not on:
            patch.delattr("os.splice")
        yield
