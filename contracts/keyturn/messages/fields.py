"""The types of fields that requests and events share (SPEC 1, 6). Pure."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from keyturn import metadata as object_metadata
from keyturn.crypto import validate_base64
from keyturn.errors import MalformedRequestError
from keyturn.identifiers import (
    PROJECT_PATTERN,
    SHORT_NAME_PATTERN,
    TIME_PATTERN,
    UUID_PATTERN,
    check_object_key,
    parse_time,
)
from keyturn.topology import DEAD_QUEUES


def _check_time(text: str) -> str:
    parse_time(text)
    return text


def _check_content_type(text: str) -> str:
    _as_value_error(object_metadata.check_content_type, text)
    return text


def _check_caller(caller: dict[str, str]) -> dict[str, str]:
    _as_value_error(object_metadata.encode_caller_metadata, caller)
    return caller


def _check_distinct(keys: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(keys)) < len(keys):
        raise ValueError("keys must be distinct")
    return keys


def _as_value_error(check: Callable[[Any], object], value: object) -> None:
    try:
        check(value)
    except MalformedRequestError as exc:
        raise ValueError(exc.detail) from exc


Project = Annotated[str, Field(pattern=PROJECT_PATTERN)]
ShortName = Annotated[str, Field(pattern=SHORT_NAME_PATTERN)]
RequestId = Annotated[str, Field(pattern=UUID_PATTERN)]
Time = Annotated[str, Field(pattern=TIME_PATTERN), AfterValidator(_check_time)]
Key = Annotated[
    str,
    Field(min_length=1, description="1-900 bytes of UTF-8; see SPEC 1 for what it must not hold"),
    AfterValidator(check_object_key),
]
DELETED_KEYS = 1000
"""Keys that one request deletes at most."""
DeletedKeys = Annotated[
    tuple[Key, ...],
    Field(
        strict=False,
        min_length=1,
        max_length=DELETED_KEYS,
        json_schema_extra={"uniqueItems": True},
    ),
    AfterValidator(_check_distinct),
]
Base64 = Annotated[
    str,
    Field(json_schema_extra={"contentEncoding": "base64"}),
    AfterValidator(validate_base64),
]
ContentType = Annotated[
    str, Field(pattern=r"^[\x20-\x7e]{0,1024}$"), AfterValidator(_check_content_type)
]
CallerMetadata = Annotated[
    dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], str],
    Field(description="At most 1 KiB of names and values on the wire; no name begins with enc-"),
    AfterValidator(_check_caller),
]
RequestDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
REASON_MAX_CHARACTERS = 500
_NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f]+$"
# A person, or a process that acts for one: a name, never a secret (SPEC 15.3).
Actor = Annotated[str, Field(max_length=200, pattern=_NO_CONTROLS)]
# What a person gives as the reason, in one line.
Reason = Annotated[str, Field(max_length=REASON_MAX_CHARACTERS, pattern=_NO_CONTROLS)]
CODE_PATTERN = r"^[a-z0-9_]{1,64}$"
Code = Annotated[str, Field(pattern=CODE_PATTERN)]
DeadLettersAction = Literal["replay", "discard"]
DeadLetterQueue = Annotated[str, Field(pattern=f"^({'|'.join(map(re.escape, DEAD_QUEUES))})$")]
QueueName = Annotated[str, Field(pattern=r"^[a-z.-]{1,64}$")]
Generation = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
# JSON has no infinity, but its readers take 1e999 for one.
Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_T = TypeVar("_T")
# A list in JSON, which strict models would not take for a tuple.
Rows = Annotated[tuple[_T, ...], Field(strict=False)]


class StrictModel(BaseModel):
    """Frozen; refuses unknown fields and converts no types. Errors repeat no values."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


class ExtensibleModel(BaseModel):
    """As `StrictModel`, but readers ignore fields that they do not know (SPEC 6.7)."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class RequestOrigin:
    """Who signed a request, and which bytes: what its events name (SPEC 6.7).

    `request` is the SHA-256 of the request's body as signed, in 64 hex digits. `actor` is the
    person whom the request names, if any (SPEC 15.3). The bytes contain it, so it takes no part in
    comparisons, and events do not name it.
    """

    publisher: str
    request: str
    actor: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, publisher: str, body: bytes, actor: str | None = None) -> "RequestOrigin":
        """The origin of a request with these bytes."""
        return cls(publisher, hashlib.sha256(body).hexdigest(), actor)
