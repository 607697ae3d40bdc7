"""Places where a bucket writer can hide a wrap, so that a rewrap carries it along (SPEC 8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PLACES: Final = (
    "metadata",
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-website-redirect-location",
    "tag",
)
SPELLINGS: Final[dict[str, Callable[[str], str]]] = {
    "as it is": lambda wrap: wrap,
    "without padding": lambda wrap: wrap.rstrip("="),
    "url-safe": lambda wrap: wrap.replace("+", "-").replace("/", "_"),
    "with spaces": lambda wrap: " ".join(wrap[i : i + 20] for i in range(0, len(wrap), 20)),
    "in a file name": lambda wrap: f'attachment; filename="{wrap}"',
    "between letters": lambda wrap: f"abc{wrap.rstrip('=')}xyz",
    "in a path": lambda wrap: f"/reports/{wrap}/index.html",
}


def hide(
    place: str, value: str
) -> tuple[dict[str, str], dict[str, str], str | None, dict[str, str]]:
    """Metadata, content headers, content type and tags with the value in one of them."""
    metadata = {"note": value} if place == "metadata" else {}
    tags = {"team": value} if place == "tag" else {}
    content_type = value if place == "content-type" else None
    headers = {} if metadata or tags or content_type else {place: value}
    return metadata, headers, content_type, tags
