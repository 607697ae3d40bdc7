"""The records of pages in the bucket: results, failures, tag notes (SPEC 8.2, 8.5)."""

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace

from keyturn.errors import CorruptObjectError, UnknownMasterKeyError
from keyturn_workers.errors import MissingError
from keyturn_workers.sweep import record_paths
from keyturn_workers.sweep.plan import Failure, OpenPage, Plan, Result
from keyturn_workers.sweep.record_store import RecordStore, gather_limited


@dataclass(frozen=True, slots=True)
class _Failures:
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class _Tags:
    tags: dict[str, dict[str, str]]


class PageRecordStore(RecordStore):
    """Reads and writes the records of pages. Errors are those of `SweepStore`."""

    # Results.

    async def add_result(
        self, plan: Plan, open_page: OpenPage, result: Result, master_key: str
    ) -> bool:
        """Store the result of this page attempt; False if another worker stored one already."""
        s3_key = _result_path(plan, open_page)
        if await self._create_record(s3_key, plan.ask.project, result, master_key):
            return True
        if (await self._read_result(plan, open_page.page, s3_key))[1] is not None:
            return False
        # An attacker who can write the bucket had put one there. It is deleted now.
        return await self._create_record(s3_key, plan.ask.project, result, master_key)

    async def results(self, plan: Plan) -> dict[int, Result]:
        """The results of the current attempts at the open pages, by page number."""
        current = {
            (plan.round, open_page.page, open_page.take)
            for open_page in plan.live
            if open_page.sent_at is not None
        }
        if not current:
            return {}
        prefix = record_paths.results_prefix(plan.ask.sweep_id, plan.ask.project, plan.round)
        stored: list[tuple[int, str]] = []
        async for row in self._storage.list(prefix):
            path = record_paths.parse_record_path(row.key)
            attempt = None if path is None else path.attempt
            if attempt is not None and attempt in current:
                stored.append((attempt[1], row.key))
        read = await gather_limited(
            self._read_result(plan, page, s3_key) for page, s3_key in stored
        )
        return {page: result for page, result in read if result is not None}

    async def _read_result(self, plan: Plan, page: int, s3_key: str) -> tuple[int, Result | None]:
        try:
            result, master_key, _ = await self._read_record(s3_key, plan.ask.project, Result)
        except MissingError:
            return page, None
        except (CorruptObjectError, UnknownMasterKeyError):
            # An attacker who can write the bucket put it there: the page counts as not done.
            await self._storage.delete(s3_key)
            return page, None
        # A result under a master key that is being replaced proves nothing for the new one.
        if master_key != plan.state.master_key:
            result = replace(result, state=None)
        return page, result

    async def delete_result(self, plan: Plan, open_page: OpenPage) -> None:
        """Delete the result of this page attempt."""
        await self._storage.delete(_result_path(plan, open_page))

    async def delete_page_results(self, plan: Plan, pages: Iterable[OpenPage]) -> None:
        """Delete the results of all attempts at these pages, once they are proven."""
        paths = [
            _result_path(plan, replace(open_page, take=attempt))
            for open_page in pages
            for attempt in range(open_page.take + 1)
        ]
        await gather_limited(self._storage.delete(s3_key) for s3_key in paths)

    async def delete_results(self, sweep_id: str, project: str) -> None:
        """Delete all results of a sweep that ended or lost its plan, of every round."""
        async for row in self._storage.list(record_paths.results_folder(sweep_id, project)):
            await self._storage.delete(row.key)

    # Failures, which `keyturn status` shows.

    async def add_failures(
        self, plan: Plan, page: int, failures: tuple[Failure, ...], master_key: str
    ) -> None:
        """Store the failures of a proven page."""
        s3_key = record_paths.failures_path(plan.ask.sweep_id, plan.ask.project, plan.round, page)
        await self._create_record(s3_key, plan.ask.project, _Failures(failures), master_key)

    async def failures(self, plan: Plan) -> AsyncIterator[Failure]:
        """All failures of the last round, in the order of pages."""
        async for s3_key in self.failure_records(plan):
            for failure in await self.read_failures(plan, s3_key):
                yield failure

    async def failure_records(self, plan: Plan, *, since: str = "") -> AsyncIterator[str]:
        """The S3 keys of the failures of the last round, a page each, from `since` on."""
        prefix = record_paths.failures_prefix(plan.ask.sweep_id, plan.ask.project, plan.round)
        # A key without its last letter sorts before the key itself.
        async for row in self._storage.list(prefix, after=since[:-1]):
            if row.key >= since:
                yield row.key

    async def read_failures(self, plan: Plan, s3_key: str) -> tuple[Failure, ...]:
        """The failures of one page; `MissingError` if another round has begun."""
        page, _, _ = await self._read_record(s3_key, plan.ask.project, _Failures)
        return page.failures

    # Tags that a copy drops.

    async def add_tag_note(
        self,
        plan: Plan,
        open_page: OpenPage,
        tags: Mapping[str, Mapping[str, str]],
        master_key: str,
    ) -> str:
        """Store object tags before copies drop them; returns the path of the note."""
        s3_key = record_paths.new_tags_path(
            plan.ask.sweep_id, plan.ask.project, plan.round, open_page.page, open_page.take
        )
        note = _Tags({key: dict(value) for key, value in tags.items()})
        await self._create_record(s3_key, plan.ask.project, note, master_key)
        return s3_key

    async def tag_notes(
        self, plan: Plan, open_page: OpenPage | None = None
    ) -> AsyncIterator[tuple[str, dict[str, dict[str, str]]]]:
        """The tag notes of one page in this round, or of all: path, tags by object key."""
        sweep_id, project = plan.ask.sweep_id, plan.ask.project
        prefix = (
            record_paths.tags_folder(sweep_id, project)
            if open_page is None
            else record_paths.tags_prefix(sweep_id, project, plan.round, open_page.page)
        )
        async for row in self._storage.list(prefix):
            note = await self._read_or_delete_forged(row.key, project, _Tags)
            if note is not None:
                yield row.key, note.tags

    async def delete_tag_note(self, s3_key: str) -> None:
        """Delete a note whose tags are back on their objects."""
        await self._storage.delete(s3_key)


def _result_path(plan: Plan, open_page: OpenPage) -> str:
    return record_paths.result_path(
        plan.ask.sweep_id, plan.ask.project, plan.round, open_page.page, open_page.take
    )
