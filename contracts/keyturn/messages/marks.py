"""Marks: the broker's memory of each project's keyring (SPEC 5.5). Pure.

A bucket writer can restore an earlier state of a keyring. So each change of a keyring leaves a mark
on the stream `keyturn.marks`, signed by an event key under a separate label.
"""

from typing import Annotated, Final, Literal, Self

import orjson
from pydantic import AfterValidator, Field, ValidationError, model_validator

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import MARK_LIMIT, parse_time
from keyturn.messages.fields import (
    EventModel,
    ExtensibleModel,
    Project,
    RequestDigest,
    Rows,
    SecretId,
    ShortName,
    StoreKey,
    Time,
    WrappedSecret,
)
from keyturn.messages.json_text import load_json, problems
from keyturn.topology import KEYRING_MARKED

KekId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_MarkedGeneration = Annotated[int, Field(ge=1, lt=MARK_LIMIT)]

_FIRST_YEAR: Final = 1970


def _check_year(text: str) -> str:
    if parse_time(text).year < _FIRST_YEAR:
        raise ValueError(f"must not be before {_FIRST_YEAR}")
    return text


class InvalidMarkError(MalformedRequestError):
    """A field of the mark has a value that no worker writes."""


class MarkedCustomerKey(ExtensibleModel):
    """A customer key of a keyring, with all that its store needs to give the secret (SPEC 2.6).

    Attributes:
        store: The store's name in the settings.
        key: The store's name of the key.
        secret_id: The secret's id.
        secret_sha256: Hex SHA-256 of the secret.
        wrapped: The secret as the store encrypted it.
        generations: Those that have it.
    """

    store: ShortName
    key: StoreKey
    secret_id: SecretId
    secret_sha256: RequestDigest
    wrapped: WrappedSecret
    generations: Rows[_MarkedGeneration]


class KeyringMarked(EventModel):
    """One state of a project's keyring.

    Attributes:
        project: The project.
        serial: That of the keyring: one more with each change of it.
        digest: Hex SHA-256 of the record's bytes.
        generation: The current generation.
        kek_id: The id of the current user KEK.
        master_key: The id of the master key that the record names.
        customer_keys: Those that a clean end has not cleared. Without them nothing opens, and only
            the keyring has them, too.
        erased: True if the project was erased.
        at: When the mark was published.
    """

    type: Literal["keyring.marked"] = "keyring.marked"
    project: Project
    serial: Annotated[int, Field(ge=0, lt=MARK_LIMIT)]
    digest: RequestDigest
    generation: _MarkedGeneration
    kek_id: KekId
    master_key: ShortName
    customer_keys: Rows[MarkedCustomerKey] | None = None
    erased: Literal[True] | None = None
    at: Annotated[Time, AfterValidator(_check_year)]

    @model_validator(mode="after")
    def _check_generations(self) -> Self:
        named = [number for each in self.customer_keys or () for number in each.generations]
        if len(set(named)) < len(named) or max(named, default=1) > self.generation:
            raise ValueError("customer_keys: each generation once, and none above the current one")
        return self


MARK_MODELS: Final[dict[str, type[KeyringMarked]]] = {KEYRING_MARKED: KeyringMarked}


def encode_mark(mark: KeyringMarked) -> bytes:
    """Return the bytes to sign and publish."""
    return orjson.dumps(mark.model_dump(mode="json", exclude_none=True))


def parse_mark(body: bytes) -> KeyringMarked:
    """Parse a mark. Unknown fields are ignored (SPEC 6.7).

    Raises:
        InvalidMarkError: a field is malformed or out of its bounds.
        MalformedRequestError: the message is not a mark.
    """
    document = load_json(body)
    if document.get("type") != KEYRING_MARKED:
        raise MalformedRequestError(f"type must be {KEYRING_MARKED}")
    try:
        return KeyringMarked.model_validate(document)
    except ValidationError as exc:
        raise InvalidMarkError(problems(exc)) from None
