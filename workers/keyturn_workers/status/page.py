"""One page of rows: where it is cut, and its digest (SPEC 16.1). Pure.

A report must stay well below what a broker and its readers take comfortably. So a page ends after
`MAX_BYTES` of JSON, and the next one begins there.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import orjson
from pydantic import BaseModel

MAX_BYTES: Final = 512 * 1024

RowT = TypeVar("RowT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Entry(Generic[RowT]):
    """What was inspected at one position: its row, or None if it has none."""

    position: str
    row: RowT | None


@dataclass(frozen=True, slots=True)
class Page(Generic[RowT]):
    """The rows of a page, and the position after which the next one begins; None at the end."""

    rows: tuple[RowT, ...]
    next: str | None


def cut(
    entries: Sequence[Entry[RowT]], following: str | None, limit: int, max_bytes: int = MAX_BYTES
) -> Page[RowT]:
    """The entries as a page of at most `limit` rows and about `max_bytes`; at least one row.

    `following` is the position of the next page if none is cut.
    """
    rows: list[RowT] = []
    size_bytes, position = 0, None
    for entry in entries:
        if entry.row is not None:
            size_bytes += len(_encode(entry.row))
            if rows and (len(rows) == limit or size_bytes > max_bytes):
                return Page(tuple(rows), position)
            rows.append(entry.row)
        position = entry.position
    return Page(tuple(rows), following)


def digest(rows: Sequence[BaseModel]) -> str:
    """SHA-256 over the canonical JSON of the rows, in hex."""
    return hashlib.sha256(b"[" + b",".join(map(_encode, rows)) + b"]").hexdigest()


def _encode(row: BaseModel) -> bytes:
    return orjson.dumps(row.model_dump(mode="json", exclude_none=True), option=orjson.OPT_SORT_KEYS)
