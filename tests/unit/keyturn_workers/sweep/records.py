"""The records of a sweep of one page, in a bucket that an attacker can write."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from keyturn.crypto import Secret
from keyturn_workers.storage import Headers
from keyturn_workers.sweep import record_paths
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import OpenPage, Plan, Result, State, SweepRequest
from keyturn_workers.sweep.sweep_store import SweepStore
from keyturn_workers.testing.memory_storage import MemoryStorage
from tools.harness.local_keys import operator_keys

SWEEP_ID: Final = "2f6c9a0e-1111-4111-8111-111111111111"


OTHER_ID: Final = "2f6c9a0e-2222-4222-8222-222222222222"


NOW: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)


STATE: Final = State(1, "9f86d081884c7d65", "m1", plaintext=False, etag="e")


PAGE: Final = OpenPage(page=0, after="", last="", sent_at=NOW, sends=1)


PLAN: Final = Plan(SweepRequest("sweep", SWEEP_ID, "acme", ""), STATE, NOW, NOW, live=(PAGE,))


RESULT: Final = Result("", "", STATE, NOW, Counts(objects=1, current=1), changed=0)


RESULT_PATH: Final = record_paths.result_path(SWEEP_ID, "acme", 0, 0, 0)


@dataclass
class Scene:
    """A bucket and its records."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)

    def __post_init__(self) -> None:
        self.store = SweepStore(
            self.storage, operator_keys({"m1": Secret(bytes(32)), "m2": Secret(b"2" * 32)})
        )

    def plant(self, s3_key: str, body: bytes = b"{}") -> None:
        self.storage.plant(s3_key, body, Headers({}))
