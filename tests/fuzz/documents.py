"""Mutations of JSON: of a document's structure, and of its text (SPEC, preamble and 6).

What a document does not hold as a value (a name twice, a bare NaN, escapes of half a
character) is made in its text.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, Final

from tests.fuzz import odd_values

if TYPE_CHECKING:
    import random

Document = dict[str, Any]
# Echoed in a rejection, a report or the audit trail, or an object's name: none may contain a
# secret (SPEC 6.3, 15.3, 16.1).
_REPEATED: Final = ("project", "key", "actor", "reason", "after")
NAMES: Final = (
    "type",
    "upload_id",
    "request_id",
    "rotation_id",
    "sweep_id",
    "project",
    "key",
    "requested_at",
    "content_type",
    "metadata",
    "sealed_key",
    "sealed_kek",
    "customer_key",
    "store",
    "body",
    "inline",
    "staged",
    "size",
    "intake_key",
    "session",
    "ciphertext",
    "expected_generation",
    "plaintext",
    "adopt",
    "master_key",
    "encrypt_plaintext",
    "repair",
    "actor",
    "view",
    "after",
    "limit",
    "known",
    "action",
    "queue",
    "letters",
    "request",
    "outcome",
    "reason",
    "generation",
    "at",
    "code",
    "detail",
    "__proto__",
    "model_config",
)
_TOKENS: Final = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0",
    b"1.0",
    b"0x10",
    b"01",
    b"9" * 4301,
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\\ud83d\\ude00"',
    b"{}",
    b"[]",
    b'{"a":1,"a":2}',
    b"[" * 1500,
    b"{" * 3,
    b"\xff\xfe",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"/* */",
)


def mutated(rng: random.Random, document: Document, others: list[Document]) -> Document:
    """A copy in which some fields are not as they were."""
    made = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = _place(rng, made)
        match rng.randrange(8):
            case 0 if place:
                del place[rng.choice(sorted(place))]
            case 1:
                _put(
                    place,
                    rng.choice((rng.choice(NAMES), odd_values.text(rng))),
                    odd_values.value(rng),
                )
            case 2:
                other = rng.choice(others)
                name = rng.choice(sorted(other))
                _put(place, name, copy.deepcopy(other[name]))
            case 3 if place:
                name = rng.choice(sorted(place))
                place[name] = _of_another_type(place[name])
            case 4 if place:
                first, second = rng.choice(sorted(place)), rng.choice(sorted(place))
                one, other = place[first], place[second]
                _put(place, first, other)
                _put(place, second, one)
            case 5 if place:
                name = rng.choice(sorted(place))
                _put(place, name, _near(rng, place[name]))
            case 6 if place:
                name = rng.choice(sorted(place))
                _put(place, odd_values.text(rng), place.pop(name))
            case _ if place:
                _put(place, rng.choice(sorted(place)), odd_values.value(rng))
    return made


def _place(rng: random.Random, document: Document) -> Document:
    lists = (value for value in document.values() if isinstance(value, list))
    within = (*document.values(), *(each for value in lists for each in value))
    inner = [value for value in within if isinstance(value, dict)]
    return rng.choice(inner) if inner and rng.random() < 0.4 else document


def _put(place: Document, name: str, value: Any) -> None:
    if name not in _REPEATED or odd_values.CANARY not in json.dumps(value):
        place[name] = value


def _of_another_type(value: Any) -> Any:
    match value:
        case bool():
            return int(value)
        case int():
            return str(value)
        case str():
            return [value]
        case dict():
            return list(value.items())
    return {"value": value}


def _near(rng: random.Random, value: Any) -> Any:
    """A value that is nearly the one that it was."""
    match value:
        case bool():
            return not value
        case int():
            return value + rng.choice((-1, 1, 2**31))
        case str() if value:
            at = rng.randrange(len(value))
            between = rng.choice(
                ("", "\0", " ", "=", value[at], value[at].swapcase(), "ü", "\ud800")
            )
            return value[:at] + between + value[at + rng.choice((0, 1)) :]
        case list() | dict():
            return type(value)()
    return odd_values.value(rng)


def encoded(rng: random.Random, document: Document) -> bytes:
    """The document's text, in one of the ways that JSON allows."""
    ascii_only, separators = rng.random() < 0.5, rng.choice(((",", ":"), (", ", ": ")))
    text = json.dumps(document, ensure_ascii=ascii_only, separators=separators)
    return text.encode("utf-8", "surrogatepass")


def broken(rng: random.Random, body: bytes) -> bytes:
    """The same text, damaged as text: tokens put in, names doubled, bytes flipped or cut."""
    match rng.randrange(5):
        case 0:
            at = body.find(b":", rng.randrange(len(body) + 1))
            return body[: at + 1] + rng.choice(_TOKENS) + body[at + 1 :]
        case 1:
            name = rng.choice(NAMES).encode()
            return body.replace(b"{", b'{"' + name + b'":' + rng.choice((b"1", b'"a"')) + b",", 1)
        case 2:
            at = body.find(b'"', rng.randrange(len(body) + 1))
            end = body.find(b'"', at + 1)
            return body[:at] + rng.choice(_TOKENS) + body[end + 1 :] if end > at >= 0 else body
        case 3:
            return rng.choice((b"\xef\xbb\xbf", b" ", b"[", b"\n\n")) + body
    return odd_values.raw(rng, body)
