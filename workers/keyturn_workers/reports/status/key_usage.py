"""A census of the keys that objects depend on, by what opens their wraps (SPEC 8.1, 8.7).

The view `objects` (SPEC 16.1), a range of S3 keys a page.

Each admin wrap and each tombstone is opened; labels are never trusted. The census covers the whole
bucket, not only enrolled projects: an object without a keyring still needs its master key.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from keyturn.errors import (
    ArchivedObjectError,
    CodedError,
    CustomerKeyRefusedError,
    CustomerKeyUnavailableError,
    KmsUnavailableError,
    MalformedRequestError,
    NoUsableWrapError,
    PermanentError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import ALL_PROJECTS, OWN_PREFIX, is_object_key, is_project, keyring_s3_key
from keyturn.messages.status import ObjectGroupStatus
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.customer_keys import NO_SECRETS, CustomerSecrets
from keyturn_workers.core.errors import ArchivedError, MissingError
from keyturn_workers.core.given_secrets import GivenSecrets
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.master_key_usage import (
    FOREIGN,
    KEYRING,
    NONCURRENT,
    SWEEP_RECORD,
    UNREADABLE,
)
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectHead, ObjectSummary, ObjectVersion
from keyturn_workers.core.wraps import KeyUsage, find_key_usage, past_generations
from keyturn_workers.keys.keyring.store import parse_keyring
from keyturn_workers.reports.status.records import (
    OF_WORKER,
    RECORD_ERRORS,
    Bounds,
    Pace,
    Record,
    list_records,
    open_record,
    read_batches,
    record_of,
)
from keyturn_workers.reports.status.rows import short_detail

_TAG_CHARACTERS: Final = 16

FindKeyring = Callable[[str], Awaitable[Keyring | None]]
"""The keyring of a project; None if it is not known."""


@dataclass(frozen=True, slots=True)
class ObjectGroup:
    """The properties that the census groups objects by.

    `kind` is that of `keyturn_workers.core.wraps`, or `noncurrent` for an older version,
    `foreign`, or `unreadable` with the reason in `code`. `project` is empty for a key outside
    of projects. A record that does not open is a group of its own, with its S3 key.
    """

    project: str
    kind: str
    generation: int | None = None
    master_key: str | None = None
    code: str | None = None
    record: str | None = None
    detail: str | None = None


Census = Counter[ObjectGroup]


async def list_objects(storage: Storage, prefix: str) -> AsyncIterator[tuple[str, str | None]]:
    """Yield S3 key and version of all objects but Keyturn's; None is the current version."""
    if not await storage.versioning():
        async for listed in storage.list(prefix):
            if not listed.key.startswith(OWN_PREFIX):
                yield listed.key, None
        return
    async for version in storage.list_versions(prefix):
        if not version.is_delete_marker and not version.key.startswith(OWN_PREFIX):
            yield version.key, None if version.is_latest else version.version_id


class ObjectInspector:
    """Finds the group of one object after the other.

    `find_keyring` is asked only if an object does not open by its label and an admin KEK alone.
    """

    def __init__(
        self,
        storage: Storage,
        keys: KekDeriver,
        customer_keys: CustomerKeys | GivenSecrets,
        find_keyring: FindKeyring,
    ) -> None:
        self._storage = storage
        self._keys = keys
        self._customer_keys = customer_keys
        self._find_keyring = find_keyring

    async def inspect(self, s3_key: str, version_id: str | None) -> ObjectGroup | None:
        """Return the group of one object, or of an older version; None if it is gone.

        Raises:
            StorageUnavailableError, StorageResponseError, KmsUnavailableError: the census would be
                incomplete.
        """
        project, _, object_key = s3_key.partition("/")
        if not is_project(project) or not is_object_key(object_key):
            return ObjectGroup(project if is_project(project) else "", FOREIGN)
        try:
            usage = await self._usage(await self._head(s3_key, version_id), project, object_key)
        except MissingError:
            return None
        except ArchivedError:  # an older version: its metadata comes with its bytes
            return ObjectGroup(project, UNREADABLE, code=ArchivedObjectError.code)
        except (
            PermanentError,
            UnknownMasterKeyError,
            CustomerKeyRefusedError,
            CustomerKeyUnavailableError,
        ) as exc:
            return ObjectGroup(project, UNREADABLE, code=exc.code)
        kind = usage.kind if version_id is None else NONCURRENT
        return ObjectGroup(project, kind, usage.generation, usage.master_key)

    async def _head(self, s3_key: str, version_id: str | None) -> ObjectHead:
        if version_id is None:
            return await self._storage.head(s3_key)
        return (await self._storage.read_start(s3_key, 1, version_id=version_id))[0]

    async def _usage(self, head: ObjectHead, project: str, object_key: str) -> KeyUsage:
        def of(secrets: CustomerSecrets, generations: Sequence[int] = ()) -> Awaitable[KeyUsage]:
            def find(keks: AdminKeks) -> KeyUsage:
                keks = keks.with_secrets(secrets)
                return find_key_usage(head.metadata, project, object_key, keks, generations)

            return self._keys.open_with(project, find)

        try:
            return await of(NO_SECRETS)
        except (NoUsableWrapError, KmsUnavailableError, UnknownMasterKeyError):
            keyring = await self._find_keyring(project)
            if keyring is None:
                raise
        if keyring.is_erased:
            return KeyUsage("erased")
        generations = (keyring.current.generation, *past_generations(keyring))
        opening = partial(of, generations=generations)
        return await self._customer_keys.open_with(keyring, opening)


async def find_keyring(storage: Storage, keys: KekDeriver, project: str) -> Keyring | None:
    """Return a project's keyring; None if it is missing or does not open."""
    try:
        _, body = await storage.read(keyring_s3_key(project))
        return await parse_keyring(body, project, keys)
    except (MissingError, *RECORD_ERRORS):
        return None


@dataclass(frozen=True, slots=True)
class _Item:
    """A listed object, or an older version of it."""

    listed: ObjectSummary
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Position:
    tag: str = ""
    s3_key: str = ""

    @classmethod
    def parse(cls, text: str | None) -> "_Position":
        if text is None:
            return cls()
        tag, separator, s3_key = text.partition(":")
        if not separator or not s3_key or len(tag) not in (0, _TAG_CHARACTERS):
            raise MalformedRequestError("after is not a position in this view")
        return cls(tag, s3_key)

    def __str__(self) -> str:
        return f"{self.tag}:{self.s3_key}"


class ObjectsView:
    """Inspects objects and records, some S3 keys a page."""

    def __init__(
        self,
        storage: Storage,
        keys: KekDeriver,
        customer_keys: CustomerKeys | GivenSecrets,
        pace: Pace,
        bounds: Bounds = OF_WORKER,
    ) -> None:
        self._storage = storage
        self._keys = keys
        self._customer_keys = customer_keys
        self._pace = pace
        self._bounds = bounds

    async def read(
        self, project: str, after: str | None, limit: int, *, records: bool | None = None
    ) -> tuple[tuple[ObjectGroupStatus, ...], str | None]:
        """Return the groups of at most `limit` listed objects, and the position of the next page.

        Generations are distinguished for one project only, unless the bounds say otherwise. With
        `records` only keyrings and records of sweeps are read; without it, only objects; if it is
        None, both.

        Raises:
            StorageUnavailableError, StorageResponseError, KmsUnavailableError: the census would be
                incomplete.
        """
        position = _Position.parse(after)
        if records:
            found, next_after = await list_records(self._storage, project, position.s3_key, limit)
            census = await self._open(found)
            return self._rows(census, project), next_after and str(_Position("", next_after))
        prefix = "" if project == ALL_PROJECTS else f"{project}/"
        # The publisher may be allowed this project alone, and chooses the position.
        if not position.s3_key.startswith(prefix) and after is not None:
            raise MalformedRequestError("after is not a position in this project")
        if await self._storage.versioning():
            items, following = await self._list_versions(prefix, position, limit)
        else:
            items, following = await self._list(prefix, position, limit)
        own = [] if records is False else [item for item in items if _is_own(item)]
        census = await self._inspect([item for item in items if not _is_own(item)])
        # Older versions of records open nothing that the latest one does not.
        latest = [item.listed for item in own if item.version_id is None]
        census += await self._open([each for row in latest if (each := record_of(row))])
        return self._rows(census, project), following

    def _rows(self, census: Census, project: str) -> tuple[ObjectGroupStatus, ...]:
        is_detailed = self._bounds.is_detailed
        with_generations = is_detailed or project != ALL_PROJECTS
        return _rows(census, with_generations=with_generations, is_detailed=is_detailed)

    # Listing.

    async def _list(
        self, prefix: str, position: _Position, limit: int
    ) -> tuple[list[_Item], str | None]:
        listing = await self._storage.list_entries(prefix, after=position.s3_key, limit=limit)
        following = listing.next_after
        return (
            [_Item(row) for row in listing.objects],
            None if following is None else str(_Position("", following)),
        )

    async def _list_versions(
        self, prefix: str, position: _Position, limit: int
    ) -> tuple[list[_Item], str | None]:
        versions: list[ObjectVersion] = []
        async with aclosing(self._versions(prefix, position, limit + 1)) as listed:
            async for version in listed:
                versions.append(version)
                if len(versions) > limit:
                    break
        following = None
        if len(versions) > limit:
            last, behind = versions[limit - 1], versions.pop()
            tag = _tag(last) if behind.key == last.key else ""
            following = str(_Position(tag, last.key))
        return [_item(each) for each in versions if not each.is_delete_marker], following

    async def _versions(
        self, prefix: str, position: _Position, limit: int
    ) -> AsyncGenerator[ObjectVersion, None]:
        """Yield the versions after a position: first the rest of its key's versions."""
        if position.tag:
            passed = False
            # If the version is gone meanwhile, the key begins again: twice is better than never.
            for begin_again in (False, True):
                async for version in self._storage.list_versions(position.s3_key):
                    if version.key != position.s3_key:
                        break
                    if passed or begin_again:
                        yield version
                    passed = passed or _tag(version) == position.tag
                if passed:
                    break
        async for version in self._storage.list_versions(
            prefix, after=position.s3_key, limit=limit
        ):
            yield version

    # Inspection.

    async def _inspect(self, items: Sequence[_Item]) -> Census:
        known: dict[str, Keyring | None] = {}

        async def find(project: str) -> Keyring | None:
            if project not in known:
                known[project] = await find_keyring(self._storage, self._keys, project)
            return known[project]

        inspector = ObjectInspector(self._storage, self._keys, self._customer_keys, find)
        census: Census = Counter()
        at_once = self._bounds.at_once
        for begin in range(0, len(items), at_once):
            await self._pace.next_batch()
            groups = await asyncio.gather(
                *(
                    inspector.inspect(item.listed.key, item.version_id)
                    for item in items[begin : begin + at_once]
                )
            )
            census.update(group for group in groups if group is not None)
        return census

    async def _open(self, records: Sequence[Record]) -> Census:
        census: Census = Counter()
        for batch in read_batches(records, self._bounds.at_once):
            await self._pace.next_batch()
            opened = await asyncio.gather(
                *(open_record(self._storage, self._keys, record) for record in batch)
            )
            for record, each in zip(batch, opened, strict=True):
                project = record.project
                match each:
                    case None:
                        pass
                    case KmsUnavailableError():
                        raise each
                    case CodedError():
                        code, s3_key = each.code, record.listed.key
                        detail = short_detail(each)
                        group = ObjectGroup(
                            project, UNREADABLE, code=code, record=s3_key, detail=detail
                        )
                        census[group] += 1
                    case _:
                        kind = KEYRING if isinstance(each.content, Keyring) else SWEEP_RECORD
                        group = ObjectGroup(project, kind, master_key=each.content.master_key)
                        census[group] += 1
        return census


def _is_own(item: _Item) -> bool:
    return item.listed.key.startswith(OWN_PREFIX)


def _tag(version: ObjectVersion) -> str:
    return hashlib.sha256(version.version_id.encode()).hexdigest()[:_TAG_CHARACTERS]


def _item(version: ObjectVersion) -> _Item:
    summary = ObjectSummary(version.key, version.size_bytes, version.etag, version.last_modified)
    return _Item(summary, None if version.is_latest else version.version_id)


def _rows(
    census: Census, *, with_generations: bool, is_detailed: bool
) -> tuple[ObjectGroupStatus, ...]:
    merged: Census = Counter()
    for group, number in census.items():
        generation = group.generation if with_generations else None
        row = replace(group, generation=generation)
        if not is_detailed:
            row = replace(row, project="", record=None, detail=None)
        merged[row] += number
    ordered = sorted(merged, key=_order)
    return tuple(
        ObjectGroupStatus.model_validate(
            {
                "kind": group.kind,
                "count": merged[group],
                "generation": group.generation,
                "master_key": group.master_key,
                "code": group.code,
                "project": group.project if is_project(group.project) else None,
                "record": group.record,
                "detail": group.detail,
            }
        )
        for group in ordered
    )


def _order(group: ObjectGroup) -> tuple[object, ...]:
    key, code, record = group.master_key or "", group.code or "", group.record or ""
    return group.project, group.kind, -(group.generation or 0), key, code, record
