"""Cutting tables into pages, and matching their rows with a text. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypeVar

from keyturn_workers.console.model.rows import PAGE_MAX_SIZE, Page

T = TypeVar("T")


def page_of(
    matching: Sequence[T],
    page: int,
    size: int,
    *,
    total: int,
    as_of: datetime | None,
    is_complete: bool,
    has_older: bool = False,
) -> Page[T]:
    """One page of the rows that match; a page that does not exist is the nearest one."""
    size = min(max(1, size), PAGE_MAX_SIZE)
    pages = max(1, -(-len(matching) // size))
    page = min(max(1, page), pages)
    return Page(
        rows=tuple(matching[(page - 1) * size : page * size]),
        total=total,
        matching=len(matching),
        page=page,
        pages=pages,
        as_of=as_of,
        is_complete=is_complete,
        has_older=has_older,
    )


def matches(text: str, values: Iterable[str | None]) -> bool:
    """Whether each word of the text occurs in one of the values, in upper or lower case."""
    words = text.casefold().split()
    if not words:
        return True
    line = "\n".join(value for value in values if value).casefold()
    return all(word in line for word in words)
