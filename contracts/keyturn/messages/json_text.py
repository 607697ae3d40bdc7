"""JSON as strict as the specification requires, and the readable part of malformed JSON. Pure.

Errors name fields and rules and never repeat a value: a value may be a secret in the wrong field.
"""

import json
from collections import Counter
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from keyturn.errors import MalformedRequestError

_MAX_PROBLEMS: Final = 3


def load_json(body: bytes) -> dict[str, Any]:
    """Return one JSON object, as strict as SPEC's opening requires: UTF-8, unique names, no NaN.

    Raises:
        MalformedRequestError: anything else.
    """
    try:
        document = _STRICT_JSON.decode(body.decode())
    except (ValueError, RecursionError) as exc:
        reason = str(exc) if isinstance(exc, _JsonError) else "the body is not a JSON object"
        raise MalformedRequestError(reason) from None  # the cause repeats the body
    if not isinstance(document, dict):
        raise MalformedRequestError("the body is not a JSON object")
    return document


class _JsonError(ValueError):
    """A rule that JSON itself does not have."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _JsonError("duplicate name in an object")
    for name, value in pairs:
        _check_text(name)
        _check_text(value)
    return document


def _check_text(value: object) -> None:
    """Check the strings of a value, also in nested lists; an object has checked its own."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # a lone surrogate is not text: it raises a ValueError
    elif isinstance(value, list):
        for each in value:
            _check_text(each)


def _refuse_constant(name: str) -> NoReturn:
    raise _JsonError(f"{name} is not JSON")


# `json.loads` would make a new decoder for each message.
_STRICT_JSON: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


def as_text(value: object) -> str | None:
    """Return the value if it is a string, else None."""
    return value if isinstance(value, str) else None


def readable_fields(body: bytes) -> dict[str, Any] | None:
    """Return the fields of a JSON object whose names occur once, whatever else is wrong with it."""
    try:
        # None of these fields is a number, and a number of thousands of digits does not convert.
        document = json.loads(
            body.decode(), object_pairs_hook=_unambiguous, parse_int=_unread, parse_float=_unread
        )
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A name that occurs twice is ambiguous.
    names = Counter(name for name, _ in pairs)
    return {name: value for name, value in pairs if names[name] == 1}


def _unread(number: str) -> None:
    del number


_LAST: Final = {"extra_forbidden": 1, "missing": 2}


def problems(error: ValidationError) -> str:
    """Return the fields and rules that fail, in one line and without a value.

    Wrong values come first, since in a union each other alternative reports fields as unknown or
    missing; then unknown fields, since one often explains a missing one.
    """
    found = error.errors(include_url=False, include_input=False, include_context=False)
    found.sort(key=lambda problem: _LAST.get(problem["type"], 0))
    described = [
        f"{_path(problem['loc'])}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in found[:_MAX_PROBLEMS]
    ]
    more = len(found) - len(described)
    return "; ".join(described) + (f"; and {more} more" if more else "")


def _path(loc: tuple[int | str, ...]) -> str:
    # The sender's own names (a metadata name, an unknown field) are cut short.
    return ".".join(ascii(str(part))[1:-1][:40] for part in loc)
