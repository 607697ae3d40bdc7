"""No keyring leaves the reader before its mark is known, and none that a mark contradicts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from keyturn.errors import (
    KeyringRolledBackError,
    KmsUnavailableError,
    MarksUnavailableError,
    StorageUnavailableError,
    TransientError,
    UnknownMasterKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import format_time, keyring_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.keys.keyring.marks import (
    KeyringContradictedError,
    KeyringRemovedError,
    KeyringUnknownError,
    Mark,
)
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.storage.clock import StorageClock
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.local_keys import build_keyring, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn_workers.core.keyring import Keyring

LEASE_S: Final = 15
CACHE_S: Final = 2.0
ORIGIN: Final = RequestOrigin("web", "1" * 64)
S3_KEY: Final = keyring_s3_key("acme")


class On:
    """A bucket with the project `acme`, and a worker's reader of it."""

    def __init__(self) -> None:
        self.storage = MemoryStorage(capabilities=Capabilities(listings_show_overwrites=True))
        self.witness = FakeWitness()
        clock = StorageClock(LEASE_S, self.storage.elapsed_s)
        self.reader = KeyringReader(
            self.storage,
            operator_keys(MASTER_KEYS),
            lease_s=LEASE_S,
            cache_s=CACHE_S,
            clock=clock,
            witness=self.witness,
        )

    def put(self, ring: Keyring) -> bytes:
        body = build_keyring(ring, MASTER_KEYS)
        self.put_bytes(body, ring.project)
        return body

    def put_bytes(self, body: bytes, project: str = "acme") -> None:
        self.storage.plant(keyring_s3_key(project), body, Headers({}))

    def put_marked(self, ring: Keyring) -> bytes:
        body = self.put(ring)
        self.witness.receive(ring.project, mark_of(body, ring.project))
        return body

    async def serial(self) -> int:
        return (await self.reader.read_fresh("acme")).keyring.serial

    def reads(self) -> int:
        return self.storage.calls["read"]


def _next(ring: Keyring) -> Keyring:
    return replace(rotated(ring), serial=ring.serial + 1)


async def test_a_marked_keyring_is_read_once_and_not_marked_again() -> None:
    on = On()
    on.put_marked(replace(keyring(), serial=3))
    assert await on.serial() == 3
    assert (on.reads(), on.witness.published) == (1, [])


async def test_a_keyring_without_a_serial_is_marked_and_read_again() -> None:
    """It is trusted once; from then on its mark decides."""
    on = On()
    old = on.put(keyring())
    assert await on.serial() == 0
    assert (on.reads(), on.witness.published) == (2, [("acme", mark_of(old))])
    assert await on.serial() == 0
    assert (on.reads(), len(on.witness.published)) == (3, 1)
    on.put(rotated(keyring()))
    with pytest.raises(KeyringContradictedError):
        await on.serial()


async def test_a_keyring_above_its_mark_is_marked_and_read_again() -> None:
    """Its worker died between the put and the mark."""
    on = On()
    ring = replace(keyring(), serial=1)
    on.put_marked(ring)
    new = on.put(_next(ring))
    snapshot = await on.reader.read_fresh("acme")
    assert snapshot.desired.generation == 2
    assert (on.reads(), on.witness.published) == (2, [("acme", mark_of(new))])


async def test_a_keyring_that_changes_while_it_is_marked_is_never_used() -> None:
    """The mark that was just published is not the highest one any longer."""
    on = On()
    ring = replace(keyring(), serial=1)
    on.put_marked(ring)
    on.put(_next(ring))

    async def rotate() -> None:
        on.witness.before_publish = None
        on.put_marked(_next(_next(ring)))

    on.witness.before_publish = rotate
    assert await on.serial() == 3


async def test_a_keyring_that_cannot_be_marked_is_not_used() -> None:
    on = On()
    on.put(keyring())

    async def lose_broker() -> None:
        raise MarksUnavailableError("the broker is away")

    on.witness.before_publish = lose_broker
    with pytest.raises(MarksUnavailableError):
        await on.serial()
    assert on.reader.get_last("acme") is None


async def test_a_read_in_flight_while_a_mark_arrives_is_repeated() -> None:
    """A rotation that lands meanwhile is no alarm."""
    on = On()
    ring = replace(keyring(), serial=1)
    old = on.put_marked(ring)
    new = build_keyring(_next(ring), MASTER_KEYS)
    began = asyncio.Event()

    async def land() -> None:
        on.witness.receive("acme", mark_of(new))
        on.put_bytes(old)  # what this read shows, though the rotation has landed
        on.storage.before_next("read", show_new)

    async def show_new() -> None:
        began.set()
        on.put_bytes(new)

    on.storage.before_next("read", land)
    assert await on.serial() == 2
    assert began.is_set()
    assert on.reads() == 2


@pytest.mark.parametrize("branch", ["earlier", "same-serial", "to-an-earlier-release"])
async def test_a_keyring_that_was_rolled_back_is_not_used(branch: str) -> None:
    on = On()
    ring = replace(keyring(), serial=4)
    earlier = on.put_marked(ring)
    newest = on.put_marked(_next(ring))
    match branch:
        case "earlier":
            on.put_bytes(earlier)
        case "same-serial":
            on.put(replace(_next(ring), plaintext_allowed=True))
        case _:
            on.put(replace(ring, serial=0))
    for _ in range(2):
        with pytest.raises(KeyringContradictedError, match=r"its mark at 5.*rolled back.*recover"):
            await on.serial()
    assert on.reader.get_last("acme") is None
    assert on.witness.published == []
    on.put_bytes(newest)
    assert await on.serial() == 5


async def test_its_code_is_transient_until_a_handler_gives_up() -> None:
    assert issubclass(KeyringContradictedError, KeyringRolledBackError)
    assert issubclass(KeyringContradictedError, TransientError)
    assert KeyringContradictedError.code == "keyring_rolled_back"


async def test_a_keyring_that_no_mark_knows_is_not_used() -> None:
    """The broker was lost, or the bucket is another one."""
    on = On()
    ring = replace(keyring(), serial=2)
    body = on.put(ring)
    with pytest.raises(KeyringUnknownError, match=r"no mark.*recover") as caught:
        await on.serial()
    assert (caught.value.keyring, caught.value.mark) == (ring, mark_of(body))
    assert on.witness.published == []


async def test_a_keyring_whose_mark_is_on_the_way_is_used() -> None:
    """Another worker has just enrolled the project."""
    on = On()
    body = on.put(replace(keyring(), serial=1))
    on.witness.stream.append(("acme", mark_of(body)))
    assert await on.serial() == 1
    assert on.witness.published == []


@pytest.mark.parametrize(
    ("publisher", "request_digest", "serial", "minutes", "is_own"),
    [
        ("web", "1" * 64, 1, 59, True),
        ("web", "2" * 64, 1, 0, False),
        ("api", "1" * 64, 1, 0, False),
        # Sent again once the broker was lost, it must not mark a keyring that was rolled back.
        ("web", "1" * 64, 2, 0, False),
        ("web", "1" * 64, 1, 61, False),
    ],
)
async def test_only_the_request_that_put_a_first_keyring_marks_it(
    publisher: str, request_digest: str, serial: int, minutes: int, *, is_own: bool
) -> None:
    """Its worker died between the put and the mark, and the request is delivered again."""
    on = On()
    at = format_time(datetime.now(UTC) - timedelta(minutes=minutes))
    ring = replace(keyring(), serial=serial, origin=RequestOrigin(publisher, request_digest))
    body = on.put(replace(ring, current=replace(ring.current, at=at)))
    if is_own:
        assert (await on.reader.read_own("acme", ORIGIN)).keyring.serial == 1
        assert on.witness.published == [("acme", mark_of(body))]
    else:
        with pytest.raises(KeyringUnknownError):
            await on.reader.read_own("acme", ORIGIN)
        assert on.witness.published == []


async def test_an_own_keyring_that_was_rolled_back_is_not_used() -> None:
    """A thief may put back what a request put, and have the request delivered again."""
    on = On()
    ring = replace(keyring(), serial=1, origin=ORIGIN)
    first = on.put_marked(ring)
    on.put_marked(_next(ring))
    on.put_bytes(first)
    with pytest.raises(KeyringContradictedError) as caught:
        await on.reader.read_own("acme", ORIGIN)
    assert not isinstance(caught.value, KeyringUnknownError)


async def test_a_removed_keyring_is_no_unknown_project() -> None:
    on = On()
    body = on.put_marked(replace(keyring(), serial=7))
    await on.storage.purge(S3_KEY)
    with pytest.raises(KeyringRemovedError, match="mark is at serial 7") as caught:
        await on.serial()
    assert caught.value.mark == mark_of(body)


async def test_a_project_that_never_was_is_unknown() -> None:
    on = On()
    on.put_marked(replace(keyring(), serial=7))
    with pytest.raises(UnknownProjectError):
        await on.reader.read_fresh("other")


async def test_a_keyring_that_is_listed_was_not_removed() -> None:
    """A storage that answers 404 now and then raises no alarm, nor does it lose a project."""
    on = On()
    on.put_marked(replace(keyring(), serial=7))
    on.storage.fail_next("read", MissingError())
    with pytest.raises(StorageUnavailableError):
        await on.serial()
    assert await on.serial() == 7


async def test_a_keyring_with_a_longer_name_is_not_taken_for_the_removed_one() -> None:
    on = On()
    on.put_marked(replace(keyring(), serial=7))
    await on.storage.purge(S3_KEY)
    on.storage.plant(S3_KEY + ".old", b"", Headers({}))
    with pytest.raises(KeyringRemovedError):
        await on.serial()


async def test_a_read_that_missed_an_enrollment_is_repeated() -> None:
    """Its mark arrived after the read had begun."""
    on = On()
    body = build_keyring(replace(keyring(), serial=1), MASTER_KEYS)

    async def enroll_meanwhile() -> None:
        on.witness.receive("acme", mark_of(body))

        async def land() -> None:
            on.put_bytes(body)

        on.storage.before_next("read", land)

    on.storage.before_next("read", enroll_meanwhile)
    assert await on.serial() == 1
    assert on.reads() == 2


async def test_a_mark_drops_a_cached_keyring_that_it_contradicts() -> None:
    on = On()
    ring = replace(keyring(), serial=1)
    on.put_marked(ring)
    assert (await on.reader.read_recent("acme")).desired.generation == 1
    on.put_marked(_next(ring))
    assert on.reader.get_last("acme") is None
    assert (await on.reader.read_recent("acme")).desired.generation == 2


async def test_a_mark_of_the_cached_keyring_keeps_it() -> None:
    on = On()
    body = on.put_marked(replace(keyring(), serial=1))
    snapshot = await on.reader.read_recent("acme")
    on.witness.receive("acme", mark_of(body))
    assert await on.reader.read_recent("acme") is snapshot
    assert on.reads() == 1


async def test_a_listing_renews_nothing_that_a_mark_contradicts() -> None:
    """The thief puts the old keyring back, so that a listing shows the ETag that is cached."""
    on = On()
    ring, other = replace(keyring(), serial=1), replace(keyring("other"), serial=1)
    old = on.put_marked(ring)
    on.put_marked(other)
    await on.reader.read_recent("acme")
    await on.reader.read_recent("other")
    on.put_marked(_next(ring))
    on.put_bytes(old)
    on.storage.advance(CACHE_S + 0.1)
    with pytest.raises(KeyringContradictedError):
        await on.reader.read_recent("acme")
    assert (await on.reader.read_recent("other")).keyring == other


async def test_a_listing_in_flight_renews_nothing_that_a_mark_contradicts() -> None:
    on = On()
    ring = replace(keyring(), serial=1)
    old = on.put_marked(ring)
    on.put_marked(replace(keyring("other"), serial=1))
    await on.reader.read_recent("acme")
    await on.reader.read_recent("other")

    async def rotate() -> None:
        on.put_marked(_next(ring))
        on.put_bytes(old)  # what the listing shows

    on.storage.before_next("list_page", rotate)
    on.storage.advance(CACHE_S + 0.1)
    with pytest.raises(KeyringContradictedError):
        await on.reader.read_recent("acme")
    assert on.storage.calls["list_page"] == 1


_READS: Final[list[Callable[[On], Awaitable[object]]]] = [
    lambda on: on.reader.read_recent("acme"),
    lambda on: on.reader.read_fresh("acme"),
    lambda on: on.reader.read_leased("acme"),
    lambda on: on.reader.read_own("acme", ORIGIN),
    lambda on: on.reader.read_fresh("unknown"),
    lambda on: on.reader.catch_up(),
]
_READ_IDS: Final = ["recent", "fresh", "leased", "own", "missing", "catch-up"]


@pytest.mark.parametrize("read", _READS, ids=_READ_IDS)
@pytest.mark.parametrize("cached", [True, False])
async def test_a_reader_that_is_not_current_returns_nothing(
    read: Callable[[On], Awaitable[object]], *, cached: bool
) -> None:
    """Not even an unknown project: its mark may be what it has not received.

    And it waits once, for the seconds that a delivery may take, not once per step.
    """
    on = On()
    on.put_marked(replace(keyring(), serial=1))
    if cached:
        await on.reader.read_recent("acme")
    on.witness.is_current = False
    with pytest.raises(MarksUnavailableError):
        await read(on)
    assert on.witness.waits <= 1


async def test_a_read_waits_for_a_witness_that_is_just_back() -> None:
    """After a restart of the broker, no delivery is put off for marks that are about to come."""
    on = On()
    on.put_marked(replace(keyring(), serial=1))
    for read in (on.reader.read_fresh, on.reader.read_recent):
        on.witness.is_current, on.witness.is_back = False, True
        assert (await read("acme")).keyring.serial == 1


async def test_a_listing_does_not_renew_a_keyring_while_the_reader_is_not_current() -> None:
    on = On()
    on.put_marked(replace(keyring(), serial=1))
    on.put_marked(replace(keyring("other"), serial=1))
    await on.reader.read_recent("acme")
    await on.reader.read_recent("other")
    on.storage.advance(CACHE_S + 0.1)
    on.witness.is_current = False
    with pytest.raises(MarksUnavailableError):
        await on.reader.read_recent("acme")
    assert on.storage.calls["list_page"] == 1


async def test_a_project_whose_mark_a_new_stream_lacks_is_not_served() -> None:
    on = On()
    ring = replace(keyring(), serial=3)
    body = on.put_marked(ring)
    await on.reader.read_recent("acme")
    on.witness.table.begin_again()
    with pytest.raises(MarksUnavailableError):
        await on.reader.read_recent("acme")
    on.witness.receive("acme", mark_of(body))
    assert await on.serial() == 3


async def test_a_gateway_uses_keyrings_that_are_not_marked_yet() -> None:
    """It can add no mark, but uses none that a mark contradicts."""
    on = On()
    on.witness.is_gateway = True
    ring = replace(keyring(), serial=0)
    old = on.put(ring)
    assert await on.serial() == 0
    assert on.witness.published == []
    on.put_marked(_next(ring))
    on.put_bytes(old)
    with pytest.raises(KeyringContradictedError):
        await on.serial()


async def test_a_gateway_remembers_no_keyring_from_before_it_knew_the_marks() -> None:
    """Otherwise listings would renew a rolled-back keyring for as long as the gateway runs."""
    on = On()
    on.witness.is_gateway, on.witness.is_current = True, False
    old = on.put(replace(keyring(), serial=1))
    assert await on.serial() == 1
    assert on.reader.get_cached("acme") is None
    with pytest.raises(MarksUnavailableError):
        await on.reader.require_current()
    on.witness.is_current = True
    await on.reader.require_current()
    on.put_marked(_next(replace(keyring(), serial=1)))
    on.put_bytes(old)
    with pytest.raises(KeyringContradictedError):
        await on.reader.read_recent("acme")


async def test_marks_that_never_rest_end_in_a_transient_error() -> None:
    on = On()
    on.put(replace(keyring(), serial=1))
    serials = iter(range(2, 1000))

    async def mark_something_else() -> None:
        on.witness.receive("acme", Mark(next(serials), bytes(32), 1))
        on.storage.before_next("read", mark_something_else)

    on.storage.before_next("read", mark_something_else)
    with pytest.raises(StorageUnavailableError, match="kept changing"):
        await on.serial()


async def test_only_a_mark_of_the_keyring_as_it_is_now_is_signed_anew() -> None:
    """Otherwise a mark by a thief of the earlier event key would be signed by the current one."""
    on = On()
    for project in ("acme", "forged", "other", "rolled"):
        on.put_marked(replace(keyring(project), serial=2))
    on.put_marked(replace(keyring("sibling"), serial=2))
    rolled = on.put(replace(keyring("rolled"), serial=3))
    on.witness.receive("rolled", mark_of(rolled, "rolled"))
    on.put(replace(keyring("rolled"), serial=2))
    on.witness.receive("forged", Mark(2**40, bytes(32), 1))
    on.witness.receive("missing", Mark(9, bytes(32), 1))
    earlier = ("acme", "forged", "missing", "other", "rolled")
    on.witness.signed_before = dict.fromkeys(earlier, "earlier")
    await on.reader.sign_marks_anew()
    assert sorted(project for project, _ in on.witness.published) == ["acme", "other"]
    assert on.witness.signed_before.keys() == {"forged", "missing", "rolled"}
    on.witness.is_current = False
    with pytest.raises(MarksUnavailableError):
        await on.reader.sign_marks_anew()


@pytest.mark.parametrize(
    "error",
    [StorageUnavailableError("503"), KmsUnavailableError("m1"), UnknownMasterKeyError("m1")],
)
async def test_a_mark_whose_keyring_cannot_be_read_now_is_no_thiefs(error: TransientError) -> None:
    """The step is tried again. Otherwise the mark is lost as soon as the earlier key is removed."""
    on = On()
    on.put_marked(replace(keyring(), serial=2))
    on.witness.signed_before = {"acme": "earlier"}
    on.storage.fail_next("read", error)
    with pytest.raises(type(error)):
        await on.reader.sign_marks_anew()
    await on.reader.sign_marks_anew()
    assert [project for project, _ in on.witness.published] == ["acme"]


async def test_a_mark_with_another_generation_than_the_keyring_is_not_signed_anew() -> None:
    on = On()
    body = on.put(replace(keyring(), serial=2))
    on.witness.receive("acme", replace(mark_of(body), generation=2**40))
    on.witness.signed_before = {"acme": "earlier"}
    await on.reader.sign_marks_anew()
    assert on.witness.published == []


async def test_without_a_witness_each_keyring_that_opens_is_believed() -> None:
    """Tools and gateways without a broker."""
    on = On()
    reader = KeyringReader(on.storage, operator_keys(MASTER_KEYS), lease_s=LEASE_S, cache_s=0)
    on.put(replace(keyring(), serial=2))
    assert (await reader.read_own("acme", ORIGIN)).keyring.serial == 2
    on.put(keyring())
    assert (await reader.read_fresh("acme")).keyring.serial == 0
    await reader.catch_up()
    await reader.sign_marks_anew()
