"""A project's keyring as the sealed part of its record. Pure.

See SPEC 5.1 and 5.2. A record that does not open under its own master key, or that belongs to
another project, was forged or moved: no object may be wrapped by it.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.keys import Secret, kek_id
from keyturn.errors import CorruptObjectError
from keyturn.identifiers import is_short_name, is_uuid, parse_time
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.customer_keys import CustomerKey
from keyturn_workers.core.erasure import Erasure
from keyturn_workers.core.keyring import Generation, Keyring

_KEK_BYTES: Final = 32
_KEK_ID: Final = re.compile(r"[0-9a-f]{16}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MAX_LEASE_S: Final = 10**6
_MAX_GENERATION: Final = 10**18
_MAX_SERIAL: Final = 2**63
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
    return {
        **_origin_json(entry.origin),
        "generation": entry.generation,
        "kek_id": entry.kek_id,
        "kek": _kek_json(entry.kek),
        "rotation_id": entry.rotation_id,
        "requested_at": entry.requested_at,
        "at": entry.at,
        **({} if entry.customer_key is None else {"customer_key": entry.customer_key.to_json()}),
    }


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
        fields[_ERASED if keyring.is_erased else _ERASING] = keyring.erasure.to_json()
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
        lease_s=_lease_s(rest["lease_s"]) if "lease_s" in rest else 0,
        plaintext_allowed=rest["plaintext"] == "allowed",
        history=history,
        evidence=_evidence(rest.get("evidence")),
        serial=_serial(rest.get("serial", 0)),
        recovery=_recovery(rest.get("recovery")),
        erasure=_erasure(rest),
        erasure_refused_at=_time(rest.get("erasure_refused_at")),
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


def _time(value: str | None) -> str | None:
    if value is not None:
        parse_time(value)
    return value


def _true(value: Any) -> bool:
    if value not in (None, True):
        raise ValueError("flag")
    return value is True


def _erasure(fields: Mapping[str, Any]) -> Erasure | None:
    name = _ERASED if _ERASED in fields else _ERASING
    if name not in fields:
        return None
    erasure = Erasure.from_json(fields[name])
    if erasure.is_done is not (name == _ERASED):
        raise ValueError("answers")
    return erasure


def _origin(fields: Mapping[str, Any]) -> RequestOrigin | None:
    if "publisher" not in fields and "request" not in fields:
        return None
    return RequestOrigin(_publisher(fields["publisher"]), _digest(fields["request"]))


def _lease_s(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_LEASE_S:
        raise ValueError("lease")
    return value


def _serial(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_SERIAL:
        raise ValueError("serial")
    return value


def _recovery(value: str | None) -> str | None:
    if value is not None and not is_uuid(value):
        raise ValueError("recovery")
    return value


def _publisher(value: str) -> str:
    if not is_short_name(value):
        raise ValueError("publisher")
    return value


def _digest(value: str) -> str:
    if _DIGEST.fullmatch(value) is None:
        raise ValueError("digest")
    return value


def _evidence(value: str | None) -> str | None:
    return None if value is None else _digest(value)


def _entry(fields: Mapping[str, Any]) -> Generation:
    generation, label, kek = fields["generation"], fields["kek_id"], _kek(fields["kek"])
    if type(generation) is not int or not 1 <= generation < _MAX_GENERATION:
        raise ValueError("generation")
    if _KEK_ID.fullmatch(label) is None or (kek is not None and kek_id(kek) != label):
        raise ValueError("KEK id")
    if not is_uuid(fields["rotation_id"]):
        raise ValueError("rotation id")
    parse_time(fields["requested_at"])
    parse_time(fields["at"])
    customer_key = fields.get("customer_key")
    return Generation(
        generation,
        label,
        kek,
        fields["rotation_id"],
        fields["requested_at"],
        fields["at"],
        customer_key=None if customer_key is None else CustomerKey.from_json(customer_key),
    )


def _kek(value: str | None) -> Secret | None:
    if value is None:
        return None
    decoded = from_base64(value)
    if len(decoded) != _KEK_BYTES:
        raise ValueError("KEK length")
    return Secret(decoded)
