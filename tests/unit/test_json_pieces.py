"""Large values are written in pieces, and as if they were written at once."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from comfyui import jsonio
from comfyui.json_pieces import is_large, pieces

_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=40,
)


@given(_values, st.integers(9, 60))
def test_the_pieces_are_the_text_that_is_written_at_once(value: Any, size: int) -> None:
    assert b"".join(pieces(value, size)) == jsonio.dumps(value)


def test_what_only_python_writes_is_written_the_same_in_pieces() -> None:
    value = {"9": ["\ud83d" * 30, jsonio.NonFinite(math.nan), 10**40, "\udc00", {"é": [10**30] * 20}] * 3, "": {}}
    assert b"".join(pieces(value, 20)) == jsonio.dumps(value)


def test_no_piece_is_much_longer_than_it_is_to_be() -> None:
    value = {"9": {"text": ["x" * 50_000, ["y" * 90] * 2000], "v": list(range(20_000))}, "10": {"\n" * 500: "z"}}
    assert max(map(len, pieces(value, 1000))) < 4000


def test_a_value_that_is_nested_deeply_is_written() -> None:
    value: Any = "x" * 5000
    for _ in range(800):
        value = [value]
    assert b"".join(pieces(value, 1000)) == jsonio.dumps(value)


def test_what_is_large_is_found_without_counting_to_the_end() -> None:
    assert not is_large({"9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}] * 100}})
    assert is_large({"9": {"text": ["x" * 300_000]}})
    assert is_large({"9": {"v": [0] * 100_000}})
    assert is_large({"9": {str(name): None for name in range(100_000)}})
