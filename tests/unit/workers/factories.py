"""Values for unit tests: keyrings and objects of a made-up project."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from contracts.sealing import BODY_CONTEXT, Secret, kek_id, new_dek, seal
from workers.envelope import wrap
from workers.keyring import Desired, Generation, Keyring

if TYPE_CHECKING:
    from contracts.metadata import Wraps

MASTER_KEYS = {"m1": Secret(bytes([1]) * 32), "m2": Secret(bytes([2]) * 32)}
AT = "2026-11-24T10:00:00.000000Z"


def generation(number: int, *, kek: Secret | None = None) -> Generation:
    """A generation with a fresh KEK."""
    kek = kek or Secret(os.urandom(32))
    return Generation(number, kek_id(kek), kek, str(uuid.uuid4()), AT, AT)


def keyring(project: str = "acme", *, master_key: str = "m1", plaintext: bool = False) -> Keyring:
    """A keyring at generation 1."""
    return Keyring(project, master_key, generation(1), plaintext_allowed=plaintext)


def turned(before: Keyring) -> Keyring:
    """The same keyring after a user rotation."""
    number = before.current.generation + 1
    return replace(before, current=generation(number), history=(*before.history, before.current))


def sealed_object(desired: Desired, key: str, plaintext: bytes = b"hello") -> tuple[Wraps, bytes]:
    """The wraps and the body of an object in that state."""
    dek = new_dek()
    return wrap(desired, key, dek), seal(dek, BODY_CONTEXT, plaintext)
