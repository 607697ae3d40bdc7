"""The keyrings that a process remembers: which go first, and what they count (SPEC 7.3)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.storage_values import Lease
from keyturn_workers.keys.keyring import cache as cache_module
from keyturn_workers.keys.keyring.cache import CacheEntry, KeyringCache, Listing, Listings, name_of
from tests.unit.keyturn_workers.factories import DATE, MASTER_KEYS, keyring, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyturn_workers.core.keyring_snapshot import KeyringSnapshot

NOW: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
RING: Final = keyring()

SNAPSHOT: Final = snapshot(keyring())
DIGEST: Final = bytes(32)


def _stored(cache: KeyringCache, *projects: str, size_bytes: int = 10) -> list[CacheEntry]:
    entries = []
    for project in projects:
        entries.append(cache.use(project, 0.0))
        cache.store(project, entries[-1], SNAPSHOT, DIGEST, size_bytes)
    return entries


async def _read() -> KeyringSnapshot:
    return SNAPSHOT


def _projects(cache: KeyringCache) -> list[str]:
    return list(cache.projects)


def _bounded(monkeypatch: pytest.MonkeyPatch, *, projects: int, total_bytes: int = 1000) -> None:
    monkeypatch.setattr(cache_module, "_MAX_PROJECTS", projects)
    monkeypatch.setattr(cache_module, "_MAX_TOTAL_BYTES", total_bytes)


def test_a_project_has_one_entry() -> None:
    cache = KeyringCache()
    assert cache.get("acme") is None
    entry = cache.use("acme", 1.0)
    assert cache.use("acme", 2.0) is entry
    assert cache.get("acme") is entry
    assert (entry.used_s, entry.name, entry.snapshot) == (2.0, "acme.json", None)


def test_names_are_those_of_snapshots_in_the_order_of_listings() -> None:
    cache = KeyringCache()
    _stored(cache, "acme", "acme-1", "b")
    cache.use("a", 0.0)
    assert cache.names == ["acme-1.json", "acme.json", "b.json"]
    entry = cache.get("acme")
    assert entry is not None
    cache.invalidate(entry)
    assert cache.names == ["acme-1.json", "b.json"]


def test_another_read_of_an_entry_replaces_its_snapshot_and_its_size() -> None:
    cache = KeyringCache()
    (entry,) = _stored(cache, "acme")
    later = replace(SNAPSHOT, etag="later")
    cache.store("acme", entry, later, b"digest", 25)
    assert (entry.snapshot, entry.digest) == (later, b"digest")
    assert (cache.total_bytes, cache.names) == (25, ["acme.json"])


def test_an_invalid_entry_stays_and_counts_nothing() -> None:
    cache = KeyringCache()
    entry, other = _stored(cache, "acme", "bob")
    cache.invalidate(entry)
    cache.invalidate(entry)
    assert (cache.get("acme"), entry.snapshot) == (entry, None)
    assert (cache.total_bytes, cache.names) == (10, ["bob.json"])
    assert other.snapshot is SNAPSHOT


def test_the_least_recently_used_project_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _bounded(monkeypatch, projects=3)
    cache = KeyringCache()
    _stored(cache, "a", "b", "c")
    cache.use("a", 1.0)
    assert cache.get("b") is not None  # asking for it is no use
    _stored(cache, "d")
    assert _projects(cache) == ["c", "a", "d"]
    assert (cache.names, cache.total_bytes) == (["a.json", "c.json", "d.json"], 30)


def test_large_keyrings_push_out_others(monkeypatch: pytest.MonkeyPatch) -> None:
    _bounded(monkeypatch, projects=100, total_bytes=50)
    cache = KeyringCache()
    _stored(cache, "a", "b", "c")
    _stored(cache, "d", size_bytes=35)
    assert (_projects(cache), cache.total_bytes) == (["c", "d"], 45)


def test_the_only_project_stays_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _bounded(monkeypatch, projects=100, total_bytes=50)
    cache = KeyringCache()
    _stored(cache, "a", size_bytes=99)
    assert _projects(cache) == ["a"]


async def test_an_entry_with_a_read_under_way_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its callers would otherwise wait for a read that no other caller finds, and read again."""
    _bounded(monkeypatch, projects=1)

    cache = KeyringCache()
    (entry,) = _stored(cache, "a")
    entry.running = asyncio.create_task(_read())
    _stored(cache, "b")
    assert _projects(cache) == ["a", "b"]
    await entry.running
    entry.running = None
    _stored(cache, "c")
    assert _projects(cache) == ["c"]


async def test_an_unknown_project_is_removed_once_it_is_idle() -> None:
    """It must not push out a known one."""
    cache = KeyringCache()
    entry = cache.use("nobody", 0.0)
    entry.waiting = asyncio.create_task(_read())
    cache.remove_empty("nobody", entry)
    assert _projects(cache) == ["nobody"]
    await entry.waiting
    entry.waiting = None
    cache.remove_empty("nobody", CacheEntry("nobody.json"))  # another read's entry
    assert _projects(cache) == ["nobody"]
    cache.remove_empty("nobody", entry)
    assert _projects(cache) == []


def test_a_known_project_is_not_removed() -> None:
    cache = KeyringCache()
    (entry,) = _stored(cache, "acme")
    cache.remove_empty("acme", entry)
    assert _projects(cache) == ["acme"]


def test_what_a_read_shows_for_an_entry_that_went_is_counted_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its callers still get it."""
    _bounded(monkeypatch, projects=1)
    cache = KeyringCache()
    entry = cache.use("a", 0.0)
    _stored(cache, "b")
    cache.store("a", entry, SNAPSHOT, DIGEST, 99)
    assert entry.snapshot is SNAPSHOT
    assert (_projects(cache), cache.names, cache.total_bytes) == (["b"], ["b.json"], 10)


def test_a_cleared_cache_is_empty() -> None:
    cache = KeyringCache()
    _stored(cache, "a", "b")
    cache.clear()
    assert (_projects(cache), cache.names, cache.total_bytes) == ([], [], 0)


def listing(after: str, last: str | None, sent_s: float = 0) -> Listing:
    return Listing(after, last, {}, NOW, sent_s, leased=True, proves=False)


def spans(listings: Listings, names: str) -> Iterator[str]:
    """The beginning of the segment of each name, or a dash."""
    for name in names:
        found = listings.covering(name)
        yield "-" if found is None else found.after or "^"


def test_a_listing_covers_from_its_start_to_its_last_key() -> None:
    listings = Listings()
    listings.add(listing("c", "f"))
    assert "".join(spans(listings, "abcdefgh")) == "---ccc--"
    listings.add(listing("", "b"))
    assert "".join(spans(listings, "abcdefgh")) == "^^-ccc--"
    listings.add(listing("f", None))
    assert "".join(spans(listings, "abcdefgh")) == "^^-cccff"


def test_a_newer_listing_takes_the_place_of_those_that_begin_within_it() -> None:
    listings = Listings()
    for after, last in (("a", "c"), ("c", "e"), ("e", "g")):
        listings.add(listing(after, last))
    listings.add(listing("b", "d"))
    assert "".join(spans(listings, "bcdefg")) == "abb-ee"
    listings.add(listing("a", None))
    assert "".join(spans(listings, "bcdefg")) == "aaaaaa"
    assert len(listings) == 1


def test_a_listing_begins_where_the_one_before_did() -> None:
    listings = Listings()
    names = [name_of(f"p{number}") for number in range(9)]
    assert listings.start_for(names[5], names) == "p0.jso" < names[0]
    listings.add(listing("", names[3]))
    assert listings.start_for(names[2], names) == ""
    assert listings.start_for(names[5], names) == "p4.jso" > names[3]


def test_names_are_in_the_order_of_the_storage() -> None:
    """`acme-1.json` comes before `acme.json` there, though `acme` before `acme-1`."""
    assert sorted(map(name_of, ["acme", "acme-1", "acme1"])) == [
        "acme-1.json",
        "acme.json",
        "acme1.json",
    ]


def test_the_lease_is_counted_from_the_date_of_the_read() -> None:
    assert snapshot(RING).lease == Lease(DATE, 15)


@pytest.mark.parametrize(("named_s", "lease_s"), [(60, 15), (15, 15), (5, 5)])
def test_no_write_has_a_longer_lease_than_the_keyring_names(named_s: int, lease_s: int) -> None:
    """Proofs and deletes wait for no longer one."""
    assert snapshot(replace(RING, lease_s=named_s)).lease == Lease(DATE, lease_s)


def test_a_read_that_gives_no_lease_fences_no_write() -> None:
    unleased = snapshot(RING, leased=False)
    with pytest.raises(StorageUnavailableError, match="no lease"):
        _ = unleased.lease


def test_a_snapshot_prints_no_key() -> None:
    assert RING.current.kek is not None
    read = snapshot(RING)
    for secret in (RING.current.kek, *MASTER_KEYS.values(), read.desired.admin_kek):
        assert secret.reveal().hex() not in repr(read)
        assert repr(secret.reveal()) not in repr(read)
