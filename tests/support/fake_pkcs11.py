"""A PKCS #11 module in Python, for tests: python-pkcs11's classes without a shared library.

It keeps what a real token does and SoftHSM cannot be made to do: count logins, hang, end sessions.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

import pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass, TokenFlag

from keyturn.crypto import master_prk

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    import pytest

MASTER_KEY = bytes(range(32))
PIN = "1234"


class FakeKey(pkcs11.SignMixin):
    """An HMAC key, unless its attributes say otherwise; usable while its session is open."""

    def __init__(
        self,
        token: FakeToken,
        attributes: dict[Attribute, Any],
        found_by: FakeSession | None = None,
    ) -> None:
        self._token = token
        self._session = found_by
        self.attributes = attributes

    def seen_by(self, session: FakeSession) -> FakeKey:
        """The handle of this key in a session."""
        return FakeKey(self._token, self.attributes, session)

    def __getitem__(self, key: Attribute) -> Any:
        if key not in self.attributes:
            raise pkcs11.AttributeTypeInvalid
        return self.attributes[key]

    def sign(self, data: Any, **kwargs: Any) -> bytes:
        assert kwargs == {"mechanism": pkcs11.Mechanism.SHA256_HMAC}
        self._token.signs += 1
        if self._session is not None and not self._session.is_open:
            raise pkcs11.SessionHandleInvalid
        if self._token.hang is not None:
            self._token.hang.wait()
        if self._token.errors:
            raise self._token.errors.pop(0)
        return hmac.digest(self.attributes[Attribute.VALUE], data, "sha256")


class FakeSession:
    def __init__(self, token: FakeToken, *, rw: bool) -> None:
        self.token = token
        self.rw = rw
        self.is_open = True

    def get_objects(self, attrs: dict[Attribute, Any]) -> Iterator[FakeKey]:
        for key in self.token.keys:
            if all(key.attributes.get(name) == value for name, value in attrs.items()):
                yield key.seen_by(self)

    def create_object(self, attrs: dict[Attribute, Any]) -> FakeKey:
        assert self.rw
        key = FakeKey(self.token, dict(attrs))
        self.token.keys.append(key)
        return key

    def close(self) -> None:
        if not self.is_open:
            raise pkcs11.SessionHandleInvalid
        self.is_open = False


class FakeToken:
    """One token; `pins` has every PIN that was tried."""

    def __init__(self, slot_id: int = 7, label: str = "keyturn", serial: bytes = b"0001") -> None:
        self.slot = FakeSlot(slot_id, self)
        self.label = label
        self.serial = serial
        self.manufacturer_id = "Fake"
        self.model = "F1"
        self.flags = TokenFlag.TOKEN_INITIALIZED
        self.pins: list[str] = []
        self.login_error: type[pkcs11.PKCS11Error] = pkcs11.PinIncorrect
        self.keys: list[FakeKey] = []
        self.sessions: list[FakeSession] = []
        self.errors: list[pkcs11.PKCS11Error] = []
        self.hang: threading.Event | threading.Barrier | None = None
        self.signs = 0

    def add_key(self, label: str = "m1", **attributes: Any) -> FakeKey:
        """Add an HMAC key with the PRK of `MASTER_KEY`, as generated inside."""
        key = FakeKey(
            self,
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
                Attribute.LABEL: label,
                Attribute.VALUE: master_prk(MASTER_KEY).reveal(),
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.NEVER_EXTRACTABLE: True,
                Attribute.LOCAL: True,
                **{Attribute[name]: value for name, value in attributes.items()},
            },
        )
        self.keys.append(key)
        return key

    def open(self, *, rw: bool = False, user_pin: str | None = None) -> FakeSession:
        if user_pin is not None:
            self.pins.append(user_pin)
            if user_pin != PIN or self.login_error is pkcs11.PinLocked:
                raise self.login_error
        session = FakeSession(self, rw=rw)
        self.sessions.append(session)
        return session


class FakeSlot:
    def __init__(self, slot_id: int, token: FakeToken | None) -> None:
        self.slot_id = slot_id
        self._token = token

    def get_token(self) -> FakeToken:
        if self._token is None:
            raise pkcs11.TokenNotPresent
        return self._token


class FakeModule:
    """What `pkcs11.lib` and `Cryptoki` are for one path."""

    def __init__(self) -> None:
        self.token = FakeToken()
        self.slots = [self.token.slot]
        self.is_shared = True
        self.initialized = 0
        self.finalized = 0
        self.failure: Exception | None = None

    def initialize(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.initialized += 1

    def finalize(self) -> None:
        self.finalized += 1
        for session in self.token.sessions:
            session.is_open = False

    def get_slots(self, token_present: bool = False) -> list[FakeSlot]:
        assert token_present
        return self.slots

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let every path load this module; none is loaded yet."""

        def load(_path: str) -> FakeModule:
            if self.failure is not None:
                raise self.failure
            return self

        monkeypatch.setattr(pkcs11, "lib", load)
        monkeypatch.setattr("keyturn_workers.keys.master_keys.pkcs11_module._modules", {})
        monkeypatch.setattr("keyturn_workers.keys.master_keys.pkcs11_module.Cryptoki", load)
