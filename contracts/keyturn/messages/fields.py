"""The types of fields that requests and events share (SPEC 1, 6). Pure."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from keyturn import metadata as object_metadata
from keyturn.crypto.base64 import validate_base64
from keyturn.errors import MalformedRequestError
from keyturn.identifiers import (
    PROJECT_PATTERN,
    SHORT_NAME_PATTERN,
    TIME_PATTERN,
    UUID_PATTERN,
    check_object_key,
    parse_time,
)
from keyturn.request_origin import RequestOrigin
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
    Field(
        min_length=1, description="1-900 bytes of UTF-8; see SPEC 1 for names that are not allowed"
    ),
    AfterValidator(check_object_key),
]
DELETED_KEYS = 1000
"""The maximum number of keys that one request deletes."""
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
# A person's reason, in one line.
Reason = Annotated[str, Field(max_length=REASON_MAX_CHARACTERS, pattern=_NO_CONTROLS)]
# A key of a customer key's store: an AWS key's ARN, or a transit key's name (SPEC 2.6).
StoreKey = Annotated[str, Field(pattern=r"^[\x20-\x7e]{1,2048}$")]
# The id of a customer secret, and the secret as AWS or Vault encrypted it.
SecretId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
WrappedSecret = Annotated[
    str, Field(max_length=1024, pattern=r"^(vault:v[0-9]+:)?[A-Za-z0-9+/]+={0,2}$")
]
CODE_PATTERN = r"^[a-z0-9_]{1,64}$"
Code = Annotated[str, Field(pattern=CODE_PATTERN)]
DeadLettersAction = Literal["replay", "discard"]
DeadLetterQueue = Annotated[str, Field(pattern=f"^({'|'.join(map(re.escape, DEAD_QUEUES))})$")]
QueueName = Annotated[str, Field(pattern=r"^[a-z.-]{1,64}$")]
Generation = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
# JSON has no infinity, but its readers parse 1e999 as one.
Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_T = TypeVar("_T")
# A list in JSON, which strict models do not accept as a tuple.
Rows = Annotated[tuple[_T, ...], Field(strict=False)]


class StrictModel(BaseModel):
    """Frozen; refuses unknown fields and converts no types. Errors repeat no values."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


class ExtensibleModel(BaseModel):
    """As `StrictModel`, but readers ignore unknown fields (SPEC 6.7)."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)


class EventModel(ExtensibleModel):
    """The common fields of all events."""

    at: Time
    # The publisher of the request; absent if no request began it.
    publisher: ShortName | None = None
    request: RequestDigest | None = None

    @property
    def origin(self) -> RequestOrigin | None:
        """The publisher that signed the event's request, and the digest of its bytes."""
        if self.publisher is None or self.request is None:
            return None
        return RequestOrigin(self.publisher, self.request)
