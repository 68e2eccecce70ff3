"""Our reader and writers of JSON, compared with Python's own, which ComfyUI uses."""

from __future__ import annotations

import json
import math
from typing import Any
from uuid import UUID

import pytest

from comfyui import jsonio
from comfyui.exceptions import JSONError

# Texts that ComfyUI reads and writes, but orjson refuses or silently changes.
AS_PYTHON = [
    '{"a": NaN, "b": [Infinity, -Infinity]}',
    '{"a": "\\ud800 alone", "\\udfff": 1}',
    '{"seed": 18446744073709551616}',
    '{"seed": -9223372036854775809}',
    '{"seed": 123456789012345678901234567890}',
    f'{{"seed": {"9" * 4300}}}',
    f"{'[' * 400}NaN{']' * 400}",
    f"{'[' * 300}1{']' * 300}",
    '{"seed": 18446744073709551615, "other": -9223372036854775808, "text": "00000000000000000000000"}',
    '{"a": 1.5, "b": null, "c": true, "d": {}, "e": [], "f": [{}, [], ""], "g": "é😀\\ud83d\\ude00"}',
]


@pytest.mark.parametrize("text", AS_PYTHON, ids=lambda text: text[:40])
def test_texts_of_comfyui_are_read_and_written_as_python_does(text: str) -> None:
    value = jsonio.loads(text)
    assert repr(value) == repr(json.loads(text))
    assert repr(json.loads(jsonio.dumps_for_comfyui(value))) == repr(json.loads(text))


def test_an_integer_beyond_64_bits_is_kept_at_any_place_of_a_long_text() -> None:
    number = 98765432109876543210987
    for padding in range(64 * 1024 - 60, 64 * 1024 + 10):
        assert jsonio.loads(f'["{"x" * padding}", {number}]')[1] == number


def test_a_number_too_large_for_a_float_is_infinity_for_comfyui_and_null_for_clients() -> None:
    value = jsonio.loads('{"a": 1e999}')
    assert value["a"] == math.inf
    assert jsonio.dumps_for_comfyui(value) == b'{"a":Infinity}'
    assert jsonio.dumps(value) == b'{"a":null}'


def test_our_own_answers_are_strict_json() -> None:
    value = jsonio.loads('{"\\udc80": [NaN, -Infinity], "big": 123456789012345678901, "text": "a\\ud800b"}')
    assert json.loads(jsonio.dumps(value)) == {"\ufffd": [None, None], "big": 123456789012345678901, "text": "a\ufffdb"}


def test_nan_and_infinity_of_our_own_are_written_as_null() -> None:
    assert jsonio.dumps([math.nan, math.inf, "\ud800"]) == '[null,null,"\ufffd"]'.encode()


@pytest.mark.parametrize(("write", "depth"), [(jsonio.dumps, 1024), (jsonio.dumps_for_comfyui, 449)])
def test_a_value_of_the_largest_depth_can_be_written(write: Any, depth: int) -> None:
    text = '{"a":' * depth + "1" + "}" * depth
    assert write(jsonio.loads(text)) == text.encode()


def test_a_value_too_deep_for_comfyui_is_not_written_for_it() -> None:
    with pytest.raises(JSONError, match="450 levels"):
        jsonio.dumps_for_comfyui(jsonio.loads("[" * 451 + "]" * 451))


def test_a_text_too_deep_for_python_is_refused_as_beyond_limits() -> None:
    with pytest.raises(JSONError, match="nested too deeply") as raised:
        jsonio.loads("[" * 100_000)
    assert raised.value.beyond_limits


def test_an_integer_of_too_many_digits_is_refused_as_beyond_limits() -> None:
    with pytest.raises(JSONError, match="4300 digits") as raised:
        jsonio.loads(f'{{"number": {"9" * 4301}}}')
    assert raised.value.beyond_limits


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "Expecting value"),
        (b'{"a": }', "Expecting value: line 1 column 7"),
        (b"\xff", "not encoded in UTF-8"),
        (b'"\xff"', "not encoded in UTF-8"),
        ("{}".encode("utf-16"), "UTF-16"),
        ("{}".encode("utf-16-le"), "UTF-16"),
        ("{}".encode("utf-16-be"), "UTF-16"),
        ("{}".encode("utf-32"), "UTF-32"),
    ],
)
def test_a_text_that_is_no_json_is_refused_with_the_reason(text: bytes, said: str) -> None:
    with pytest.raises(JSONError, match=said) as raised:
        jsonio.loads(text)
    assert not raised.value.beyond_limits


def test_a_byte_order_mark_is_skipped() -> None:
    assert jsonio.loads(b'\xef\xbb\xbf{"a": NaN}').keys() == {"a"}
    assert jsonio.loads("\ufeff{}") == {}


def test_canonical_text_distinguishes_values_that_strict_json_does_not() -> None:
    texts = ("[NaN]", "[null]", "[Infinity]", '["\\ud800"]', '["\\ufffd"]', "[18446744073709551616]", "[1.0]", "[1]")
    assert len({jsonio.canonical(jsonio.loads(text)) for text in texts}) == len(texts)
    one, other = {"b": 2**70, "a": {"d": 1, "c": 2}}, {"a": {"c": 2, "d": 1}, "b": 2**70}
    assert jsonio.canonical(one) == jsonio.canonical(other)


def test_a_uuid_is_written_together_with_a_number_that_orjson_refuses() -> None:
    some_id = UUID(int=1)
    assert json.loads(jsonio.dumps({"id": some_id, "big": 2**70})) == {"id": str(some_id), "big": 2**70}


@pytest.mark.parametrize("write", [jsonio.dumps, jsonio.dumps_for_comfyui, jsonio.canonical])
def test_a_value_without_a_json_form_raises_a_type_error(write: Any) -> None:
    with pytest.raises(TypeError):
        write({"a": {1, 2}})
    with pytest.raises(TypeError):
        write({"a": {1, 2}, "big": 2**70})
