"""Which bytes a Range asks for: RFC 9110, section 14, one range (SPEC 9.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_workers.gateway.request import ByteRange, Span, parse_range

SIZES = st.integers(0, 10**6) | st.sampled_from([0, 1, 16384, 2**40])


@given(st.integers(0, 2**41), st.integers(0, 2**41), SIZES)
def test_a_span_is_what_slicing_returns(first: int, more: int, size: int) -> None:
    for spec, expected in (
        (f"bytes={first}-{first + more}", slice(first, first + more + 1)),
        (f"bytes={first}-", slice(first, None)),
        (f"bytes=-{first}", slice(-first, None) if first else slice(0, 0)),
    ):
        parsed = parse_range(spec)
        assert parsed is not None
        start, end, _ = expected.indices(size)
        assert parsed.span(size) == (Span(start, end) if start < end else None)


@given(SIZES, st.text("0123456789-", max_size=50).map("bytes={}".format))
def test_a_span_always_lies_within_the_object(size: int, spec: str) -> None:
    parsed = parse_range(spec)
    span = None if parsed is None else parsed.span(size)
    if span is not None:
        assert 0 <= span.first < span.end <= size
        assert span.length == span.end - span.first


@given(st.text(max_size=40) | st.text("bytes=-, 0123456789\t", max_size=40))
def test_any_text_parses_without_an_error(spec: str) -> None:
    parse_range(spec)


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("bytes=0-0", ByteRange(0, 0)),
        ("bytes=0-", ByteRange(0, None)),
        ("bytes=-5", ByteRange(None, 5)),
        ("bytes=-0", ByteRange(None, 0)),
        ("bytes=5-4", None),
        ("bytes=007-09", ByteRange(7, 9)),
        ("Bytes=1-2", ByteRange(1, 2)),  # a range unit's name has no case
        (" bytes=1-2\t", ByteRange(1, 2)),
        ("bytes= 1-2 ", ByteRange(1, 2)),
        # Ignored: the whole object is the answer.
        ("bytes=0-1,3-4", None),
        ("bytes=0-1,", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes", None),
        ("", None),
        ("items=0-1", None),
        ("bytes=1 - 2", None),
        ("bytes =1-2", None),
        ("bytes=+1-2", None),
        ("bytes=1--2", None),
        ("bytes=--1", None),
        ("bytes=0x1-2", None),
        ("bytes=1.0-2", None),
        ("bytes=1-2\n", None),
        ("bytes=١-٢", None),  # digits, and not ASCII's  # noqa: RUF001
        ("bytes=²-3", None),
        ("bytes=" + "9" * 40 + "-", ByteRange(int("9" * 40), None)),
        ("bytes=" + "9" * 41 + "-", None),
        ("bytes=" + "9" * 5000 + "-", None),
    ],
)
def test_forms(spec: str, parsed: ByteRange | None) -> None:
    assert parse_range(spec) == parsed


@pytest.mark.parametrize(
    ("spec", "size", "span"),
    [
        ("bytes=0-99", 10, Span(0, 10)),
        ("bytes=9-9", 10, Span(9, 10)),
        ("bytes=10-10", 10, None),
        ("bytes=10-", 10, None),
        ("bytes=-10", 10, Span(0, 10)),
        ("bytes=-11", 10, Span(0, 10)),
        ("bytes=-1", 10, Span(9, 10)),
        ("bytes=-0", 10, None),
        ("bytes=0-", 0, None),
        ("bytes=0-0", 0, None),
        ("bytes=-1", 0, None),
    ],
)
def test_borders(spec: str, size: int, span: Span | None) -> None:
    parsed = parse_range(spec)
    assert parsed is not None
    assert parsed.span(size) == span


def test_a_suffix_of_an_empty_object_is_the_whole_object() -> None:
    """RFC 9110, 14.1.2: a suffix longer than the representation is satisfied by all of it."""
    suffix, nothing, start = (parse_range(f"bytes={spec}") for spec in ("-5", "-0", "0-"))
    assert suffix is not None
    assert nothing is not None
    assert start is not None
    assert suffix.is_suffix_of_empty(0)
    assert not suffix.is_suffix_of_empty(1)
    assert not nothing.is_suffix_of_empty(0)
    assert not start.is_suffix_of_empty(0)
