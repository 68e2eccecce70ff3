"""Large values are written in pieces, with the same text as in one piece."""

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
def test_the_pieces_together_are_the_text_of_one_write(value: Any, size: int) -> None:
    assert b"".join(pieces(value, size)) == jsonio.dumps(value)


def test_values_that_only_python_can_write_are_the_same_in_pieces() -> None:
    value = {"9": ["\ud83d" * 30, jsonio.NonFinite(math.nan), 10**40, "\udc00", {"é": [10**30] * 20}] * 3, "": {}}
    assert b"".join(pieces(value, 20)) == jsonio.dumps(value)


def test_no_piece_is_much_longer_than_the_given_size() -> None:
    value = {"9": {"text": ["x" * 50_000, ["y" * 90] * 2000], "v": list(range(20_000))}, "10": {"\n" * 500: "z"}}
    assert max(map(len, pieces(value, 1000))) < 4000


def test_a_deeply_nested_value_is_written_in_pieces() -> None:
    value: Any = "x" * 5000
    for _ in range(800):
        value = [value]
    assert b"".join(pieces(value, 1000)) == jsonio.dumps(value)


def test_large_values_are_recognised_by_their_texts_and_items() -> None:
    assert not is_large({"9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}] * 100}})
    assert is_large({"9": {"text": ["x" * 300_000]}})
    assert is_large({"9": {"v": [0] * 100_000}})
    assert is_large({"9": {str(name): None for name in range(100_000)}})
