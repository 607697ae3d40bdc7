"""A project's keys, as the gateway describes them to a reader of its own (SPEC 9.8). Pure.

The description has no key. `wrapped` opens only with the customer's KMS.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from keyturn.errors import UnexpectedResponseError
from keyturn.messages.fields import ExtensibleModel, Rows

KEYS_MAX_BYTES: Final = 4 * 1024 * 1024
"""Room for hundreds of rotations whose sweeps have not ended."""


_Number = Annotated[int, Field(ge=0)]


class WrappedSecret(ExtensibleModel):
    """A customer secret, as the customer's KMS encrypted it.

    Attributes:
        store: The KMS, by its name in the operator's settings.
        key: The key of the KMS: an AWS key's ARN, or a transit key's name.
        secret_id: The secret's id, which labels of objects name.
        wrapped: The encrypted secret: base64 of AWS's ciphertext, or Vault's text.
        context: What the KMS demands to decrypt it: AWS's encryption context, or Vault's
            `associated_data`.
    """

    store: str
    key: str
    secret_id: str
    wrapped: str
    context: dict[str, str] | str


class GenerationKeys(ExtensibleModel):
    """A generation that objects may still be of.

    Attributes:
        generation: Its number.
        dek_since: The generation whose request its DEKs are newer than; 0 for none.
        customer_key: What its wraps need besides the API key; None if they need nothing.
    """

    generation: _Number
    dek_since: _Number
    customer_key: WrappedSecret | None = None


class ProjectKeys(ExtensibleModel):
    """The keys that a project's objects need.

    Attributes:
        dek_floor: No wrap below it is to be trusted; 0 for none.
        generations: The oldest first; the last is the current one.
    """

    dek_floor: _Number
    generations: Annotated[Rows[GenerationKeys], Field(min_length=1)]


def parse_keys(document: Mapping[str, Any]) -> ProjectKeys:
    """Return the keys in a response.

    Raises:
        UnexpectedResponseError: it does not describe a project's keys.
    """
    try:
        return ProjectKeys.model_validate(document)
    except ValidationError as exc:
        raise UnexpectedResponseError(
            "the response does not describe the keys", status=200
        ) from exc
