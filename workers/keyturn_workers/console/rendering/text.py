"""Text of values on a page: untrusted text, numbers, times (SPEC 16.2). Pure.

Any text from a bucket, a message or a person is untrusted. Jinja2 escapes it; `visible` also shows
characters that would hide or reorder text, such as control and bidirectional characters.
"""

import math
import re
from datetime import UTC, datetime
from typing import Final

from markupsafe import Markup, escape

from keyturn.identifiers import parse_time

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400
_UNITS: Final = ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min"), (1, "s"))
_SHOWN_CHARACTERS: Final = 4096
_STALE_S: Final = 30
_OPTION: Final = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def visible(text: object, limit: int = _SHOWN_CHARACTERS) -> Markup:
    """Return untrusted text, isolated, with unprintable characters as their code points.

    Spaces at an end and in a row are kept, since `a` and `a ` are two object keys.
    """
    shown = str(text)
    cut = len(shown) - limit
    if cut > 0:
        shown = shown[:limit]
    if shown.isprintable():
        body = escape(shown)
    else:
        body = Markup().join(_character(character) for character in shown)
    if cut > 0:
        body += Markup('<span class="code-point">… {} more characters</span>').format(cut)
    return Markup('<bdi class="text">{}</bdi>').format(body)


def _character(character: str) -> Markup:
    if character.isprintable():
        return escape(character)
    return Markup('<span class="code-point">U+{:04X}</span>').format(ord(character))


def plain(text: object, limit: int = 200) -> str:
    """Return untrusted text for a place without markup, such as an attribute or a title."""
    shown = "".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in str(text)[:limit])
    return shown if len(str(text)) <= limit else f"{shown}…"


def sentence(text: str) -> str:
    """Return a non-empty text with a capital letter at its beginning and a period at its end."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}." if text else ""


def whole_options(words: str) -> Markup:
    """Return text that keeps options such as `--repair` on one line: browsers break at hyphens."""
    whole = Markup('<span class="option">{}</span>')
    return Markup(_OPTION.sub(lambda found: whole.format(found[0]), escape(words)))  # noqa: S704 - escaped


def number(value: float | None) -> str:
    """Return `12,345`; a dash if unknown."""
    return "—" if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Return a rate with about three significant digits; a whole number without decimals."""
    if value is None:
        return "—"
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2  # noqa: PLR2004
    return f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Return the two largest units: `45 s`, `3 min 20 s`, `2 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return "—"
    left = round(max(seconds, 0))
    parts: list[str] = []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
        if len(parts) == 2:  # noqa: PLR2004
            break
    return " ".join(part for part in parts if part) or "0 s"


def ago(at: datetime, now: datetime) -> str:
    """Return `3 min ago`, `in 2 h` or `now`: one unit, as the page's script writes it, too."""
    seconds = (now - at).total_seconds()
    size = abs(seconds)
    if size < 1:
        return "now"
    for unit_s, unit in _UNITS:
        if size >= unit_s:
            count = f"{int(size // unit_s)} {unit}"
            return f"{count} ago" if seconds > 0 else f"in {count}"
    return "now"  # pragma: no cover


def is_stale(at: datetime, now: datetime) -> bool:
    """Return whether a part of a page is so old that it must say so itself."""
    return (now - at).total_seconds() > _STALE_S


def clock_time(at: datetime, now: datetime, *, is_exact: bool = False) -> str:
    """Return a time in UTC: with seconds today or if exact; with the date on another day."""
    at = at.astimezone(UTC)
    is_today = at.date() == now.astimezone(UTC).date()
    day = "" if is_today else "%Y-%m-%d "
    shape = f"{day}%H:%M:%S UTC" if is_today or is_exact else f"{day}%H:%M UTC"
    return at.strftime(shape)


def short_time(at: datetime, now: datetime) -> str:
    """Return a time in UTC that fits one line with its age: today the minute, otherwise the day."""
    at = at.astimezone(UTC)
    return at.strftime("%H:%M UTC" if at.date() == now.astimezone(UTC).date() else "%Y-%m-%d")


def moment(at: datetime | str | None) -> datetime | None:
    """Return an instant from a message's text."""
    return parse_time(at) if isinstance(at, str) else at


def evidence_date(text: str) -> str:
    """Return a date of evidence in words; with the fraction of a second if it has one."""
    return text.replace("T", " ").removesuffix("Z").removesuffix(".000000") + " UTC"


def iso(at: datetime) -> str:
    """Return the value of a `datetime` attribute."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
