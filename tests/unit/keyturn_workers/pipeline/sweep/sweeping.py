"""A project from a request to its end, or one page of it: the workers' classes, on one clock.

Messages wait in memory. The storage's clock moves on to the next of them, so that a sweep which
takes minutes takes milliseconds here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from keyturn.crypto import SigningKey
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import OpenPage, ProjectRecord, Result, Round, State
from keyturn_workers.core.sweep_transitions import find_origin
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.pipeline.sweep.all_projects import AllProjectsSweep
from keyturn_workers.pipeline.sweep.evidence import EvidenceLog
from keyturn_workers.pipeline.sweep.handler import SweepHandler
from keyturn_workers.pipeline.sweep.messages import (
    Hint,
    SweepDispatcher,
    SweepPage,
    SweepStep,
    parse,
)
from keyturn_workers.pipeline.sweep.page import PageWorker
from keyturn_workers.pipeline.sweep.paginator import Paginator
from keyturn_workers.pipeline.sweep.reconciler import Reconciler
from keyturn_workers.pipeline.sweep.starter import SweepStarter
from keyturn_workers.pipeline.sweep.steps import SweepContext
from keyturn_workers.storage.clock import StorageClock
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    OPERATOR_KEYS,
    enc,
    keyring,
    rotated,
    sealed_object,
)
from tests.unit.keyturn_workers.pipeline.sweep.records import LEASE_S, SWEEP, origin, round_of
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import build_keyring, desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyturn.messages import Event
    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.sweep_record import Origin
    from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
    from keyturn_workers.keys.sweep_records import StoredRecord
    from tests.unit.keyturn_workers.witness import FakeWitness

ORIGIN: Final = RequestOrigin("api", "0" * 64)
EVENT_KEY: Final = SigningKey.from_seed(bytes(range(32)))
KEYS: Final = OPERATOR_KEYS
KEEP_FOR: Final = timedelta(days=8)
MAX_WAIT: Final = timedelta(days=7)


class Messages:
    """What was published, and the hints that wait, each with its moment."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.published: list[Event] = []
        self.waiting: list[tuple[float, Hint]] = []

    async def publish_event(self, event: Event) -> None:
        self.published.append(event)

    async def send(self, body: bytes, queue: str, delay_s: int) -> None:
        del queue
        self.waiting.append((self._now_s() + delay_s, parse(body)))

    def take(self) -> tuple[float, Hint]:
        """The message that is due first."""
        first = min(self.waiting, key=lambda each: each[0])
        self.waiting.remove(first)
        return first

    def steps(self) -> list[int]:
        return [hint.step for _, hint in self.waiting if isinstance(hint, SweepStep)]

    def pages(self) -> list[SweepPage]:
        return [hint for _, hint in self.waiting if isinstance(hint, SweepPage)]

    def types(self) -> list[str]:
        return [cast("Any", event).type for event in self.published]


@dataclass
class Project:
    """A bucket with the keyring and the objects of `acme`."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    ring: Keyring = field(default_factory=keyring)
    customer_keys: HeldCustomerKeys = field(default_factory=HeldCustomerKeys)

    def write_keyring(self, ring: Keyring) -> None:
        self.ring = ring
        self.storage.plant(keyring_s3_key("acme"), build_keyring(ring, MASTER_KEYS), Headers({}))

    def plant(self, *keys: str) -> None:
        """An object at each key, as the keyring desires it now."""
        secrets = replace(self.ring.secrets, held=self.customer_keys.secrets)
        desired = desired_state(self.ring, MASTER_KEYS)
        for key in keys:
            wraps, body = sealed_object(desired, key, secrets=secrets)
            self.storage.plant(object_s3_key("acme", key), body, Headers(enc(wraps)))


@dataclass
class Sweeping(Project):
    """One worker process, and a project at generation 2 whose objects are at generation 1."""

    keys: tuple[str, ...] = ("a", "b", "c")
    page_keys: int = 2
    witness: FakeWitness | None = None
    turn: Callable[[Keyring], Keyring] = rotated

    def __post_init__(self) -> None:
        self.write_keyring(self.ring)
        self.plant(*self.keys)
        self.write_keyring(self.turn(self.ring))
        self.messages = Messages(self.storage.elapsed_s)
        self.clock = StorageClock(LEASE_S, self.storage.elapsed_s)
        self.keyrings = KeyringReader(
            self.storage,
            KEYS,
            lease_s=LEASE_S,
            cache_s=0,
            clock=self.clock,
            witness=self.witness,
        )
        self.store = SweepStore(self.storage, KEYS)
        self.context = SweepContext(
            self.storage,
            self.keyrings,
            KEYS,
            self.store,
            SweepDispatcher(self.messages),
            self.evidence_log(EVENT_KEY),
            KEEP_FOR,
        )
        self.starter = SweepStarter(self.context, active_master_key="m1")
        pages = PageWorker(
            self.storage,
            self.keyrings,
            KEYS,
            self.customer_keys,
            self.store,
            concurrency=4,
            copy_limit_bytes=2**30,
        )
        all_projects = AllProjectsSweep(self.context, self.starter)
        self.handler = SweepHandler(self.store, self.process(LEASE_S), all_projects, pages)

    def process(self, lease_s: int) -> Reconciler:
        """The steps of a process with this lease."""
        return Reconciler(
            self.context,
            Paginator(self.storage, self.page_keys),
            self.customer_keys,
            lease_s=lease_s,
            max_wait=MAX_WAIT,
        )

    def evidence_log(self, *event_keys: SigningKey) -> EvidenceLog:
        """The evidence of a process that holds these event keys."""
        return EvidenceLog(self.storage, "test", event_keys)

    async def keyring(self) -> Keyring:
        """The keyring as it is stored."""
        return (await self.keyrings.read_fresh("acme")).keyring

    def rotation(self) -> Origin:
        """The rotation that created the current generation."""
        return origin("rotation", self.ring.current.rotation_id)

    async def start(self, origin: Origin = SWEEP, project: str = "acme") -> Origin:
        return await self.starter.start(project, origin)

    async def stored(self) -> StoredRecord[ProjectRecord]:
        return await self.store.read("acme")

    async def record(self) -> ProjectRecord:
        return (await self.stored()).record

    async def deliver(self, *, again: bool = False) -> Hint:
        """Handle the next message, at its moment."""
        due_s, hint = self.messages.take()
        self.storage.advance(max(0.0, due_s - self.storage.elapsed_s()))
        if isinstance(hint, SweepStep):
            await self.handler.run_step(hint, again=again)
        else:
            await self.handler.process_page(hint)
        return hint

    async def deliver_until(self, done: Callable[[ProjectRecord], bool]) -> ProjectRecord:
        """Handle messages until the record is so."""
        for _ in range(300):
            record = await self.record()
            if done(record):
                return record
            await self.deliver()
        raise AssertionError("it never is")

    async def finish(self, origin: Origin = SWEEP) -> Origin:
        """Handle messages until an origin has ended, and its end is published."""

        def is_answered(record: ProjectRecord) -> bool:
            found = find_origin(record, origin.name)
            return found is not None and found.is_answered

        ended = find_origin(await self.deliver_until(is_answered), origin.name)
        assert ended is not None
        return ended


@dataclass
class Page(Project):
    """A project with one page, of all its keys."""

    repair: bool = False
    cache_s: float = 0
    master_keys: OperatorKeys = OPERATOR_KEYS
    concurrency: int = 4

    def __post_init__(self) -> None:
        self.clock = StorageClock(LEASE_S, self.storage.elapsed_s)
        self.keyrings = KeyringReader(
            self.storage, OPERATOR_KEYS, lease_s=LEASE_S, cache_s=self.cache_s, clock=self.clock
        )
        self.store = SweepStore(self.storage, OPERATOR_KEYS)
        self.write_keyring(self.ring)

    def plant_plain(self, key: str) -> None:
        """What another program put there."""
        self.storage.plant(object_s3_key("acme", key), b"", Headers({"author": "kim"}))

    async def relabel(self, key: str, own: Mapping[str, str], *, locked: bool = False) -> None:
        """The object with other metadata of ours, as a bucket writer puts it."""
        head, body = await self.storage.read(object_s3_key("acme", key))
        headers = Headers({**head.metadata, **own})
        self.storage.plant(object_s3_key("acme", key), body, headers, locked=locked)

    async def record(self) -> ProjectRecord:
        """The record of the project, which proves the state that its keyring shows now."""
        state, now = State.of(await self.keyrings.read_fresh("acme")), datetime.now(UTC)
        return ProjectRecord("acme", state, now, LEASE_S, LEASE_S, origins=(SWEEP,))

    @property
    def round(self) -> Round:
        return round_of(options=SweepOptions(repair=self.repair))

    @property
    def worker(self) -> PageWorker:
        return PageWorker(
            self.storage,
            self.keyrings,
            self.master_keys,
            self.customer_keys,
            self.store,
            concurrency=self.concurrency,
            copy_limit_bytes=2**30,
        )

    async def process(self) -> Result:
        """Make an attempt at the page."""
        return await self.worker.process(await self.record(), self.round, OpenPage(0, "", ""))
