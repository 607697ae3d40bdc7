"""A project's keys, as the gateway describes them to a reader of its own (SPEC 9.8). Pure.

The description has no key. `wrapped` opens only with the customer's KMS.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from keyturn.errors import UnexpectedResponseError

KEYS_MAX_BYTES: Final = 4 * 1024 * 1024
"""Room for hundreds of rotations whose sweeps have not ended."""


@dataclass(frozen=True, slots=True)
class WrappedSecret:
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
    context: Mapping[str, str] | str


@dataclass(frozen=True, slots=True)
class GenerationKeys:
    """A generation that objects may still be of.

    Attributes:
        generation: Its number.
        dek_since: The generation whose request its DEKs are newer than; 0 for none.
        customer_key: What its wraps need besides the API key; None if they need nothing.
    """

    generation: int
    dek_since: int
    customer_key: WrappedSecret | None


@dataclass(frozen=True, slots=True)
class ProjectKeys:
    """The keys that a project's objects need.

    Attributes:
        dek_floor: No wrap below it is to be trusted; 0 for none.
        generations: The oldest first; the last is the current one.
    """

    dek_floor: int
    generations: tuple[GenerationKeys, ...]


def parse_keys(document: Mapping[str, Any]) -> ProjectKeys:
    """Return the keys in a response.

    Raises:
        UnexpectedResponseError: it does not describe a project's keys.
    """
    floor, generations = 0, tuple[GenerationKeys, ...]()
    try:
        floor = _number(document["dek_floor"])
        generations = tuple(_generation(entry) for entry in document["generations"])
    except (AttributeError, KeyError, TypeError, ValueError):
        generations = ()
    if not generations:
        raise UnexpectedResponseError("the response does not describe the keys", status=200)
    return ProjectKeys(floor, generations)


def _generation(entry: Mapping[str, Any]) -> GenerationKeys:
    customer_key = entry.get("customer_key")
    return GenerationKeys(
        _number(entry["generation"]),
        _number(entry["dek_since"]),
        None if customer_key is None else _wrapped_secret(customer_key),
    )


def _wrapped_secret(fields: Mapping[str, Any]) -> WrappedSecret:
    context = fields["context"]
    texts = [fields[name] for name in ("store", "key", "secret_id", "wrapped")]
    parts = [context] if isinstance(context, str) else [*context, *context.values()]
    if not all(isinstance(text, str) for text in (*texts, *parts)):
        raise TypeError("text")
    return WrappedSecret(*texts, context)


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("number")
    return value
