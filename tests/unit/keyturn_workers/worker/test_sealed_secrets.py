"""Secrets sealed to an intake key: they open for their own request alone (SPEC 3.2)."""

from __future__ import annotations

import os

import pytest

from keyturn.crypto import IntakeKey, to_base64
from keyturn.errors import BadSealError, UnknownIntakeKeyError
from keyturn.messages import SealedSecret
from keyturn_workers.worker.sealed_secrets import open_secret


def sealed(secret: bytes, info: bytes, intake: IntakeKey, name: str = "main") -> SealedSecret:
    return SealedSecret(intake_key=name, ciphertext=to_base64(intake.public_key.seal(secret, info)))


@pytest.fixture(scope="module")
def intake() -> IntakeKey:
    return IntakeKey.from_seed(os.urandom(32))


def test_secret(intake: IntakeKey) -> None:
    secret = os.urandom(32)
    assert open_secret(sealed(secret, b"info", intake), b"info", {"main": intake}) == secret


def test_secret_for_another_intake_key(intake: IntakeKey) -> None:
    with pytest.raises(UnknownIntakeKeyError, match="retired"):
        open_secret(sealed(bytes(32), b"info", intake, "retired"), b"info", {"main": intake})
    other = IntakeKey.from_seed(os.urandom(32))
    with pytest.raises(BadSealError):
        open_secret(sealed(bytes(32), b"info", other), b"info", {"main": intake})


def test_secret_for_something_else(intake: IntakeKey) -> None:
    with pytest.raises(BadSealError, match="does not open"):
        open_secret(sealed(bytes(32), b"other", intake), b"info", {"main": intake})


@pytest.mark.parametrize("size_bytes", [0, 31, 33, 64])
def test_secret_of_another_length(intake: IntakeKey, size_bytes: int) -> None:
    with pytest.raises(BadSealError, match="32 bytes"):
        open_secret(sealed(bytes(size_bytes), b"info", intake), b"info", {"main": intake})
