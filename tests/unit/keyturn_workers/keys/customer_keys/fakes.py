"""A store that a test steers, and keyrings whose secrets it has."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import Secret, new_customer_secret
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.customer_key_stores import parse_customer_key_stores
from keyturn_workers.core.customer_keys import CustomerKey, KeyName
from keyturn_workers.core.keyring import rotate
from keyturn_workers.keys.customer_keys.secrets import IN_WORKERS, CachedCustomerKeys, WaitPolicy
from tests.unit.keyturn_workers.factories import AT, ORIGIN, keyring
from tests.unit.keyturn_workers.keys.master_keys.fakes import Clock

if TYPE_CHECKING:
    from keyturn_workers.core.customer_key_stores import CustomerKeyStore
    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.keys.customer_keys.port import Place

_FIELDS: Final = {
    "kind": "vault",
    "address": "https://bao.example.com",
    "mount": "transit",
    "projects": ["acme", "globex", "p-*"],
    "keys": ["a", "b", "k-*"],
    "token_file": "/run/token",
}
STORES: Final = parse_customer_key_stores(
    {"bao": _FIELDS, "bao-of-globex": _FIELDS | {"projects": ["globex"]}}
)
SETTINGS: Final = STORES["bao"]


@dataclass
class FakeStore:
    """Has a dictionary of secrets, counts its calls, and fails when a test says so.

    Attributes:
        failures: By key.
        held: By key: calls wait for it.
        wrong: The keys that give another secret.
        came: Set by each call.
        is_mute: It answers these credentials nothing but what concerns keys.
    """

    settings: CustomerKeyStore = SETTINGS
    secrets: dict[str, Secret] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    failures: dict[str, KmsUnavailableError] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    came: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    is_mute: bool = False

    def address(self, key: str) -> str:
        del key
        return "https://bao.example.com"

    async def encrypt(self, key: str, place: Place, secret: Secret) -> str:
        await self._answer(key)
        wrapped = f"vault:v1:{place.secret_id}"
        self.secrets[wrapped], self.places[wrapped] = secret, place
        return wrapped

    async def decrypt(self, key: str, place: Place, wrapped: str) -> Secret:
        await self._answer(key)
        assert place == self.places.setdefault(wrapped, place)
        return new_customer_secret() if key in self.wrong else self.secrets[wrapped]

    async def check_answers(self, key: str) -> None:
        del key
        if self.is_mute:
            raise KmsUnavailableError("it does not know these credentials")

    async def aclose(self) -> None:
        self.closed = True

    async def _answer(self, key: str) -> None:
        self.calls[key] += 1
        self.came.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if key in self.held:
                await self.held[key].wait()
            if key in self.failures:
                raise copy.copy(self.failures[key])
        finally:
            self.at_once -= 1


class Bench:
    """A process's customer keys, one store and another of one project alone, and a clock."""

    def __init__(self, policy: WaitPolicy = IN_WORKERS) -> None:
        self.store, self.clock = FakeStore(), Clock()
        self.observed: list[tuple[str, str]] = []
        self.keys = CachedCustomerKeys(
            {"bao": self.store, "bao-of-globex": FakeStore(STORES["bao-of-globex"])},
            "rig",
            policy,
            observe=lambda store, outcome, _: self.observed.append((store, outcome)),
            clock_s=self.clock,
        )

    def customer_key(self, key: str = "a", store: str = "bao") -> CustomerKey:
        """A customer key whose secret the store has."""
        secret = new_customer_secret()
        wrapped = f"vault:v1:{CustomerKey.of(KeyName(store, key), secret, '').secret_id}"
        made = CustomerKey.of(KeyName(store, key), secret, wrapped)
        self.store.secrets[wrapped] = secret
        return made

    def keyring(self, *keys: str, project: str = "acme") -> Keyring:
        """A keyring with a generation for each of these keys, after one without."""
        made = keyring(project=project)
        for number, key in enumerate(keys or ("a",), 2):
            made = turned(made, number, customer_key=self.customer_key(key))
        return made

    async def settle(self) -> None:
        """Let background work get as far as it can."""
        for _ in range(30):
            await asyncio.sleep(0)


def turned(before: Keyring, number: int, **more: Any) -> Keyring:
    """The keyring after a rotation."""
    rotation_id = f"2f6c9a0e-1111-4111-8111-11111111{number:04}"
    return rotate(before, rotation_id=rotation_id, requested_at=AT, at=AT, origin=ORIGIN, **more)
