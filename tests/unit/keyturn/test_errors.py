"""One tree of errors, and one class for each code (SPEC 12)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import pytest

from keyturn import errors
from keyturn.errors import (
    AlreadyExistsError,
    ChunkError,
    CodedError,
    CommitmentError,
    KeyturnError,
    PermanentError,
    SealError,
    SignatureError,
    TransientError,
    UnexpectedResponseError,
    WaitTimeoutError,
    all_errors,
)

_ROOT = Path(__file__).parents[3]
_SPEC = (_ROOT / "docs" / "spec.md").read_text()


def _tree(cls: type[Exception], depth: int = 0) -> list[tuple[int, str]]:
    """Each class below this one of the module `errors`, and how far below."""
    below = [sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__]
    return [(depth, cls.__name__), *(row for sub in below for row in _tree(sub, depth + 1))]


def test_the_tree_that_the_module_draws_is_the_tree_of_its_classes() -> None:
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        row = re.match(r"    ([ │├└─]*)(\w+Error)\b", line)
        if row is not None:
            drawn.append((len(row[1]) // 5 + (len(row[1]) % 5 > 0), row[2]))
    assert sorted(drawn) == sorted(_tree(KeyturnError))


def test_the_codes_are_those_of_the_specification() -> None:
    section = _SPEC[_SPEC.index("\n## 12") :]
    section = section[: section.index("\n## ", 1)]
    rows = [row for row in section.splitlines() if "Not implemented yet" not in row]
    specified = {code for row in rows for code in re.findall(r"^\| `([a-z_]+)`", row)}
    assert set(all_errors()) == specified


def test_a_code_is_of_one_class_and_permanent_or_transient() -> None:
    classes = list(all_errors().values())
    assert len(classes) == len(set(classes))
    for code, cls in all_errors().items():
        assert cls.code == code
        assert issubclass(cls, TransientError) is cls.transient
        assert issubclass(cls, PermanentError) is not cls.transient


def test_what_is_transient_is_so_in_typescript() -> None:
    source = (_ROOT / "clients/typescript/src/errors.ts").read_text()
    pattern = re.search(r"TRANSIENT =\s+/(.+)/;", source)
    assert pattern is not None
    for code, cls in all_errors().items():
        assert (re.search(pattern[1], code) is not None) is cls.transient, code


def test_a_subclass_elsewhere_neither_adds_a_code_nor_takes_one_away() -> None:
    before = all_errors()

    class OursError(AlreadyExistsError):
        code: ClassVar[str] = "ours"

    assert str(OursError()) == "ours"
    assert all_errors() == before


@pytest.mark.parametrize(("code", "cls"), sorted(all_errors().items()))
def test_a_coded_error_reads_as_its_code_and_its_detail(code: str, cls: type[CodedError]) -> None:
    assert str(cls()) == code
    assert str(cls("why")) == f"{code}: why"
    assert cls("why").detail == "why"


def test_a_wait_that_timed_out_is_a_timeout_of_the_standard_library_too() -> None:
    with pytest.raises(TimeoutError):
        raise WaitTimeoutError


def test_an_unexpected_response_carries_its_status() -> None:
    error = UnexpectedResponseError("a proxy's page", status=502)
    assert (str(error), error.status) == ("a proxy's page", 502)


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (SealError, "does not open"),
        (CommitmentError, "the key does not match the header"),
        (ChunkError, "a chunk is not authentic, or the stream is cut or too long"),
        (SignatureError, "the signature does not verify"),
    ],
)
def test_what_does_not_open_says_no_more_than_its_class(cls: type[SealError], text: str) -> None:
    """A caller who can tell failures apart can use a reader as an oracle."""
    assert str(cls()) == text
    if cls is not SealError:
        with pytest.raises(TypeError):
            cls("a more precise reason")
