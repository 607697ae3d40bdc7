"""The query of an object's URL: links and names of downloads (SPEC 9.3)."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import MalformedRequestError
from keyturn_workers.gateway.request import Link, Query, link_query

TOKEN = "t" * 43


@pytest.mark.parametrize("inline", [False, True])
def test_a_link_is_read_as_it_was_written(inline: bool) -> None:
    link = Link(1764151200, inline, TOKEN)
    query = link_query(link)
    assert query == f"expires=1764151200{'&inline=1' * inline}&token={TOKEN}"
    assert Query(query.encode()).link() == link
    assert TOKEN not in repr(link)


@pytest.mark.parametrize(
    "query",
    [
        f"token={TOKEN}&expires=5",
        f"expires=5&token={TOKEN}&download=x&download=y&utm_source=mail&utm_source=mail",
        f"%65xpires=%35&tok%65n={TOKEN}",
        f"&&expires=5&&token={TOKEN}&",
        f"expires=5&token={TOKEN}&=&inlin=1&INLINE=1&Token=x&%ff=%ff",
    ],
)
def test_order_encoding_and_other_parameters_have_no_meaning(query: str) -> None:
    assert Query(query.encode()).link() == Link(5, inline=False, token=TOKEN)


@pytest.mark.parametrize(
    "query",
    [
        f"token={TOKEN}",
        f"expires=5&expires=5&token={TOKEN}",
        f"expires=5&token={TOKEN}&token={TOKEN}",
        f"expires=5&inline=1&inline=1&token={TOKEN}",
        f"expires=5&inline=1&inline&token={TOKEN}",
        *(
            f"expires={quote(expires)}&token={TOKEN}"
            for expires in (
                "", "0", "05", "+5", "-5", " 5", "5 ", "5.0", "5e3", "0x5", "\u0665", "5" * 16
            )
        ),
        f"expires=+5&token={TOKEN}",
        f"expires=5;token={TOKEN}&token=x&token=y",
        *(
            f"expires=5&inline={inline}&token={TOKEN}"
            for inline in ("", "0", "true", "01", "+1", "2", "%31%20")
        ),
        *(
            f"expires=5&token={token}"
            for token in ("t" * 42, "t" * 44, "t" * 42 + "%3D", "t" * 42 + "+", "t" * 42 + "%FF")
        ),
        "token",
        "token=",
        "%74oken",
    ],
)  # fmt: skip
def test_a_malformed_link_is_a_link_to_nothing(query: str) -> None:
    """It must not become a request by API key: the query says `token`."""
    parsed = Query(query.encode())
    assert parsed.is_link
    assert parsed.link() is None


@pytest.mark.parametrize("query", ["", "&", "expires=5", "inline=1", "Token=x", "tokens=x", "a"])
def test_a_query_without_a_token_is_no_link(query: str) -> None:
    parsed = Query(query.encode())
    assert not parsed.is_link
    assert parsed.link() is None


@given(st.binary(max_size=60))
def test_any_bytes_are_a_query(raw: bytes) -> None:
    query = Query(raw)
    assert query.link() is None or query.is_link
    try:
        name = query.download_name()
    except MalformedRequestError:
        return
    assert name is None or not {"/", "\\", "\0", "\n"} & set(name)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("", None),
        ("downloads=x", None),
        ("download=report.pdf", "report.pdf"),
        ("x=1&download=q3+report.pdf", "q3 report.pdf"),
        ("download=%C3%BC%20%22;.pdf", 'ü ";.pdf'),
        (f"download={'n' * 255}", "n" * 255),
        (f"download={quote('ü' * 127)}", "ü" * 127),
        ("download=..", ".."),
    ],
)
def test_a_downloads_name(query: str, name: str | None) -> None:
    assert Query(query.encode()).download_name() == name


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("download", "1 to 255 bytes"),
        ("download=", "1 to 255 bytes"),
        (f"download={'n' * 256}", "1 to 255 bytes"),
        (f"download={quote('ü' * 128)}", "1 to 255 bytes"),
        ("download=a%0D%0Ab", "control character"),
        ("download=a%C2%85b", "control character"),
        ("download=a%00", "control character"),
        ("download=%7F", "control character"),
        ("download=a/b", "control characters, /"),
        ("download=a%2Fb", "control characters, /"),
        ("download=a%5Cb", "control characters, /"),
        ("download=%FF", "not UTF-8"),
        ("download=%ED%A0%80", "not UTF-8"),
        ("download=a&download=a", "repeated"),
    ],
)
def test_what_is_no_name_of_a_download(query: str, why: str) -> None:
    with pytest.raises(MalformedRequestError, match=why):
        Query(query.encode()).download_name()
