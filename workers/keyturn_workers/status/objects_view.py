"""The view of which keys objects and records depend on, some S3 keys a page (SPEC 8.1, 16.1).

It covers the whole bucket, Keyturn's own records included: a master key may be dropped only once
nothing depends on it. Adding up the pages is for those who ask.

A position is `{version}:{S3 key}`: after this version of the key, by the first 16 hex digits of the
SHA-256 of its id; or after the whole key, where it is empty.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from keyturn.errors import CodedError, KmsUnavailableError, MalformedRequestError
from keyturn.identifiers import ALL_PROJECTS, OWN_PREFIX
from keyturn.messages import ObjectGroupStatus
from keyturn_workers.keyring import Keyring
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.status.census import (
    UNREADABLE,
    Census,
    ObjectGroup,
    ObjectInspector,
    read_generations,
)
from keyturn_workers.status.pace import BATCH, Pace
from keyturn_workers.status.page import Page
from keyturn_workers.status.records import Record, open_record, record_of
from keyturn_workers.status.summaries import read_batches
from keyturn_workers.storage import ObjectSummary, ObjectVersion, Storage

_TAG_CHARACTERS: Final = 16


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
            raise MalformedRequestError("after is no position of this view")
        return cls(tag, s3_key)

    def __str__(self) -> str:
        return f"{self.tag}:{self.s3_key}"


class ObjectsView:
    """Inspects objects and records, some S3 keys a page."""

    def __init__(self, storage: Storage, keys: OperatorKeys, pace: Pace) -> None:
        self._storage = storage
        self._keys = keys
        self._pace = pace

    async def read(self, project: str, after: str | None, limit: int) -> Page[ObjectGroupStatus]:
        """The groups of at most `limit` listed objects: all, or those of one project.

        Generations are told apart for one project only.

        Raises:
            StorageUnavailableError, StorageAnswerError, KmsUnavailableError: the census would be
                incomplete.
        """
        position = _Position.parse(after)
        prefix = "" if project == ALL_PROJECTS else f"{project}/"
        if await self._storage.versioning():
            items, following = await self._list_versions(prefix, position, limit)
        else:
            items, following = await self._list(prefix, position, limit)
        own = [item for item in items if _is_own(item)]
        census = await self._inspect([item for item in items if not _is_own(item)])
        # Older versions of records open nothing that the latest one does not.
        latest = [item.listed for item in own if item.version_id is None]
        census += await self._open([each for row in latest if (each := record_of(row))])
        return Page(_rows(census, with_generations=project != ALL_PROJECTS), following)

    # What there is.

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
        """The versions after a position: first those that are left of its key."""
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

    # What it depends on.

    async def _inspect(self, items: Sequence[_Item]) -> Census:
        known: dict[str, Sequence[int]] = {}

        async def generations(project: str) -> Sequence[int]:
            if project not in known:
                known[project] = await read_generations(self._storage, self._keys, project)
            return known[project]

        inspector = ObjectInspector(self._storage, self._keys, generations)
        census: Census = Counter()
        for begin in range(0, len(items), BATCH):
            await self._pace.next_batch()
            groups = await asyncio.gather(
                *(
                    inspector.inspect(item.listed.key, item.version_id)
                    for item in items[begin : begin + BATCH]
                )
            )
            census.update(group for group in groups if group is not None)
        return census

    async def _open(self, records: Sequence[Record]) -> Census:
        census: Census = Counter()
        for batch in read_batches(range(len(records)), records):
            await self._pace.next_batch()
            opened = await asyncio.gather(
                *(open_record(self._storage, self._keys, records[number]) for number in batch)
            )
            for number, each in zip(batch, opened, strict=True):
                project = records[number].project
                match each:
                    case None:
                        pass
                    case KmsUnavailableError():
                        raise each
                    case CodedError():
                        census[ObjectGroup(project, UNREADABLE, code=each.code)] += 1
                    case _:
                        kind = "keyring" if isinstance(each.content, Keyring) else "sweep_record"
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


def _rows(census: Census, *, with_generations: bool) -> tuple[ObjectGroupStatus, ...]:
    merged: Census = Counter()
    for group, number in census.items():
        generation = group.generation if with_generations else None
        merged[replace(group, project="", generation=generation)] += number
    ordered = sorted(
        merged, key=lambda g: (g.kind, -(g.generation or 0), g.master_key or "", g.code or "")
    )
    return tuple(
        ObjectGroupStatus.model_validate(
            {
                "kind": group.kind,
                "count": merged[group],
                "generation": group.generation,
                "master_key": group.master_key,
                "code": group.code,
            }
        )
        for group in ordered
    )
