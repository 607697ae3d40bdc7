"""Evidence for tests: statements, keys, and chains of files."""

from __future__ import annotations

from typing import Any

from keyturn.crypto import SigningKey, VerifyKey
from keyturn.evidence import Predicate, Statement, keys_before, parse, sign

FIRST_KEY = SigningKey.from_seed(bytes(range(32)))
SECOND_KEY = SigningKey.from_seed(bytes(range(1, 33)))
PUBLIC_KEYS = (FIRST_KEY.verify_key(), SECOND_KEY.verify_key())

COUNTS = {
    "objects": 7,
    "rewrapped": 5,
    "current": 6,
    "plaintext": 0,
    "encrypted": 0,
    "deleted": 1,
    "foreign": 0,
    "failed": 0,
    "noncurrent_stale": 0,
    "clean": True,
}

ORIGIN = {
    "kind": "rotation",
    "id": "2f6c9a0e-0000-4000-8000-000000000009",
    "publisher": "billing",
    "request": "ab" * 32,
}

CUSTOMER_KEY = {
    "store": "acme-kms",
    "key": "arn:aws:kms:eu-central-1:111122223333:key/1",
    "secret_id": "5f0c1a7be2d94386",
    "wrapped": "AQIDBA==",
}


def fields(**changes: Any) -> dict[str, Any]:
    """The fields of a predicate."""
    return {
        "sweep_id": "2f6c9a0e-0000-4000-8000-000000000001",
        "kind": "rotation",
        "publisher": "billing",
        "request": "ab" * 32,
        "origins": [ORIGIN],
        "origin_count": 1,
        "generation": 3,
        "kek_id": "9f86d081884c7d65",
        "master_key": "main",
        "turned_at": "2026-11-24T10:00:00.000000Z",
        "proven_from": "2026-11-24T10:00:31.000000Z",
        "proven_to": "2026-11-24T10:00:40.000000Z",
        "lease_s": 15,
        "late_writes_refused": True,
        "counts": COUNTS,
        "pages": 1,
        "version": "0.7.0",
        "event_keys": [],
        "previous": None,
        **changes,
    }


def statement(*, deployment: str = "default", project: str = "acme", **changes: Any) -> Statement:
    """A statement; `changes` are fields of its predicate."""
    return Statement(deployment, project, Predicate.model_validate(fields(**changes)))


def follow(
    chain: list[bytes],
    key: SigningKey = FIRST_KEY,
    *,
    held: tuple[SigningKey, ...] = (FIRST_KEY, SECOND_KEY),
    **changes: Any,
) -> bytes:
    """The next file of a chain, signed by `key` of a worker that holds `held`."""
    previous = parse(chain[-1]) if chain else None
    listed = keys_before(previous, key.id, {each.id for each in held})
    defaults: dict[str, Any] = {
        "previous": previous and previous.digest,
        "event_keys": [use.model_dump() for use in listed],
        "sweep_id": f"2f6c9a0e-0000-4000-8000-{len(chain) + 1:012}",
    }
    return sign(statement(**{**defaults, **changes}), key)


def chain_of(*keys: SigningKey, **changes: Any) -> list[bytes]:
    """A chain of files, signed by these keys in this order."""
    chain: list[bytes] = []
    for key in keys:
        chain.append(follow(chain, key, **changes))
    return chain


def public(*keys: SigningKey) -> list[VerifyKey]:
    """The public halves."""
    return [key.verify_key() for key in keys]
