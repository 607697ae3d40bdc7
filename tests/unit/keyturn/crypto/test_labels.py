"""A label is never ambiguous (SPEC 2 to 6)."""

from __future__ import annotations

import pytest

from keyturn.crypto.labels import label


def test_a_label_is_its_parts_joined_by_zero_bytes() -> None:
    assert label("keyturn/v1/dek", "user", "é") == b"keyturn/v1/dek\0user\0\xc3\xa9"
    assert label("a", "", "b") == b"a\0\0b"


def test_no_two_lists_of_parts_have_the_same_label() -> None:
    labels = [label("a", "bc"), label("ab", "c"), label("abc"), label("a", "b", "c")]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("parts", [("a\0b",), ("a", "b\0"), ("\0", "\0")])
def test_a_part_with_a_zero_byte_is_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no zero byte"):
        label(*parts)


def test_a_part_that_is_no_text_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="parts are UTF-8") as refused:
        label("a", "secret \ud800")
    assert refused.value.__cause__ is None
    assert "secret" not in str(refused.value)
