"""A project's keyring as the sealed part of its record. Pure.

See SPEC 5.1 and 5.2. A record that does not open under its own master key, or that belongs to
another project, was forged or moved: no object may be wrapped by it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from keyturn.crypto.base64 import from_base64, to_base64, validate_base64
from keyturn.crypto.keys import Secret, kek_id
from keyturn.errors import CorruptObjectError
from keyturn.identifiers import is_short_name, is_uuid, parse_time
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.customer_keys import CustomerKey, KeyName
from keyturn_workers.core.erasure import Erasure, KeyState, StoreAnswer
from keyturn_workers.core.keyring import Generation, Keyring

_KEK_BYTES: Final = 32
_ID: Final = re.compile(r"[0-9a-f]{16}")  # of a KEK or a customer secret
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MAX_REASON: Final = 500
_MAX_STORE_KEY: Final = 2048
"""The longest name of a key in a store: AWS allows ARNs of 2,048 characters."""
_MAX_WRAPPED: Final = 1024
"""AWS's ciphertext of 32 bytes has about 250 characters, Vault's text about 90."""
_MAX_LEASE_S: Final = 10**6
_MAX_GENERATION: Final = 10**18 - 1
_MAX_SERIAL: Final = 2**63 - 1
_PERMISSIONS: Final = ("allowed", "forbidden")
_ERASING: Final = "erasing"
_ERASED: Final = "erased"


def record_version(keyring: Keyring) -> int:
    """The version of the record: 2 if it has what a reader of version 1 must not overlook."""
    entries = (*keyring.history, keyring.current)
    return 2 if any(entry.customer_key is not None for entry in entries) else 1


def keyring_to_json(keyring: Keyring) -> dict[str, Any]:
    """The sealed part of the record."""
    return {
        **_entry_json(keyring.current),
        "plaintext": _permission(allowed=keyring.plaintext_allowed),
        "history": [_entry_json(entry) for entry in keyring.history],
        **({"lease_s": keyring.lease_s} if keyring.lease_s else {}),
        **_origin_json(keyring.origin),
        "serial": keyring.serial,
        **_set_json(keyring),
    }


def _entry_json(entry: Generation) -> dict[str, Any]:
    fields: dict[str, Any] = {
        **_origin_json(entry.origin),
        "generation": entry.generation,
        "kek_id": entry.kek_id,
        "kek": _kek_json(entry.kek),
        "rotation_id": entry.rotation_id,
        "requested_at": entry.requested_at,
        "at": entry.at,
    }
    if entry.customer_key is not None:
        fields["customer_key"] = customer_key_to_json(entry.customer_key)
    return fields


def _origin_json(origin: RequestOrigin | None) -> dict[str, str]:
    return {} if origin is None else {"publisher": origin.publisher, "request": origin.request}


def _set_json(keyring: Keyring) -> dict[str, Any]:
    """Optional fields, omitted if unset."""
    fields: dict[str, Any] = {
        "evidence": keyring.evidence,
        "recovery": keyring.recovery,
        "erasure_refused_at": keyring.erasure_refused_at,
        "unproven": keyring.unproven or None,
    }
    if keyring.erasure is not None:
        fields[_ERASED if keyring.is_erased else _ERASING] = asdict(keyring.erasure)
    return {name: value for name, value in fields.items() if value is not None}


def _kek_json(kek: Secret | None) -> str | None:
    return None if kek is None else to_base64(kek.reveal())


def _permission(*, allowed: bool) -> str:
    return "allowed" if allowed else "forbidden"


def keyring_from_json(project: str, master_key: str, rest: Mapping[str, Any]) -> Keyring:
    """Read a keyring from the opened part of a record that names this master key.

    Raises:
        CorruptObjectError: its fields are malformed.
    """
    try:
        return _keyring(project, master_key, rest)
    except (ValueError, TypeError, KeyError):
        # No cause: the opened record contains keys, and an exception may repeat them.
        raise CorruptObjectError("the keyring's fields are malformed") from None


def _keyring(project: str, master_key: str, rest: Mapping[str, Any]) -> Keyring:
    if rest["plaintext"] not in _PERMISSIONS:
        raise ValueError("permissions")
    current = _entry(rest)
    history = tuple(replace(_entry(entry), origin=_origin(entry)) for entry in rest["history"])
    generations = [entry.generation for entry in (*history, current)]
    if generations != sorted(set(generations)):
        raise ValueError("generations")
    keyring = Keyring(
        project=project,
        master_key=master_key,
        current=current,
        origin=_origin(rest),
        lease_s=_whole(rest["lease_s"], 1, _MAX_LEASE_S) if "lease_s" in rest else 0,
        plaintext_allowed=rest["plaintext"] == "allowed",
        history=history,
        evidence=_text_or_none(rest.get("evidence"), _DIGEST.fullmatch),
        serial=_whole(rest.get("serial", 0), 0, _MAX_SERIAL),
        recovery=_text_or_none(rest.get("recovery"), is_uuid),
        erasure=_erasure(rest),
        erasure_refused_at=_text_or_none(rest.get("erasure_refused_at"), parse_time),
        unproven=_true(rest.get("unproven")),
    )
    if current.customer_key is not None and (
        current.customer_key.is_cleared or keyring.plaintext_allowed
    ):
        raise ValueError("customer key")
    if keyring.erasure is not None and keyring.is_erased:
        secret_ids = {key.secret_id for key in keyring.customer_keys.values()}
        if keyring.user_keks or keyring.erasure.answers.keys() != secret_ids:
            raise ValueError("erased")
    elif current.kek is None:
        raise ValueError("current KEK")
    return keyring


def _entry(fields: Mapping[str, Any]) -> Generation:
    kek, customer_key = _kek(fields["kek"]), fields.get("customer_key")
    entry = Generation(
        _whole(fields["generation"], 1, _MAX_GENERATION),
        _text(fields["kek_id"], _ID.fullmatch),
        kek,
        _text(fields["rotation_id"], is_uuid),
        _text(fields["requested_at"], parse_time),
        _text(fields["at"], parse_time),
        customer_key=None if customer_key is None else customer_key_from_json(customer_key),
    )
    if kek is not None and kek_id(kek) != entry.kek_id:
        raise ValueError("KEK id")
    return entry


def customer_key_to_json(customer_key: CustomerKey) -> dict[str, str]:
    """The fields of a keyring or a mark."""
    fields = {
        "store": customer_key.name.store,
        "key": customer_key.name.key,
        "secret_id": customer_key.secret_id,
        "secret_sha256": customer_key.secret_sha256,
        "wrapped": customer_key.wrapped,
    }
    return {name: value for name, value in fields.items() if value is not None}


def customer_key_from_json(fields: Mapping[str, Any]) -> CustomerKey:
    """Read the fields of a keyring or a mark.

    Raises:
        ValueError, KeyError: they are malformed.
    """
    customer_key = CustomerKey(
        KeyName(_text(fields["store"], is_short_name), _text(fields["key"], _is_store_key)),
        _text(fields["secret_id"], _ID.fullmatch),
        _text_or_none(fields.get("secret_sha256"), _DIGEST.fullmatch),
        _text_or_none(fields.get("wrapped"), is_wrapped),
    )
    if (customer_key.secret_sha256 is None) != (customer_key.wrapped is None):
        raise ValueError("secret")
    return customer_key


def _is_store_key(text: str) -> bool:
    return 1 <= len(text) <= _MAX_STORE_KEY and text.isascii() and text.isprintable()


def is_wrapped(text: str) -> bool:
    """Return True if a store can have written this: base64, or `vault:v1:` and base64."""
    head, _, encoded = text.rpartition(":")
    if not re.fullmatch(r"(vault:v[0-9]+)?", head) or (head == "" and ":" in text):
        return False
    try:
        validate_base64(encoded)
    except ValueError:
        return False
    return bool(encoded) and len(text) <= _MAX_WRAPPED


def _origin(fields: Mapping[str, Any]) -> RequestOrigin | None:
    if "publisher" not in fields and "request" not in fields:
        return None
    return RequestOrigin(
        _text(fields["publisher"], is_short_name), _text(fields["request"], _DIGEST.fullmatch)
    )


def _erasure(rest: Mapping[str, Any]) -> Erasure | None:
    name = _ERASED if _ERASED in rest else _ERASING
    if name not in rest:
        return None
    fields = rest[name]
    if not isinstance(fields["answers"], dict):
        raise TypeError("answers")
    erasure = Erasure(
        request_id=_text(fields["request_id"], is_uuid),
        publisher=_text(fields["publisher"], is_short_name),
        request=_text(fields["request"], _DIGEST.fullmatch),
        requested_at=_text(fields["requested_at"], parse_time),
        began_at=_text(fields["began_at"], parse_time),
        reason=_text(fields["reason"], lambda text: len(text) <= _MAX_REASON),
        proven_by=_text_or_none(fields["proven_by"], _DIGEST.fullmatch),
        answers={
            _text(secret_id, _ID.fullmatch): StoreAnswer(
                KeyState(answer["state"]), _text(answer["at"], parse_time)
            )
            for secret_id, answer in fields["answers"].items()
        },
    )
    if erasure.is_done is not (name == _ERASED):
        raise ValueError("answers")
    if not all(state.is_gone for state in erasure.states.values()):
        raise ValueError("state")
    return erasure


def _true(value: Any) -> bool:
    if value not in (None, True):
        raise ValueError("flag")
    return value is True


def _whole(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError("number")
    return value


def _text(value: Any, check: Callable[[str], object]) -> str:
    if not isinstance(value, str) or not check(value):
        raise ValueError("text")
    return value


def _text_or_none(value: Any, check: Callable[[str], object]) -> str | None:
    return None if value is None else _text(value, check)


def _kek(value: str | None) -> Secret | None:
    if value is None:
        return None
    decoded = from_base64(value)
    if len(decoded) != _KEK_BYTES:
        raise ValueError("KEK length")
    return Secret(decoded)
