"""`GET` of a project's objects, one page at a time (SPEC 1, 4, 9.3).

A page costs a bounded number of storage requests: a few listings, and a HEAD for each object that
its listing does not identify. When these are used up, the page ends early, and the next one
continues there. So many deleted objects do not delay a response, and a page may be empty before
the last one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Self
from urllib.parse import parse_qsl

import orjson
from starlette.requests import Request
from starlette.responses import Response

from keyturn import metadata as object_metadata
from keyturn.crypto.cobblestone import plaintext_size
from keyturn.errors import CodedError, MalformedRequestError, SealError, StorageUnavailableError
from keyturn.identifiers import (
    OBJECT_KEY_MAX_BYTES,
    has_control_characters,
    is_object_key,
    object_s3_key,
)
from keyturn.metadata import Plaintext, Tombstone, Wraps
from keyturn_workers.core.errors import MissingError, StorageResponseError
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectSummary
from keyturn_workers.gateway.auth import Authenticator
from keyturn_workers.gateway.request import parse_project
from keyturn_workers.gateway.shares import ConcurrencyLimit, SharedLimit
from keyturn_workers.process.http_server.client_connection import run_while_connected

MAX_ENTRIES: Final = 1000
"""The most entries on one page, and the default."""

# A `next` may be the key of a foreign object, which S3 alone limits.
_AFTER_MAX_BYTES: Final = 1024
_LIMIT: Final = re.compile(r"[1-9][0-9]{0,3}")
_MAX_PARAMETERS: Final = 16


@dataclass(frozen=True, slots=True)
class ListingQuery:
    """The parameters of a list request; `prefix` and `after` are relative to the project."""

    prefix: str = ""
    delimiter: str = ""
    after: str = ""
    limit: int = MAX_ENTRIES

    @classmethod
    def parse(cls, query_string: bytes) -> Self:
        """Parse a request's query.

        Raises:
            MalformedRequestError: an unknown, repeated or invalid parameter.
        """
        values = _parameters(query_string)
        limit = values.get("limit", str(MAX_ENTRIES))
        if _LIMIT.fullmatch(limit) is None or int(limit) > MAX_ENTRIES:
            raise MalformedRequestError(f"limit: must be 1 to {MAX_ENTRIES}")
        query = cls(
            prefix=values.get("prefix", ""),
            delimiter=values.get("delimiter", ""),
            after=values.get("after", ""),
            limit=int(limit),
        )
        if query.delimiter not in ("", "/"):
            raise MalformedRequestError("delimiter: must be '/'")
        if len(query.prefix.encode()) > OBJECT_KEY_MAX_BYTES:
            raise MalformedRequestError(f"prefix: at most {OBJECT_KEY_MAX_BYTES} bytes of UTF-8")
        if has_control_characters(query.prefix):
            raise MalformedRequestError("prefix: cannot contain control characters")
        if len(query.after.encode()) > _AFTER_MAX_BYTES:
            raise MalformedRequestError(f"after: at most {_AFTER_MAX_BYTES} bytes of UTF-8")
        return query

    @property
    def is_empty(self) -> bool:
        """True if no object key of SPEC 1 can begin with the prefix."""
        *folders, _ = self.prefix.split("/")
        return any(folder in ("", ".", "..") for folder in folders)


def _parameters(query_string: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MAX_PARAMETERS,
        )
    except ValueError:
        raise MalformedRequestError("the query is not valid percent-encoded UTF-8") from None
    values = dict(pairs)
    if len(values) < len(pairs):
        raise MalformedRequestError("the query repeats a parameter")
    if not values.keys() <= {"prefix", "delimiter", "after", "limit"}:
        raise MalformedRequestError(
            "unknown parameter: only prefix, delimiter, after and limit are allowed"
        )
    return values


def needs_head(keyring: Keyring, stored_bytes: int) -> bool:
    """Check if only an object's metadata shows its kind.

    An object without stored bytes is a tombstone, unless another writer made it.
    """
    return stored_bytes == 0 or keyring.plaintext_allowed


def encrypted_size(stored_bytes: int) -> int | None:
    """Return the plaintext's size by the stored size; None if no encrypted object has that."""
    try:
        return plaintext_size(stored_bytes)
    except SealError:
        return None


def is_tombstone(metadata: Mapping[str, str]) -> bool:
    """Check if this is the metadata of a deleted key."""
    return metadata.get(object_metadata.ALGO) == object_metadata.DELETED


def size_by_metadata(
    keyring: Keyring, metadata: Mapping[str, str], stored_bytes: int
) -> int | None:
    """Return the plaintext's size by metadata and stored size; None if no read would open it."""
    try:
        envelope = object_metadata.parse(metadata)
    except CodedError:
        return None
    match envelope:
        case Plaintext():
            return stored_bytes if keyring.plaintext_allowed else None
        case Wraps():
            return encrypted_size(stored_bytes)
        case Tombstone():
            return None


LISTINGS_AT_ONCE: Final = 16
"""Pages read from the storage at once. Parsing one blocks the event loop for milliseconds: this
bounds how long other requests wait while projects list as fast as they can."""

LISTINGS_AT_ONCE_A_PROJECT: Final = 4
"""The part of one project. Its other pages wait, and no other project's."""

HEADS_AT_ONCE: Final = 64
"""HEAD requests for listings, of all requests together."""

HEADS_AT_ONCE_A_PROJECT: Final = 16
"""The part of one project."""

MAX_HEADS: Final = 1000
"""The most HEAD requests for one page."""

MAX_LISTINGS: Final = 8
"""The most listings read from the storage for one page."""


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object of a page. `size_bytes` is the plaintext's, None if no read would open it."""

    key: str
    size_bytes: int | None
    changed_at: datetime


@dataclass(slots=True)
class Page:
    """Objects and common prefixes, each in key order; `next_after` is None on the last page."""

    objects: list[ListedObject] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_after: str | None = None


class ObjectLister:
    """Lists the objects of one bucket's projects."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._listings = SharedLimit(LISTINGS_AT_ONCE, LISTINGS_AT_ONCE_A_PROJECT)
        self._heads = SharedLimit(HEADS_AT_ONCE, HEADS_AT_ONCE_A_PROJECT)

    async def list(self, keyring: Keyring, query: ListingQuery) -> Page:
        """Return one page. The keyring says which kinds of objects the project has."""
        page = Page(next_after=query.after)
        if query.is_empty:
            page.next_after = None
            return page
        try:
            await self._fill(page, keyring, query)
        except StorageResponseError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        return page

    async def _fill(self, page: Page, keyring: Keyring, query: ListingQuery) -> None:
        heads = MAX_HEADS
        root = object_s3_key(keyring.project, "")
        for _ in range(MAX_LISTINGS):
            limit = min(query.limit - len(page.objects) - len(page.prefixes), heads)
            if page.next_after is None or limit == 0:
                return
            async with self._listings.hold(keyring.project):
                listed = await self._storage.list_entries(
                    root + query.prefix,
                    delimiter=query.delimiter,
                    # Never empty: an object under the root itself is foreign, and is skipped.
                    after=root + page.next_after,
                    limit=limit,
                )
            after = listed.next_after
            page.next_after = None if after is None else after.removeprefix(root)
            rows = [row for row in listed.objects if is_object_key(row.key.removeprefix(root))]
            unclear = [row for row in rows if needs_head(keyring, row.size_bytes)]
            heads -= len(unclear)
            looked = await self._look(keyring, unclear)
            page.objects += [
                known
                for row in rows
                if (known := looked.get(row.key, _encrypted(row, root))) is not None
            ]
            page.prefixes += _valid_folders(folder.removeprefix(root) for folder in listed.prefixes)

    async def _look(
        self, keyring: Keyring, rows: Sequence[ObjectSummary]
    ) -> dict[str, ListedObject | None]:
        """Return each of these objects by its S3 key: None for a tombstone."""
        looked: dict[str, ListedObject | None] = {}

        async def look(row: ObjectSummary) -> None:
            looked[row.key] = await self._look_at(keyring, row)

        await self._heads.run_each(keyring.project, rows, look)
        return looked

    async def _look_at(self, keyring: Keyring, row: ObjectSummary) -> ListedObject | None:
        try:
            head = await self._storage.head(row.key)
        except MissingError:
            return None  # it was removed after the listing
        if is_tombstone(head.metadata):
            return None
        size_bytes = size_by_metadata(keyring, head.metadata, head.size_bytes)
        key = row.key.removeprefix(object_s3_key(keyring.project, ""))
        return ListedObject(key, size_bytes, row.last_modified)


def _encrypted(row: ObjectSummary, root: str) -> ListedObject:
    return ListedObject(
        row.key.removeprefix(root), encrypted_size(row.size_bytes), row.last_modified
    )


def _valid_folders(folders: Iterable[str]) -> list[str]:
    """Keep the common prefixes that can begin an object key of SPEC 1."""
    return [folder for folder in folders if is_object_key(folder.removesuffix("/"))]


class ListingRoutes:
    """Lists objects."""

    def __init__(self, auth: Authenticator, limit: ConcurrencyLimit, storage: Storage) -> None:
        self._auth = auth
        self._limit = limit
        self._lister = ObjectLister(storage)

    async def get(self, request: Request) -> Response:
        """Return one page."""
        project = parse_project(request.scope["raw_path"])
        authorization = request.headers.getlist("authorization")
        caller = await self._auth.authenticate(project, authorization)
        query = ListingQuery.parse(request.scope["query_string"])
        with self._limit.hold(project):
            listing = self._lister.list(caller.snapshot.keyring, query)
            page = await run_while_connected(request.receive, listing)
        headers = {"cache-control": "no-store"}
        return Response(_document(page), headers=headers, media_type="application/json")


def _document(page: Page) -> bytes:
    objects = [
        {"key": each.key, "size": each.size_bytes, "changed_at": each.changed_at}
        for each in page.objects
    ]
    document = {"objects": objects, "prefixes": page.prefixes, "next": page.next_after}
    return orjson.dumps(document, option=orjson.OPT_UTC_Z)
