"""Read keyrings: from the cache, or by a read that begins after the call (SPEC 7.3, 8.4).

Many uploads share one read. The instant that matters is when a read *began*, not when its response
came: only a read that began after a put was acknowledged shows that the desired state had not
changed before the put. `read_fresh` gives exactly that.

No keyring leaves this module before its mark is on the stream, or if a mark contradicts it
(SPEC 5.5). A writer therefore publishes no mark: it reads the keyring again after its put.

With many projects, one listing replaces many reads: its ETags show that the cached keyrings had
not changed when it was sent (`keyturn_workers.keys.keyring.cache`).
"""

import asyncio
import contextlib
import hashlib
from bisect import bisect_right
from datetime import timedelta
from typing import Final

import structlog

from keyturn.errors import (
    CodedError,
    StorageUnavailableError,
    TransientError,
    UnknownProjectError,
)
from keyturn.identifiers import KEYRINGS_PREFIX, keyring_s3_key, parse_time
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.errors import MissingError, StorageResponseError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring import DesiredState, Keyring
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import PAGE_KEYS
from keyturn_workers.keys.keyring.cache import CacheEntry, KeyringCache, Listing, Listings
from keyturn_workers.keys.keyring.marks import (
    Finding,
    KeyringContradictedError,
    KeyringErasedError,
    KeyringErasingError,
    KeyringHiddenError,
    KeyringRemovedError,
    KeyringUnknownError,
    Mark,
    StoredKeyring,
    Witness,
)
from keyturn_workers.keys.keyring.store import KEYRING_MAX_BYTES, parse_keyring
from keyturn_workers.process.background import share
from keyturn_workers.storage.clock import StorageClock

BETWEEN_READS_S: Final = 0.03
"""The least time between reads of a busy project, so that more uploads share a read.

A single upload never waits for it.
"""

# After this fraction of the cache time a keyring in use is renewed in the background, so that no
# upload waits for it.
_RENEW_AFTER: Final = 0.85
# The attempts at a read, which is repeated if a mark arrives while it is under way.
_MAX_ATTEMPTS: Final = 8
# An enrollment may mark the first keyring that it put for this long after the put.
_MARKED_WITHIN: Final = timedelta(hours=1)
_SIGNED_AT_ONCE: Final = 32

_log = structlog.get_logger()


class KeyringReader:
    """Reads keyrings for one process; its uploads share the reads.

    A read can also write: if the keyring's mark is missing from the stream, a worker publishes it
    and reads again. A gateway publishes no marks.
    """

    def __init__(
        self,
        storage: Storage,
        keys: KekDeriver,
        *,
        lease_s: int,
        cache_s: float,
        clock: StorageClock | None = None,
        witness: Witness | None = None,
    ) -> None:
        """Create a reader.

        `cache_s` must stay well below `lease_s`: the lease fences writes by a cached read.
        Without a `witness`, each keyring that opens is trusted.
        """
        self.clock = clock or StorageClock(lease_s)
        self._storage = storage
        self._keys = keys
        self._lease_s = lease_s
        self._cache_s = cache_s
        self._cache = KeyringCache()
        self._listings = Listings()
        self._listings_in_flight: dict[str, asyncio.Task[None]] = {}
        self._renewing: set[str] = set()
        self._witness = witness
        keys.when_forgotten(self._forget_keks)
        if witness is not None:
            witness.when_marked(self._forget_older)

    @property
    def lease_s(self) -> int:
        """This process's lease, in seconds."""
        return self._lease_s

    async def read_recent(self, project: str) -> KeyringSnapshot:
        """Return the keyring by a read or listing that was sent at most `cache_s` seconds ago.

        Raises:
            UnknownProjectError: no keyring exists.
            ProjectErasedError: the project was erased.
            CorruptObjectError: it was forged, moved or damaged.
            KeyringRolledBackError: it is older than its mark, was removed, or has no mark.
            MarksUnavailableError, UnknownMasterKeyError, KmsUnavailableError,
            CustomerKeyUnavailableError, StorageUnavailableError: try again later.
        """
        if self._witness is not None:
            await self._witness.become_current()
        snapshot = self.get_cached(project)
        if snapshot is not None:
            self._renew_in_background(project, snapshot)
        elif await self._renew_by_listing(project):
            snapshot = self.get_cached(project)
        if self._witness is not None:
            # Here, too, before a read: it would wait for the marks once more, and then be refused.
            self._witness.check_current(project)
        return snapshot if snapshot is not None else await self.read_fresh(project)

    def get_cached(self, project: str) -> KeyringSnapshot | None:
        """Return the keyring if the cache has one at most `cache_s` old; sends no request."""
        snapshot = self.get_last(project)
        if snapshot is None:
            return None
        now_s = self.clock.local_s()
        self._cache.use(project, now_s)
        return snapshot if now_s - snapshot.sent_s <= self._cache_s else None

    def get_last(self, project: str) -> KeyringSnapshot | None:
        """Return the cached keyring, of any age; None if the cache has none.

        The call adds no entry for the project: callers may invent names.
        """
        entry = self._cache.get(project)
        if entry is None or entry.snapshot is None:
            return None
        if not self._keys.touch(entry.snapshot.desired.master_key, project):
            self._cache.invalidate(entry)  # its KEK may not be used any longer
            return None
        listing = self._listings.covering(entry.name)
        if listing is not None and listing.sent_s > entry.snapshot.sent_s:
            self._apply_listing(entry, entry.snapshot, listing)
        return entry.snapshot

    async def read_leased(self, project: str) -> KeyringSnapshot:
        """Like `read_recent`, but read again if that read gives no lease."""
        snapshot = await self.read_recent(project)
        return snapshot if snapshot.leased else await self.read_fresh(project)

    async def read_fresh(self, project: str) -> KeyringSnapshot:
        """Return the keyring by a read that begins after this call; raises as `read_recent`.

        Calls that come while a read is under way share the next read.
        """
        entry = self._cache.use(project, self.clock.local_s())
        if entry.running is None:
            entry.running = share(self._read(project, entry))
            return await asyncio.shield(entry.running)
        if entry.waiting is None:
            entry.waiting = share(self._read_after(project, entry, entry.running))
        return await asyncio.shield(entry.waiting)

    async def read_record(self, project: str) -> StoredKeyring:
        """Like `read_fresh`, also for a project that is erased, or is being erased."""
        try:
            snapshot = await self.read_fresh(project)
        except (KeyringErasingError, KeyringErasedError) as exc:
            return exc.stored
        return StoredKeyring(snapshot.keyring, snapshot.etag, snapshot.read_at)

    async def _read_after(
        self, project: str, entry: CacheEntry, before: asyncio.Task[KeyringSnapshot]
    ) -> KeyringSnapshot:
        await asyncio.wait([before])
        # This read occupies the entry while it waits. It has not begun, so new callers share it.
        entry.running = entry.waiting
        if entry.snapshot is not None:
            await asyncio.sleep(entry.snapshot.sent_s + BETWEEN_READS_S - self.clock.local_s())
        # The read begins here: new callers need the next one.
        entry.waiting = None
        return await self._read(project, entry)

    async def _read(self, project: str, entry: CacheEntry) -> KeyringSnapshot:
        try:
            return await self._request(project, entry)
        finally:
            # Not kept in a variable: the task refers to its error, whose traceback refers to
            # this frame.
            if entry.running is asyncio.current_task():
                entry.running = None
            self._cache.remove_empty(project, entry)

    async def read_own(self, project: str, origin: RequestOrigin) -> KeyringSnapshot:
        """Like `read_fresh`, for an enrollment that may have put the keyring itself.

        A worker can die between the put of a project's first keyring and its mark. The redelivered
        request shows that this keyring was not restored from a backup. It shows this only for a
        short time and only for the first keyring: after the loss of a broker, an old request that
        is sent again must not get an old keyring marked.
        """
        try:
            return await self.read_fresh(project)
        except KeyringUnknownError as exc:
            keyring = exc.keyring
            age = self.clock.now() - parse_time(keyring.current.at)
            is_own = (keyring.origin, keyring.serial) == (origin, 1) and age <= _MARKED_WITHIN
            if self._witness is None or not is_own:
                raise
            await self._witness.publish(exc.keyring, exc.mark)
        return await self.read_fresh(project)

    async def catch_up(self) -> None:
        """Wait until all marks are known that were on the stream at the time of the call.

        Raises:
            MarksUnavailableError: the stream cannot be read.
        """
        if self._witness is not None:
            await self._witness.catch_up()

    def marked_projects(self) -> set[str]:
        """Return the projects that have a mark: each has, or had, a keyring."""
        return set() if self._witness is None else set(self._witness.table.projects())

    async def sign_marks_anew(self) -> None:
        """Sign with the current event key the marks that an earlier key signed (SPEC 5.5).

        Raises:
            MarksUnavailableError: the broker is away.
            StorageUnavailableError, KmsUnavailableError, UnknownMasterKeyError: a keyring cannot
                be read now.
        """
        if self._witness is None:
            return
        projects = sorted(self._witness.signed_before)
        for first in range(0, len(projects), _SIGNED_AT_ONCE):
            batch = projects[first : first + _SIGNED_AT_ONCE]
            await asyncio.gather(*(self._sign_mark_anew(self._witness, each) for each in batch))

    async def _sign_mark_anew(self, witness: Witness, project: str) -> None:
        """Sign a keyring's mark if the two match: an attacker may have signed any other mark."""
        try:
            keyring = (await self.read_record(project)).keyring
            mark = witness.table.find(project)
            read = keyring.serial, keyring.current.generation
            if mark is not None and read == (mark.serial, mark.generation):
                await witness.publish(keyring, mark)
                return
            problem = "the mark names another state of the keyring"
        except CodedError as exc:
            if isinstance(exc, TransientError) and not isinstance(exc, KeyringContradictedError):
                raise  # the error says nothing about the mark
            problem = str(exc)
        _log.error("mark not re-signed", project=project, problem=problem)

    @property
    def is_current(self) -> bool:
        """True if the newest marks are known, or none are needed."""
        return self._witness is None or self._witness.is_current

    async def require_current(self) -> None:
        """Check that the newest marks are known, for a gateway, which can also read without them.

        Raises:
            MarksUnavailableError: they are not known.
        """
        if self._witness is not None:
            await self._witness.require_current()

    async def _request(self, project: str, entry: CacheEntry) -> KeyringSnapshot:
        for _ in range(_MAX_ATTEMPTS):
            snapshot = await self._request_once(project, entry)
            if snapshot is not None:
                return snapshot
        raise StorageUnavailableError("the keyring kept changing while it was read")

    async def _request_once(self, project: str, entry: CacheEntry) -> KeyringSnapshot | None:
        """One read; None if the keyring has changed meanwhile, by a mark that arrived."""
        if self._witness is not None:
            await self._witness.become_current()
        since = 0 if self._witness is None else self._witness.table.received
        sent_s = self.clock.local_s()
        try:
            head, body = await self._storage.read(
                keyring_s3_key(project), max_bytes=KEYRING_MAX_BYTES
            )
        except MissingError as exc:
            self._cache.invalidate(entry)
            if await self._is_missing(project, since):
                raise UnknownProjectError.of(project) from exc
            return None
        received_s = self.clock.local_s()
        trust = self.clock.observe(head.date, sent_s, received_s)
        digest = hashlib.sha256(body).digest()
        if digest != entry.digest:
            self._cache.invalidate(entry)  # it changed, whatever it is now
        last = entry.snapshot
        # A KEK that may not be used any longer may not be used because the record is the same.
        if last is not None and self._keys.touch(last.desired.master_key, project):
            keyring = last.keyring
            desired: DesiredState | None = last.desired
        else:
            keyring = await parse_keyring(body, project, self._keys)
            admin_kek = await self._keys.admin_kek(keyring.master_key, project)
            desired = None if keyring.is_erased else keyring.desired(admin_kek)
        mark = Mark.of(keyring, digest)
        if not await self._is_marked(keyring, mark, since):
            self._cache.invalidate(entry)
            return None
        erasure = keyring.erasure
        if desired is None or (erasure is not None and erasure.holds_at(head.date)):
            self._cache.invalidate(entry)
            stored = StoredKeyring(keyring, head.etag, head.date)
            raise KeyringErasedError(stored) if desired is None else KeyringErasingError(stored)
        leased = trust.agrees and received_s - sent_s <= self.clock.max_read_s
        snapshot = KeyringSnapshot(
            keyring,
            desired,
            head.etag,
            read_at=head.date,
            sent_s=sent_s,
            lease_s=self._lease_s,
            leased=leased,
            proves=leased and trust.proves,
        )
        if self._witness is not None and (
            self._witness.table.compare(project, mark, since) is Finding.UNKNOWN
        ):
            # A gateway uses it until it knows the marks, and must not cache it for longer.
            self._cache.invalidate(entry)
        else:
            self._cache.store(project, entry, snapshot, digest, len(body))
        return snapshot

    async def _is_marked(self, keyring: Keyring, read: Mark, since: int) -> bool:
        """Return whether the keyring read matches its mark; marks a newer keyring.

        False if the read must be repeated. `since` is `MarkTable.received` before the read.

        Raises:
            KeyringRolledBackError: a mark contradicts the keyring.
            MarksUnavailableError: the marks are not known, or it cannot be marked now.
        """
        if self._witness is None:
            return True
        project, table = keyring.project, self._witness.table
        self._witness.check_current(project)
        finding = table.compare(project, read, since)
        if finding is Finding.MARKED or self._witness.accepts(finding):
            return True  # the caller stores it without an await: no mark can come in between
        if finding is Finding.UNMARKED:
            # The caller reads again: a transition is dated by a read that began after its mark,
            # and another worker may have changed the keyring meanwhile.
            await self._witness.publish(keyring, read)
            return False
        if finding is Finding.UNKNOWN:
            # The mark may be on the way from the worker that put the keyring.
            await self._witness.catch_up()
            if table.find(project) is not None:
                return False
            raise KeyringUnknownError(
                "the keyring has no mark: the broker was lost, or the keyring was restored; "
                "see `keyturn recover`",
                keyring,
                read,
            )
        if finding is Finding.ROLLED_BACK:
            known = table.find(project)
            raise KeyringContradictedError(
                f"the keyring is at serial {read.serial}, and its mark at "
                f"{known.serial if known else read.serial}: it was rolled back; "
                "see `keyturn recover`"
            )
        return False

    async def _is_missing(self, project: str, since: int) -> bool:
        """Return True if a keyring that was not found never existed, False to repeat the read.

        Raises:
            KeyringRemovedError: a mark says that it existed.
            KeyringHiddenError: a listing shows it: the read was wrong.
        """
        if self._witness is None:
            return True
        self._witness.check_current(project)
        known = self._witness.table.find(project)
        if known is None:
            return True
        if self._witness.table.has_received(project, since):
            return False
        s3_key = keyring_s3_key(project)
        async for row in self._storage.list(s3_key, limit=1):
            if row.key == s3_key:
                raise KeyringHiddenError("the keyring is listed but was not found")
        raise KeyringRemovedError(
            f"the keyring was removed; its mark is at serial {known.serial}", known
        )

    def _forget_older(self, project: str, mark: Mark) -> None:
        """Drop a snapshot that differs from a mark just received."""
        entry = self._cache.get(project)
        if entry is not None and entry.snapshot is not None:
            keyring = entry.snapshot.keyring
            if (keyring.serial, entry.digest) != (mark.serial, mark.digest):
                self._cache.invalidate(entry)

    def _forget_keks(self, project: str) -> None:
        """Drop the snapshot, which holds copies of the project's KEKs."""
        entry = self._cache.get(project)
        if entry is not None:
            self._cache.invalidate(entry)
            self._cache.remove_empty(project, entry)

    def _apply_listing(self, entry: CacheEntry, last: KeyringSnapshot, listing: Listing) -> None:
        """Update a snapshot by a listing that was sent after its read."""
        if listing.etags.get(entry.name) == last.etag:
            # This runs up to once per upload, and `dataclasses.replace` takes twice as long.
            entry.snapshot = KeyringSnapshot(
                last.keyring,
                last.desired,
                last.etag,
                read_at=listing.date,
                sent_s=listing.sent_s,
                lease_s=last.lease_s,
                leased=listing.leased,
                proves=listing.proves,
            )
        else:
            self._cache.invalidate(entry)  # it is gone or has changed: a read will show which

    async def _renew_by_listing(self, project: str) -> bool:
        """Renew a cached keyring by a listing, if one needs fewer requests than reads."""
        entry = self._cache.get(project)
        if entry is None or entry.snapshot is None:
            return False
        if not self._cache_s or not self._storage.capabilities.listings_show_overwrites:
            return False
        after = self._listings.start_for(entry.name, self._cache.names)
        listing = self._listings_in_flight.get(after)
        if listing is None:
            if not self._is_worth_listing(entry.name, after):
                return False
            listing = self._listings_in_flight[after] = share(self._list(after))
        await asyncio.shield(listing)
        return True

    def _is_worth_listing(self, name: str, after: str) -> bool:
        """Return whether the listing would show more than one keyring in use."""
        since_s = self.clock.local_s() - 2 * self._cache_s
        names = self._cache.names
        covering = self._listings.covering(name)
        begin = bisect_right(names, after)
        end = begin + PAGE_KEYS
        if covering is not None and covering.last is not None:
            end = bisect_right(names, covering.last)
        in_use = 0
        for other in names[begin:end]:
            entry = self._cache.get(_project_of(other))
            if entry is not None and entry.used_s >= since_s:
                in_use += 1
                if in_use > 1:
                    return True
        return False

    async def _list(self, after: str) -> None:
        sent_s = self.clock.local_s()
        try:
            start = f"{KEYRINGS_PREFIX}{after}" if after else ""
            page = await self._storage.list_page(KEYRINGS_PREFIX, after=start)
        except (StorageResponseError, StorageUnavailableError):
            return  # a read may still succeed
        finally:
            self._listings_in_flight.pop(after, None)
        received_s = self.clock.local_s()
        trust = self.clock.observe(page.date, sent_s, received_s)
        etags = {s3_key.removeprefix(KEYRINGS_PREFIX): etag for s3_key, etag in page.etags.items()}
        last = None if page.is_last else next(reversed(etags), after)
        if page.date is None or last == after:
            return
        leased = trust.agrees and received_s - sent_s <= self.clock.max_read_s
        self._listings.add(
            Listing(after, last, etags, page.date, sent_s, leased, leased and trust.proves)
        )

    def _renew_in_background(self, project: str, snapshot: KeyringSnapshot) -> None:
        """Renew a keyring before its cache time is over; no caller waits for the read."""
        age_s = self.clock.local_s() - snapshot.sent_s
        if age_s <= self._cache_s * _RENEW_AFTER or project in self._renewing:
            return
        entry = self._cache.get(project)
        if entry is not None and entry.running is not None:
            return
        self._renewing.add(project)
        renewal = share(self._renew(project))
        renewal.add_done_callback(lambda _: self._renewing.discard(project))

    async def _renew(self, project: str) -> None:
        if not await self._renew_by_listing(project):
            with contextlib.suppress(CodedError, StorageResponseError):
                await self.read_fresh(project)


def _project_of(name: str) -> str:
    return name.removesuffix(".json")
