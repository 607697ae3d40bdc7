"""Which keys objects depend on: a census by what their wraps open under (SPEC 8.1, 8.7).

Each admin wrap and each tombstone is opened; labels are never believed. It covers all that a bucket
holds, not only enrolled projects: an object without a keyring still needs its master key.
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from keyturn.errors import (
    ArchivedObjectError,
    KmsUnavailableError,
    NoUsableWrapError,
    PermanentError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import OWN_PREFIX, is_object_key, is_project, keyring_s3_key
from keyturn_workers.errors import ArchivedError, MissingError
from keyturn_workers.keyring.store import parse_keyring
from keyturn_workers.master_keys.admin_keks import AdminKeks
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.wraps import KeyUsage, find_key_usage, past_generations
from keyturn_workers.status.records import RECORD_ERRORS
from keyturn_workers.storage import ObjectHead, Storage

NONCURRENT: Final = "noncurrent"
UNREADABLE: Final = "unreadable"
FOREIGN: Final = "foreign"

FindGenerations = Callable[[str], Awaitable[Sequence[int]]]
"""The generations that a project ever had, the newest first; none if they are not known."""


@dataclass(frozen=True, slots=True)
class ObjectGroup:
    """What the census groups objects by.

    `kind` is that of `keyturn_workers.objects.wraps`, or `noncurrent` for an older version,
    `foreign`, or `unreadable` with the reason in `code`. `project` is empty for a key outside
    of projects.
    """

    project: str
    kind: str
    generation: int | None = None
    master_key: str | None = None
    code: str | None = None


Census = Counter[ObjectGroup]


async def list_objects(storage: Storage, prefix: str) -> AsyncIterator[tuple[str, str | None]]:
    """S3 key and version of everything but Keyturn's own; None is the current version."""
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

    Args:
        storage: The bucket.
        keys: The operator's keys.
        generations: Asked only for what opens at no generation that its label names.
    """

    def __init__(self, storage: Storage, keys: OperatorKeys, generations: FindGenerations) -> None:
        self._storage = storage
        self._keys = keys
        self._generations = generations

    async def inspect(self, s3_key: str, version_id: str | None) -> ObjectGroup | None:
        """The group of one object, or of an older version; None if it is gone.

        Raises:
            StorageUnavailableError, StorageAnswerError, KmsUnavailableError: the census would be
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
        except (PermanentError, UnknownMasterKeyError) as exc:
            return ObjectGroup(project, UNREADABLE, code=exc.code)
        kind = usage.kind if version_id is None else NONCURRENT
        return ObjectGroup(project, kind, usage.generation, usage.master_key)

    async def _head(self, s3_key: str, version_id: str | None) -> ObjectHead:
        if version_id is None:
            return await self._storage.head(s3_key)
        return (await self._storage.read_start(s3_key, 1, version_id=version_id))[0]

    async def _usage(self, head: ObjectHead, project: str, object_key: str) -> KeyUsage:
        def of(generations: Sequence[int]) -> Callable[[AdminKeks], KeyUsage]:
            return lambda keks: find_key_usage(
                head.metadata, project, object_key, keks, generations
            )

        try:
            return await self._keys.open_with(project, of(()))
        except (NoUsableWrapError, KmsUnavailableError, UnknownMasterKeyError):
            generations = await self._generations(project)
            if not generations:
                raise
        return await self._keys.open_with(project, of(generations))


async def read_generations(storage: Storage, keys: OperatorKeys, project: str) -> Sequence[int]:
    """The generations of a project by its keyring; none if there is none, or it does not open."""
    try:
        _, body = await storage.read(keyring_s3_key(project))
        keyring = await parse_keyring(body, project, keys)
    except (MissingError, *RECORD_ERRORS):
        return ()
    return (keyring.current.generation, *past_generations(keyring))


async def find_rolled_back(
    storage: Storage, keys: OperatorKeys, generations: dict[str, int], census: Census
) -> dict[str, int]:
    """The projects whose keyring is older than what opens among their objects (SPEC 5.4).

    Args:
        storage: The bucket.
        keys: The operator's keys.
        generations: Of each project whose keyring opens, the current one.
        census: What the objects are.

    Returns:
        By project, the newest generation of its objects.
    """
    highest: defaultdict[str, int] = defaultdict(int)
    for group in census:
        if group.kind != NONCURRENT:
            highest[group.project] = max(highest[group.project], group.generation or 0)
    found = {}
    for project, generation in generations.items():
        if highest[project] <= generation:
            continue
        # The project may have been rotated since: only a keyring read after the objects counts.
        now = await read_generations(storage, keys, project)
        if now and highest[project] > now[0]:
            found[project] = highest[project]
    return found
