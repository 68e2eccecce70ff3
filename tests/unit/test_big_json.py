"""Large JSON is read in short steps and within limits, with the same result as small JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui import big_json, jsonio
from comfyui.big_json import Steps
from comfyui.exceptions import ComfyUILimitError, JSONError
from comfyui.limits import Limits

MANY = Limits(max_json_values=10**9)

texts = st.lists(
    st.sampled_from(["a", "é", "😀", '"', "\\", "\n", "\u2028", "/", "ab" * 300, ", [ {", "\x7f", "𝔸"]), max_size=12
).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=25,
)


# Every text counts as large, and each step takes only a few bytes, so that steps end at every kind of place.
TINY = Steps(whole=0, scanned=7, parsed=0, short=5, decoded=6)


@settings(max_examples=150, deadline=None)
@given(value=values, escaped=st.booleans(), indent=st.sampled_from([None, 1]))
def test_reading_in_steps_gives_the_value_of_one_step(value: Any, escaped: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
    assert big_json.load(text, MANY, TINY) == value


@settings(max_examples=150, deadline=None)
@given(value=values, at=st.integers(0, 200), wrong=st.sampled_from([b'"', b"\\", b"\n", b"\xff", b"]", b"", b"\\u"]))
def test_reading_in_steps_refuses_the_same_damaged_texts(value: Any, at: int, wrong: bytes) -> None:
    text = json.dumps(value, ensure_ascii=False).encode()
    text = text[:at] + wrong + text[at + 1 :]
    try:
        expected = jsonio.loads(text)
    except JSONError:
        with pytest.raises(JSONError):
            big_json.load(text, MANY, TINY)
    else:
        assert big_json.load(text, MANY, TINY) == expected


def test_characters_in_strings_count_neither_as_values_nor_as_depth() -> None:
    limits = Limits(max_json_values=3, max_json_depth=1)
    text = json.dumps(["[[[{{{,,,,,,,,", '\\",[[[,,,']).encode()
    assert big_json.load(text, limits, TINY) == json.loads(text)


def test_too_many_values_are_refused() -> None:
    text = json.dumps({str(number): {} for number in range(100_000)}).encode()
    with pytest.raises(ComfyUILimitError, match=r"more than 50000 values \(MAX_JSON_VALUES\)"):
        big_json.load(text, Limits(max_json_values=50_000))
    assert len(big_json.load(text, Limits(max_json_values=250_000))) == 100_000


@pytest.mark.parametrize("size", [0, 100_000])
def test_depth_is_limited_whatever_the_size(size: int) -> None:
    def nested(depth: int) -> bytes:
        return b'{"pad":"%b","x":%b%b}' % (b"a" * size, b"[" * (depth - 1), b"]" * (depth - 1))

    limits = Limits(max_json_depth=20)
    assert big_json.load(nested(20), limits)["x"]
    with pytest.raises(ComfyUILimitError, match=r"more than 20 levels deep"):
        big_json.load(nested(21), limits)


def test_a_name_of_a_field_is_limited_too() -> None:
    with pytest.raises(ComfyUILimitError, match="a name in the JSON"):
        big_json.load(b'{"%b":1}' % (b"a" * 5_000_000), Limits())


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"1": "a" * 20_000_000}),
        json.dumps(["b" * 900] * 50_000),
        json.dumps({"1": "é\\n😀" * 3_000_000}),
    ],
    ids=["one string", "many strings", "escapes"],
)
def test_other_threads_get_turns_while_large_json_is_read(text: str) -> None:
    """Counts the turns of another thread during the reading, which depends little on the speed of the machine.

    A parser that reads the whole text at once gives other threads no turn.
    """
    body = text.encode()
    turns = 0
    done = threading.Event()

    def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            time.sleep(0)

    other = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    other.start()
    try:
        before = turns
        big_json.load(body, Limits())
        during = turns - before
    finally:
        done.set()
        other.join()
        sys.setswitchinterval(interval)
    assert during > 20
