"""A long input is decoded in pieces, with the same result as in one piece."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comfyui.exceptions import ComfyUIInputError
from comfyui.inputs import decoding
from comfyui.inputs.content import Content

MAX = 10_000
pieces = st.lists(
    st.sampled_from(
        ["A", "b", "9", "+", "/", "-", "_", "=", "==", " ", "\n", "%", "%4", "%41", "%2B", "é", ",", "AAAA"]
    ),
    max_size=30,
).map("".join)


def outcome(text: str, **options: Any) -> Content | str:
    try:
        return decoding.decode(text, max_bytes=MAX, **options)
    except ComfyUIInputError as error:
        return error.detail


@example(prefix="", text="AAAAAAA A", step=4)
@example(prefix="", text="AAAA=", step=4)
@example(prefix="", text="AAAA==", step=4)
@example(prefix="data:,", text="AAAA=", step=4)
@example(prefix="data:image/png;base64,", text="AAAA=", step=4)
@settings(max_examples=600, deadline=None)
@given(prefix=st.sampled_from(["", "data:,", "data:image/png;base64,"]), text=pieces, step=st.sampled_from([4, 8, 12]))
def test_decoding_in_pieces_gives_the_same_result(prefix: str, text: str, step: int) -> None:
    whole = outcome(prefix + text)
    in_pieces = outcome(prefix + text, piece=step)
    assert in_pieces == whole or (isinstance(in_pieces, str) and isinstance(whole, str))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(min_size=1, max_size=3_000), wrap=st.booleans())
def test_encoded_bytes_decode_to_the_same_bytes(data: bytes, wrap: bool) -> None:
    text = (base64.encodebytes(data) if wrap else base64.b64encode(data)).decode()
    found = outcome(text)
    assert isinstance(found, str) or found.source == data
    if data.lstrip()[:1] != b"<":
        assert not isinstance(found, str)


def test_the_search_for_the_head_of_a_data_uri_is_bounded() -> None:
    assert not decoding.is_data_uri("data:" + "a" * 5_000)
    assert not decoding.is_data_uri(" " * 5_000 + "data:,x")
    assert decoding.is_data_uri("  data:image/png;base64,aaaa")


@pytest.mark.parametrize("size", [1, 2, 3, 786_431, 786_432, 786_433, 2_000_000])
def test_a_plain_data_uri_is_rebuilt_exactly_from_its_bytes(size: int) -> None:
    data = b"\x89PNG\r\n\x1a\n"[:size].ljust(size, b"x")
    text = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = decoding.plain_data_uri(text)
    assert content is not None
    assert (content.source, decoding.head_of_data_uri(text) + decoding.base64_of(data)) == (data, text)
    for other in (f" {text}", text.replace("data:", "DATA:"), f"{text}\n", text.replace("base64,", "base64,%20")):
        assert decoding.plain_data_uri(other) is None
    assert decoding.head_of_data_uri("data:text/plain,a%20b") == "data:text/plain;base64,"
