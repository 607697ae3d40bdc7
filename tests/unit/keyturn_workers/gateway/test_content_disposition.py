"""Content-Disposition (RFC 6266, RFC 8187)."""

from __future__ import annotations

from email.message import Message
from typing import Literal
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.identifiers import is_object_key
from keyturn_workers.gateway.read import content_disposition, filename_of


@pytest.mark.parametrize(
    ("filename", "parameters"),
    [
        ("report.pdf", 'filename="report.pdf"'),
        ("q3; report (1).pdf", 'filename="q3; report (1).pdf"'),
        ("q3 'a'.pdf", "filename=\"q3 'a'.pdf\""),
        ('a"b.pdf', "filename=\"a_b.pdf\"; filename*=UTF-8''a%22b.pdf"),
        ("100%.pdf", "filename=\"100_.pdf\"; filename*=UTF-8''100%25.pdf"),
        ("ü €.pdf", "filename=\"_ _.pdf\"; filename*=UTF-8''%C3%BC%20%E2%82%AC.pdf"),
        ("*'()", 'filename="*\'()"'),
        ("ü*'()", "filename=\"_*'()\"; filename*=UTF-8''%C3%BC%2A%27%28%29"),
        ("a\\b", "filename=\"a_b\"; filename*=UTF-8''a%5Cb"),
    ],
)
@pytest.mark.parametrize("disposition", ["attachment", "inline"])
def test_names(
    filename: str, parameters: str, disposition: Literal["attachment", "inline"]
) -> None:
    assert content_disposition(disposition, filename) == f"{disposition}; {parameters}"


@given(st.text(min_size=1, max_size=40).filter(is_object_key))
def test_every_segment_of_a_key_is_a_header_that_parsers_read(segment: str) -> None:
    """The value is one line of ASCII, and the standard library's parser finds the name in it."""
    name = filename_of(segment)
    value = content_disposition("attachment", name)
    assert value.isascii()
    assert value.isprintable()
    message = Message()
    message["content-disposition"] = value
    assert message.get_content_disposition() == "attachment"
    if "filename*" in value:
        assert unquote(value.partition("filename*=UTF-8''")[2]) == name
    else:
        assert value == f'attachment; filename="{name}"'


@pytest.mark.parametrize(
    ("object_key", "filename"),
    [
        ("report.pdf", "report.pdf"),
        ("reports/2026/q3.pdf", "q3.pdf"),
        ("reports/..\\..\\q3.pdf", ".._.._q3.pdf"),
        ("reports/links", "links"),
    ],
)
def test_an_objects_filename_is_its_keys_last_segment(object_key: str, filename: str) -> None:
    assert filename_of(object_key) == filename
