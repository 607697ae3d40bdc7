"""S3's XML documents: every character of a key survives, and a cut document is an error."""

from __future__ import annotations

from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_workers.storage.s3_wire import decode_names, find_columns, find_rows, find_text

_TEXT = st.text(st.sampled_from("%+=&;_#aF2 3\n\r~/\u00e9\u65e5\U0001f5dd'\"<>\x01"), max_size=12)


@given(st.lists(_TEXT, max_size=4))
def test_texts_are_read_as_they_were_written(texts: list[str]) -> None:
    rows = "".join(f"<Row>\n <Other/><Name>{escape(text)}</Name></Row>" for text in texts)
    (names,) = find_columns(find_rows("Row", f"<Rows>{rows}</Rows>".encode()), "Name")
    assert list(names) == texts


@given(st.lists(_TEXT, max_size=4))
def test_names_are_decoded_as_they_were_encoded(names: list[str]) -> None:
    assert list(decode_names([quote(name, safe="") for name in names])) == names


def test_references_are_replaced_once() -> None:
    body = b"<Key>&amp;lt;&#39;&#x1F5DD;&quot;&apos;&#1;&nbsp;</Key>"
    assert find_text("Key", body) == "&lt;'\U0001f5dd\"'\x01&nbsp;"


def test_an_element_may_be_absent_or_empty() -> None:
    assert find_text("Key", b"<Keys>a</Keys>") is None
    assert find_text("Key", b"<Key/>") == find_text("Key", b"<Key></Key>") == ""
    assert find_rows("Row", b"<Rows></Rows>") == []
    assert find_columns([], "Name") == [[]]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"<Row><Name>a</Name>", "without an end"),
        (b"<Row></Row>", "lacks"),
        (b"<Row><Name>a</Row>", "lacks"),
        (b"<Row><Name>a</Name><Name>b</Name></Row>", "lacks"),
        (b"<Row><Name>\xff</Name></Row>", "decode"),
        (b"<Row><Name>&#xD800;</Name></Row>", "surrogates"),
        (b"<Row><Name>&#x110000;</Name></Row>", "range"),
    ],
)
def test_what_is_not_whole_is_an_error(body: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        find_columns(find_rows("Row", body), "Name")
