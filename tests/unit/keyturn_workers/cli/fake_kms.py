"""A provider of master keys without a server, for the commands that ask one directly."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyturn.crypto import Secret, expand_prk, master_prk
from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.port import Derivation, KeyDescription

if TYPE_CHECKING:
    import pytest

    from keyturn_workers.key_uris import KeyUri
    from keyturn_workers.master_keys.port import MasterKey
    from keyturn_workers.settings import KmsSettings, MasterKeySource

URI = "vault:https://vault.example.com:8200/transit/keyturn-m1?version=1"
OTHER_URI = "vault:https://vault.example.com:8200/transit/keyturn-m2?version=1"
MASTER_KEY = Secret(bytes(range(32)))
PRK = master_prk(MASTER_KEY.reveal())


@dataclass
class FakeKey:
    """One key of the provider.

    Attributes:
        prk: Its value.
        wrong: Every nth derivation is another one; 0 for none.
        failure: What derivations fail with.
        undescribed: What a description fails with.
        description: Further fields of the description.
        derivations: How many there were.
    """

    prk: Secret
    wrong: int = 0
    failure: str | None = None
    undescribed: str | None = None
    description: dict[str, object] = field(default_factory=dict)
    derivations: int = 0
    closed: int = 0


class _Opened:
    provider = "vault"

    def __init__(self, location: str, kms: FakeKms) -> None:
        self._location = location
        self._kms = kms

    async def derive(self, info: bytes) -> Derivation:
        key = self._key()
        if key.failure is not None:
            raise KmsUnavailableError(key.failure)
        key.derivations += 1
        if key.wrong and key.derivations % key.wrong == 0:
            return Derivation(Secret(os.urandom(32)))
        return Derivation(expand_prk(key.prk, info))

    async def describe(self) -> KeyDescription:
        key = self._key()
        if key.undescribed is not None or key.failure is not None:
            raise KmsUnavailableError(key.undescribed or key.failure or "")
        return KeyDescription("vault", self._location, "1", **key.description)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        if self._location in self._kms.keys:
            self._key().closed += 1

    def _key(self) -> FakeKey:
        if self._location not in self._kms.keys:
            raise KmsUnavailableError("the key does not exist")
        return self._kms.keys[self._location]


@dataclass
class FakeKms:
    """The keys of the provider by location.

    Attributes:
        keys: As said.
        refusal: Why it neither imports nor generates.
        garbles: An import stores something else.
    """

    keys: dict[str, FakeKey] = field(default_factory=dict)
    refusal: str | None = None
    garbles: bool = False
    imports: int = 0
    generated: int = 0

    def open(self, source: MasterKeySource, settings: KmsSettings) -> MasterKey:
        del settings
        if isinstance(source, Secret):
            return LocalMasterKey(source)
        return _Opened(source.location, self)

    async def import_(self, source: KeyUri, settings: KmsSettings, prk: Secret) -> None:
        del settings
        self._check(source)
        self.imports += 1
        self.keys[source.location] = FakeKey(Secret(os.urandom(32)) if self.garbles else prk)

    async def generate(self, source: KeyUri, settings: KmsSettings) -> None:
        del settings
        self._check(source)
        self.generated += 1
        self.keys[source.location] = FakeKey(Secret(os.urandom(32)))

    def _check(self, source: KeyUri) -> None:
        if self.refusal is not None:
            raise ValueError(self.refusal)
        if source.location in self.keys:
            raise ValueError("the key exists already")


def fake_kms(monkeypatch: pytest.MonkeyPatch) -> FakeKms:
    """A provider that the commands use instead of every other."""
    kms = FakeKms()
    monkeypatch.setattr("keyturn_workers.cli.keys.open_master_key", kms.open)
    monkeypatch.setattr("keyturn_workers.cli.keys.import_master_key", kms.import_)
    monkeypatch.setattr("keyturn_workers.cli.keys.generate_master_key", kms.generate)
    return kms
