"""File names in forms: ComfyUI's aiohttp reads ours correctly, and we read those of each HTTP client."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from aiohttp.multipart import content_disposition_filename, parse_content_disposition
from hypothesis import given
from hypothesis import strategies as st

from comfyui.transport.form_names import file_disposition, parse_disposition, settle

PHOTO = "фото 1.png"
STAR = f"filename*=utf-8''{quote(PHOTO)}"


def read(disposition: str, reference: str) -> str:
    """The name that a file with this disposition gets if the workflow refers to `reference`."""
    names = parse_disposition(f'form-data; name="images"; {disposition}'.encode("latin-1")).filenames
    return settle([names], {reference, "a text"})[0]


def utf8(text: str) -> str:
    return text.encode().decode("latin-1")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1))
def test_comfyui_reads_every_name_as_it_is(name: str) -> None:
    kind, parameters = parse_content_disposition(file_disposition("image", name))
    assert kind == "form-data"
    assert parameters["name"] == "image"
    assert content_disposition_filename(parameters) == name


@pytest.mark.parametrize("name", ["my photo.png", "фото.png", "a+b&c.png", "100%.png", "it's.png", "a%20b.png"])
def test_an_ordinary_name_is_written_plainly(name: str) -> None:
    assert file_disposition("image", name) == f'form-data; name="image"; filename="{name}"'


def test_a_line_break_in_a_file_name_starts_no_header() -> None:
    assert file_disposition("image", 'a\r\nX: "y.png') == (
        'form-data; name="image"; filename="a%0D%0AX: %22y.png"; filename*=UTF-8\'\'a%0D%0AX%3A%20%22y.png'
    )


@pytest.mark.parametrize(
    ("disposition", "reference"),
    [
        (f'filename="{utf8(PHOTO)}"', PHOTO),
        (STAR, PHOTO),
        (f'filename="=?utf-8?B?0YTQvtGC0L4=?="; {STAR}', PHOTO),
        (f'{STAR}; filename="foto.png"', PHOTO),
        (f'{STAR}; filename="foto.png"', "foto.png"),
        ('filename="=?utf-8?B?0YTQvtGC0L4gMS5wbmc=?="', PHOTO),
        (f'filename="{quote(PHOTO)}"', PHOTO),
        ("filename*=iso-8859-1'en'%e9t%e9.png", "été.png"),
        ("filename*=\"UTF-8''a%20b.png\"", "a b.png"),
        ("filename*=nonsense''a.png; filename=b.png", "b.png"),
        ('filename="a%22b.png"', 'a"b.png'),
        ('filename="a\\"b.png"', 'a"b.png'),
        ('filename="a"b.png"', 'a"b.png'),
        ('filename="50%25 %22x%22.png"', '50%25 "x".png'),
        ('filename="50%25 %22x%22.png"', '50% "x".png'),
        ("filename=photo.png", "photo.png"),
        ('FileName = "photo.png" ; x=y', "photo.png"),
        ('filename="it\'s.png"', "it's.png"),
        ('filename="a;b;c.png"', "a;b;c.png"),
        ('filename="C:\\Users\\x\\photo.png"', "photo.png"),
        ('filename="C:\\\\Users\\\\x\\\\photo.png"', "photo.png"),
        ('filename="sub/photo.png"', "sub/photo.png"),
        ('filename="sub\\photo.png"', "sub/photo.png"),
        ('filename="100%.png"', "100%.png"),
        ('filename="a%20b.png"', "a%20b.png"),
        ('filename="a+b.png"', "a+b.png"),
        ('filename="\xe9t\xe9.png"', "été.png"),
        (utf8('filename="e\u0301.png"'), "\u00e9.png"),
        (utf8('filename="\u00e9.png"'), "e\u0301.png"),
        ('filename="C:\\photo.png', "photo.png"),
    ],
)
def test_the_name_that_the_workflow_refers_to_is_found(disposition: str, reference: str) -> None:
    assert read(disposition, reference) == reference
    assert read(disposition, f"{reference} [input]") == reference


def test_a_reference_with_windows_folders_means_the_same_file() -> None:
    assert read('filename="sub\\photo.png"', "sub\\photo.png") == "sub/photo.png"


@pytest.mark.parametrize(
    ("disposition", "name"),
    [(f'{STAR}; filename="foto.png"', PHOTO), ('filename="a%20b.png"', "a%20b.png"), ('filename=""', "")],
)
def test_without_a_reference_the_most_likely_name_is_used(disposition: str, name: str) -> None:
    assert read(disposition, "another") == name


def test_a_file_does_not_take_the_name_of_another_file() -> None:
    literal, encoded = ("a b.png",), ("a%20b.png", "a b.png")
    assert settle([encoded, literal], {"a b.png"}) == ["a%20b.png", "a b.png"]


@pytest.mark.parametrize("header", [b"", b"form-data", b"form-data; filename=a", b";;=;", b'form-data; name; "x"="y"'])
def test_a_header_without_a_name_reads_as_unnamed(header: bytes) -> None:
    assert parse_disposition(header).name is None


def test_a_text_field_has_no_file_name() -> None:
    assert parse_disposition(b'form-data; name="prompt_id"') == parse_disposition(b"form-data; name=prompt_id")
    assert parse_disposition(b'form-data; name="prompt_id"').filenames == ()


@pytest.mark.parametrize("piece", [b';a="', b";a=\\", b';"', b"; a", b'; a="\\" '])
def test_a_hostile_header_is_read_in_a_moment(piece: bytes) -> None:
    parse_disposition(piece * 40_000)  # would take minutes if each piece were read to the end of the header


@given(st.binary(max_size=200))
def test_any_header_can_be_read(header: bytes) -> None:
    said = parse_disposition(header)
    assert said.filenames == () or len(settle([said.filenames], {"a"})) == 1
