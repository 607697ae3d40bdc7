"""Marks: what the broker remembers of each project's keyring (SPEC 5.5). Pure.

A bucket writer can put an earlier state of a keyring back. So each change of a keyring
leaves a mark on the stream `keyturn.marks`, signed by an event key under a label of its own.
"""

from typing import Annotated, Final, Literal

import orjson
from pydantic import Field, ValidationError

from keyturn.errors import MalformedRequestError
from keyturn.messages.events import EventModel
from keyturn.messages.fields import (
    Generation,
    Project,
    RequestDigest,
    ShortName,
    Time,
)
from keyturn.messages.json_text import load_json, problems
from keyturn.topology import KEYRING_MARKED

KekId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class KeyringMarked(EventModel):
    """One state of a project's keyring.

    Attributes:
        project: The project.
        serial: That of the keyring: one more with each change of it.
        digest: Hex SHA-256 of the record's bytes.
        generation: The current generation.
        kek_id: The id of the current user KEK.
        master_key: The id of the master key that the record names.
        at: When the mark was published.
    """

    type: Literal["keyring.marked"] = "keyring.marked"
    project: Project
    serial: Annotated[int, Field(ge=0, lt=2**63)]
    digest: RequestDigest
    generation: Generation
    kek_id: KekId
    master_key: ShortName
    at: Time


MARK_MODELS: Final[dict[str, type[KeyringMarked]]] = {KEYRING_MARKED: KeyringMarked}


def encode_mark(mark: KeyringMarked) -> bytes:
    """The bytes that are signed and published."""
    return orjson.dumps(mark.model_dump(mode="json", exclude_none=True))


def parse_mark(body: bytes) -> KeyringMarked:
    """Parse a mark. Unknown fields are ignored (SPEC 6.7).

    Raises:
        MalformedRequestError: not a mark that this version knows.
    """
    document = load_json(body)
    if document.get("type") != KEYRING_MARKED:
        raise MalformedRequestError(f"type must be {KEYRING_MARKED}")
    try:
        return KeyringMarked.model_validate(document)
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None
