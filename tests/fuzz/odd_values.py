"""Unexpected values, drawn from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import random

CANARY: Final = "S3CR3T_in_the_wrong_field_4d1f"
"""A secret that a publisher put into the wrong field: no error and no log may repeat it."""

_TEXTS: Final = (
    "",
    " ",
    "\0",
    "a\0b",
    "\x7f",
    "\x85",
    "\u2028",
    "\u202e",
    "\ufeff",
    "\ufffd",
    "e\u0301",
    "İ",
    "ß",
    "\U0001d518\U0001d52b",
    "١٢٣",
    "\r\nx-evil: 1",
    "../../.keyturn/keyrings/acme.json",
    ".keyturn/keyrings/acme.json",
    "/",
    "a//b",
    "a/../b",
    "*",
    "_all",
    "acme",
    "ACME",
    "-acme",
    "=?utf-8?b?AAAA?=",
    "=?utf-8?q?=",
    "AAAA",
    "AAA",
    "QR==",
    "null",
    "NaN",
    "true",
    "0",
    "-1",
    "1e999",
    "2026-02-30T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "0000-01-01T00:00:00Z",
    "2026-11-24T10:00:60Z",
    "2f6c9a0e-5d3b-4c1a-9f5e-0b7d1c8a4e21",
    "2F6C9A0E-5D3B-4C1A-9F5E-0B7D1C8A4E21",
    "main",
    "m1",
    "upload.requested",
    "sweep.requested",
    "upload.stored",
    "{}",
    "[]",
    "%s%n",
    "${jndi:ldap://x}",
)
_NUMBERS: Final = (
    0,
    -0.0,
    -1,
    1,
    0.5,
    2**31,
    2**53 - 1,
    2**53,
    2**63,
    2**64,
    10**18,
    10**400,
    -(10**400),
    1e308,
    float("nan"),
    float("inf"),
)


def text(rng: random.Random) -> str:
    """Text: known trouble, random characters, or very long."""
    kind = rng.random()
    if kind < 0.65:
        return rng.choice(_TEXTS)
    if kind < 0.9:
        return "".join(_character(rng) for _ in range(rng.randint(0, 12)))
    return rng.choice(("a", "ü", "/a", "\U0001d518", "A")) * rng.choice(
        (32, 33, 63, 64, 900, 901, 1025, 5000)
    )


def _character(rng: random.Random) -> str:
    plane = rng.choice((0x20, 0x80, 0x100, 0xD800, 0xFFFE, 0x1F600))
    return chr(min(plane + rng.randint(0, 0x7F), 0x10FFFF))


def nested(rng: random.Random, depth: int | None = None) -> Any:
    """Lists and objects in one another."""
    value: Any = rng.choice(_TEXTS)
    for _ in range(rng.choice((1, 3, 30, 200)) if depth is None else depth):
        value = [value] if rng.random() < 0.5 else {rng.choice("abc"): value}
    return value


def value(rng: random.Random) -> Any:
    """Any JSON value, and some that are none."""
    found: Any
    match rng.randrange(8):
        case 0 | 1:
            found = text(rng)
        case 2:
            found = CANARY
        case 3:
            found = rng.choice(_NUMBERS)
        case 4:
            found = rng.choice((None, True, False))
        case 5:
            found = nested(rng)
        case 6:
            found = [value(rng) for _ in range(rng.randint(0, 3))]
        case _:
            found = {text(rng): value(rng) for _ in range(rng.randint(0, 3))}
    return found


def raw(rng: random.Random, data: bytes) -> bytes:
    """Bytes that were damaged: bits flipped, cut, doubled, spliced, filled."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(7):
            case 0 | 1 if found:
                found[at % len(found)] ^= 1 << rng.randrange(8)
            case 2:
                del found[at : at + rng.choice((1, 2, 16, len(found)))]
            case 3:
                found[at:at] = rng.randbytes(rng.choice((1, 2, 16)))
            case 4:
                found[at:at] = found[: rng.choice((1, 16, 64))]
            case 5 if found:
                found[at % len(found)] = rng.choice((0, 0x7F, 0x80, 0xFF, 0x22, 0x5C))
            case _:
                other = rng.randrange(len(found) + 1)
                found[min(at, other) : max(at, other)] = b""
    return bytes(found)
