"""The name of a file in `Content-Disposition`, for any name that a node gives."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.web.api.streams import content_disposition

# RFC 6266 with values of RFC 5987, as a strict reader accepts them.
_GRAMMAR = re.compile(
    r"""attachment; filename="(?P<plain>[ !#-\[\]-~]*)\""""
    r"""(?:; filename\*=UTF-8''(?P<utf8>(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+))?"""
)


def read(header: str) -> str:
    """The name that a client uses: the UTF-8 name if there is one."""
    match = _GRAMMAR.fullmatch(header)
    assert match, header
    return unquote(match["utf8"], errors="strict") if match["utf8"] else match["plain"]


@pytest.mark.parametrize(
    ("filename", "saved_as"),
    [
        ("a_00001_.png", "a_00001_.png"),
        ("my photo.png", "my photo.png"),
        ("sub/folder/a.png", "a.png"),
        ("..\\..\\a.png", "a.png"),
        ("C:\\windows\\a.png", "a.png"),
        ("../", "file"),
        ("..", "file"),
        ("", "file"),
        ('a"; filename="b.png', 'a"; filename="b.png'),
        ("100%.png", "100%.png"),
        ("a\r\nSet-Cookie: b.png", "a__Set-Cookie: b.png"),
        ("a\x00b\x7f.png", "a_b_.png"),
        ("a\u2028b.png", "a_b.png"),
        ("日本 é.png", "日本 é.png"),
        ("one\uff0ftwo.png", "one\uff0ftwo.png"),
        ("\ud800.png", "?.png"),
    ],
)
def test_a_file_is_saved_under_its_base_name(filename: str, saved_as: str) -> None:
    assert read(content_disposition(filename)) == saved_as


@given(st.text(st.characters(codec=None), max_size=60))
def test_any_name_makes_one_valid_header_with_a_base_name(filename: str) -> None:
    header = content_disposition(filename)
    match = _GRAMMAR.fullmatch(header)
    assert match, header
    for name in (match["plain"], read(header)):
        assert name.strip() not in {"", ".", ".."}
        assert not set(name) & set("/\\\r\n\0")
