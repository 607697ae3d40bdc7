"""Records of a project, results of their pages, and a bucket that an attacker can write."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from keyturn.counts import Counts
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_proof import AppliedResults, apply_results
from keyturn_workers.core.sweep_record import (
    End,
    KeyRange,
    Kind,
    OpenPage,
    Origin,
    OriginName,
    ProjectRecord,
    Result,
    Round,
    State,
)
from keyturn_workers.keys.sweep_records import SweepStore
from tests.unit.keyturn_workers.factories import OPERATOR_KEYS
from tools.harness.memory_storage import MemoryStorage

SWEEP_ID: Final = "2f6c9a0e-1111-4111-8111-111111111111"
OTHER_ID: Final = "2f6c9a0e-2222-4222-8222-222222222222"
ROUND_ID: Final = "2f6c9a0e-3333-4333-8333-333333333333"
LATER_ID: Final = "2f6c9a0e-4444-4444-8444-444444444444"
AT: Final = "2026-11-24T10:00:00.000000Z"
NOW: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
LEASE_S: Final = 15
# The first moment at which an observation is a proof.
PROOF: Final = NOW + timedelta(seconds=2 * LEASE_S + 1)
STATE: Final = State(2, "9f86d081884c7d65", "m1", plaintext=False, serial=3)
PAGE: Final = OpenPage(page=0, after="", last="", sent_at=NOW, sends=1)
SEEN: Final = Counts(objects=5, current=5)
RESULT: Final = Result("", "", STATE, PROOF, Counts(objects=1, current=1), changed=0, proves=True)


def origin(
    kind: Kind = "sweep", origin_id: str = SWEEP_ID, publisher: str = "api", **more: Any
) -> Origin:
    """A request of this publisher."""
    made = Origin(kind, origin_id, publisher, AT, ("0" * 64,), added_at=NOW)
    return replace(made, **more)


def ended(of: Origin, *, at: datetime = NOW, clean: bool = True, **more: Any) -> Origin:
    """The origin with an end, which was published unless the end says otherwise."""
    fields: dict[str, Any] = {"published": True, **more}
    return replace(of, end=End(at, clean, Counts(), **fields))


SWEEP: Final = origin()


def round_of(*pages: OpenPage, names: tuple[OriginName, ...] = (SWEEP.name,), **more: Any) -> Round:
    """A round with these open pages, for origins with these names."""
    made = Round(ROUND_ID, SWEEP.options, names, open_pages=pages, next_page=len(pages))
    return replace(made, **more)


def record(*origins: Origin, **more: Any) -> ProjectRecord:
    """A record with these origins, whose state was dated by a worker that proves."""
    made = ProjectRecord(
        "acme", STATE, NOW, LEASE_S, LEASE_S, is_dated=True, step=3, origins=origins
    )
    return replace(made, **more)


RECORD: Final = record(SWEEP, round=round_of(PAGE))


def running(*pages: OpenPage, **more: Any) -> ProjectRecord:
    """A record whose round has these pages open, and nothing left to paginate."""
    ranges = (KeyRange(through="z", planned=True),)
    return record(SWEEP, round=round_of(*pages, ranges=ranges), **more)


def page(number: int = 0, **more: Any) -> OpenPage:
    """A page whose second attempt is under way."""
    return replace(OpenPage(number, "a", "m", attempts=1, sent_at=NOW, sends=1), **more)


def result(**more: Any) -> Result:
    """A result of that page that proves it."""
    return replace(RESULT, **{"after": "a", "last": "m", "counts": SEEN, **more})


def the_round(of: ProjectRecord) -> Round:
    """Its round."""
    assert of.round is not None
    return of.round


def apply(
    before: ProjectRecord, results: dict[int, Result], now: datetime = PROOF
) -> AppliedResults:
    """The results of pages by their numbers, applied."""
    return apply_results(before, the_round(before), results, now)


@dataclass
class Scene:
    """A bucket and its records."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)

    def __post_init__(self) -> None:
        self.store = SweepStore(self.storage, OPERATOR_KEYS)

    def plant(self, s3_key: str, body: bytes = b"{}") -> None:
        self.storage.plant(s3_key, body, Headers({}))
