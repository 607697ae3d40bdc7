"""The header `traceparent`: one form is read, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.trace_context import TraceContext

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def test_the_form_of_w3c_is_read_and_written() -> None:
    header = f"00-{TRACE}-{SPAN}-01"
    context = TraceContext.parse(header)
    assert context == TraceContext(int(TRACE, 16), int(SPAN, 16), is_sampled=True)
    assert context is not None
    assert context.header() == header


@pytest.mark.parametrize(("flags", "is_sampled"), [("00", False), ("02", False), ("03", True)])
def test_of_the_flags_only_sampled_is_read(flags: str, is_sampled: bool) -> None:
    context = TraceContext.parse(f"00-{TRACE}-{SPAN}-{flags}")
    assert context is not None
    assert context.is_sampled is is_sampled


@pytest.mark.parametrize(
    "header",
    [
        None,
        7,
        b"00-" + TRACE.encode() + b"-" + SPAN.encode() + b"-01",
        {"traceparent": f"00-{TRACE}-{SPAN}-01"},
        "",
        f"01-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01" * 1000,
        "00-" + "٣" * 32 + f"-{SPAN}-01",  # digits, but not of hex
    ],
)  # fmt: skip
def test_anything_else_is_ignored(header: object) -> None:
    assert TraceContext.parse(header) is None


@given(
    st.builds(
        TraceContext,
        st.integers(1, 2**128 - 1),
        st.integers(1, 2**64 - 1),
        st.booleans(),
    )
)
def test_what_is_written_is_read_again(context: TraceContext) -> None:
    assert TraceContext.parse(context.header()) == context


@given(st.text(max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    context = TraceContext.parse(text)
    assert context is None or len(text) == 55
