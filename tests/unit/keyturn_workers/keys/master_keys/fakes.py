"""A provider that a test steers, and a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyturn.crypto import Secret, expand_prk, master_prk
from keyturn_workers.keys.master_keys.port import Derivation, KeyDescription

if TYPE_CHECKING:
    from keyturn.errors import KmsUnavailableError

MASTER = Secret(bytes(range(32)))


@dataclass
class Clock:
    """Seconds that only a test moves."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class FakeProvider:
    """Derives as a provider would, counts its calls, and fails when a test says so."""

    master_key: Secret = field(default_factory=lambda: MASTER)
    provider: str = "vault"
    failure: KmsUnavailableError | None = None
    wrong: int = 0
    """How many of the next answers are wrong."""
    held: asyncio.Event | None = None
    """Calls wait for it."""
    calls: Counter[bytes] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    closed: bool = False

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    async def derive(self, info: bytes) -> Derivation:
        self.calls[info] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if self.held is not None:
                await self.held.wait()
            if self.failure is not None:
                raise type(self.failure)(self.failure.detail)
            if self.wrong:
                self.wrong -= 1
                return Derivation(Secret(b"w" * 32), f"req-{self.total}")
            kek = expand_prk(master_prk(self.master_key.reveal()), info)
            return Derivation(kek, f"req-{self.total}")
        finally:
            self.at_once -= 1

    async def describe(self) -> KeyDescription:
        if self.failure is not None:
            raise self.failure
        return KeyDescription(self.provider, "vault:somewhere")

    async def aclose(self) -> None:
        self.closed = True
