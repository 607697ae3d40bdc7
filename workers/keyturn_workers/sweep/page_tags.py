"""Object tags that a rewrite drops: noted before it, put back after it (SPEC 8.2)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import object_s3_key
from keyturn.metadata import ALGO, DELETED
from keyturn_workers.errors import (
    MissingError,
    PreconditionError,
    RefusedError,
    StorageAnswerError,
)
from keyturn_workers.objects.apply import tags_at_risk
from keyturn_workers.objects.plan_action import NoOp
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.page_context import PageContext, PlannedObject, gather_all
from keyturn_workers.sweep.plan import OpenPage, Plan
from keyturn_workers.sweep.sweep_store import SweepStore

_log = structlog.get_logger()


class PageTags:
    """The tags of the objects of one page attempt.

    Args:
        context: The attempt.
        store: The records of sweeps.
        copy_limit_bytes: The size of the largest object that one copy can rewrite.
    """

    def __init__(self, context: PageContext, store: SweepStore, copy_limit_bytes: int) -> None:
        self._context = context
        self._storage = context.storage
        self._store = store
        self._copy_limit_bytes = copy_limit_bytes
        self._noted: dict[str, dict[str, str]] = {}
        self._notes: list[str] = []

    async def load(self) -> None:
        """Read what earlier attempts at the page noted."""
        context = self._context
        async for note, tags_by_key in self._store.tag_notes(context.plan, context.open_page):
            self._notes.append(note)
            self._noted |= tags_by_key

    async def delete_loaded_notes(self) -> None:
        """Delete the notes of earlier attempts, once all tags are back on their objects."""
        for note in self._notes:
            await self._store.delete_tag_note(note)

    async def note_before_writes(self, todo: Sequence[PlannedObject]) -> list[PlannedObject]:
        """Note the tags of objects whose write drops them, before the first such write.

        Returns the objects that may be written: all except those whose tags cannot be read.
        """
        at_risk = [planned for planned in todo if self._drops_tags(planned)]
        if not at_risk:
            return list(todo)
        tags_by_key: dict[str, dict[str, str]] = {}

        async def read(planned: PlannedObject) -> PlannedObject:
            tags_by_key[planned.key] = {}
            # Of one that changed, `note_before_write` finds out by itself.
            with suppress(MissingError, PreconditionError):
                tags_by_key[planned.key] = await self._read(planned)
            return planned

        await gather_all(self._context.guarded(each.key, read(each)) for each in at_risk)
        await self._note(tags_by_key, at_risk[0])
        failed = {planned.key for planned in at_risk} - tags_by_key.keys()
        return [planned for planned in todo if planned.key not in failed]

    async def note_before_write(self, planned: PlannedObject) -> None:
        """Note the tags of one object if its write drops them.

        Raises:
            MissingError, PreconditionError: the object or its tags changed: inspect it again.
        """
        if self._drops_tags(planned):
            await self._note({planned.key: await self._read(planned)}, planned)

    async def restore_after_write(self, key: str) -> None:
        """Put back the noted tags of an object that was just written."""
        if tags := self._noted.get(key):
            await self._put(key, tags)

    async def restore_missing(self, planned: PlannedObject) -> PlannedObject:
        """Put back tags that an earlier attempt noted before its worker died."""
        tags = self._noted.get(planned.key)
        is_deleted = isinstance(planned.action, NoOp) and planned.action.kind == "deleted"
        if tags and not planned.view.head.tag_count and not is_deleted:
            await self._put(planned.key, tags)
            self._context.tally.changed += 1
        return planned

    async def _note(self, tags_by_key: Mapping[str, dict[str, str]], by: PlannedObject) -> None:
        tags = {key: value for key, value in tags_by_key.items() if value}
        if tags:
            context, master_key = self._context, by.snapshot.desired.master_key
            await self._store.add_tag_note(context.plan, context.open_page, tags, master_key)
            self._noted |= tags

    def _drops_tags(self, planned: PlannedObject) -> bool:
        if planned.key in self._noted:
            return False
        return tags_at_risk(self._storage, planned.view, planned.action, self._copy_limit_bytes)

    async def _read(self, planned: PlannedObject) -> dict[str, str]:
        s3_key = object_s3_key(self._context.project, planned.key)
        tags = dict(await self._storage.read_tags(s3_key))
        if len(tags) < planned.view.head.tag_count:
            # The copy of another sweep dropped them, and its worker is about to put them back. A
            # copy that rests on the object as it was before would drop them for good.
            raise PreconditionError("the object has lost tags since it was read")
        return tags

    async def _put(self, key: str, tags: Mapping[str, str]) -> None:
        try:
            await self._storage.write_tags(object_s3_key(self._context.project, key), tags)
        except RefusedError as exc:
            # This write has no lease, so it cannot be refused for being late.
            raise StorageUnavailableError("the storage refuses the tags") from exc


async def restore_noted_tags(storage: Storage, store: SweepStore, plan: Plan) -> None:
    """Put back what dead workers left noted in a sweep, in abandoned rounds too."""
    async for note, tags_by_key in store.tag_notes(plan):
        for key, tags in tags_by_key.items():
            await _restore(storage, plan, key, tags)
        await store.delete_tag_note(note)


async def restore_page_tags(
    storage: Storage, store: SweepStore, plan: Plan, round_: int, page: int
) -> None:
    """Put back the tags that were noted for a page of a sweep that was taken over.

    A worker that died in the middle of the page may have left them noted, and no other worker
    processes that page again. The note stays until the end of the sweep, since the page may
    still be under way.
    """
    noted_for = OpenPage(page=page, after="", last="")
    async for note, tags_by_key in store.tag_notes(replace(plan, round=round_), noted_for):
        for key, tags in tags_by_key.items():
            await _restore(storage, plan, key, tags)
        if plan.status != "running":
            await store.delete_tag_note(note)


async def _restore(storage: Storage, plan: Plan, key: str, tags: Mapping[str, str]) -> None:
    s3_key = object_s3_key(plan.ask.project, key)
    try:
        head = await storage.head(s3_key)
        if not head.tag_count and head.metadata.get(ALGO) != DELETED:
            await storage.write_tags(s3_key, tags)
    except MissingError:
        return
    except StorageAnswerError as exc:
        fields = {"sweep_id": plan.ask.sweep_id, "project": plan.ask.project}
        _log.error("tags not put back", **fields, s3_key=s3_key, problem=str(exc))
