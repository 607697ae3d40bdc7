"""What tests and tools derive from master keys whose 32 bytes they hold, without awaiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyturn.crypto import Secret, admin_kek, record_kek
from keyturn.errors import UnknownMasterKeyError
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.keyring_record import keyring_from_json, keyring_to_json, record_version
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.keys.master_keys.record_format import open_sealed_part, read_outer, seal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn_workers.core.keyring import DesiredState, Keyring


def operator_keys(master_keys: Mapping[str, Any]) -> OperatorKeys:
    """The operator's keys of a process that holds these master keys itself."""
    return OperatorKeys.local(_secrets(master_keys))


def admin_keks(project: str, master_keys: Mapping[str, Any]) -> AdminKeks:
    """A project's admin KEKs under these master keys."""
    keks = {
        name: admin_kek(secret.reveal(), project) for name, secret in _secrets(master_keys).items()
    }
    return AdminKeks(project, keks)


def desired_state(keyring: Keyring, master_keys: Mapping[str, Any]) -> DesiredState:
    """The desired state that a keyring defines."""
    secret = _require(master_keys, keyring.master_key)
    return keyring.desired(admin_kek(secret.reveal(), keyring.project))


def build_record(
    s3_key: str,
    project: str,
    master_key: str,
    rest: Mapping[str, Any],
    master_keys: Mapping[str, Any],
    *,
    version: int = 1,
) -> bytes:
    """The bytes of a sealed record."""
    kek = record_kek(_require(master_keys, master_key).reveal(), project)
    return seal(s3_key, project, master_key, rest, kek, version=version)


def parse_record(
    body: bytes, s3_key: str, project: str, master_keys: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The master key's id and the opened part of a record."""
    master_key, sealed = read_outer(body, project)
    kek = record_kek(_require(master_keys, master_key).reveal(), project)
    return master_key, open_sealed_part(sealed, s3_key, kek)


def build_keyring(keyring: Keyring, master_keys: Mapping[str, Any]) -> bytes:
    """The bytes of a keyring's record."""
    s3_key, rest = keyring_s3_key(keyring.project), keyring_to_json(keyring)
    version = record_version(keyring)
    return build_record(
        s3_key, keyring.project, keyring.master_key, rest, master_keys, version=version
    )


def parse_keyring(body: bytes, project: str, master_keys: Mapping[str, Any]) -> Keyring:
    """The keyring in a record's bytes."""
    master_key, rest = parse_record(body, keyring_s3_key(project), project, master_keys)
    return keyring_from_json(project, master_key, rest)


def _secrets(master_keys: Mapping[str, Any]) -> dict[str, Secret]:
    """The settings' mapping allows keys that are held elsewhere; here there are none."""
    assert all(isinstance(secret, Secret) for secret in master_keys.values())
    return dict(master_keys)


def _require(master_keys: Mapping[str, Any], name: str) -> Secret:
    try:
        return _secrets(master_keys)[name]
    except KeyError as exc:
        raise UnknownMasterKeyError(name) from exc
