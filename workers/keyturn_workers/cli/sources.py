"""`keyturn sources` and `keyturn import`: objects that are already in S3 (SPEC 17).

`sources` shows the records of ingest workers about each source. `import` requests uploads of all
objects of a source itself, whether ingest workers watch it or not.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from keyturn.crypto.keys import Kek
from keyturn.errors import SourceUnavailableError, UnknownSourceError
from keyturn.identifiers import format_time
from keyturn.publisher.client import Publisher
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson
from keyturn_workers.cli.bucket import open_bucket, optional_task
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import (
    print_json,
    print_line,
    print_rows,
    print_table,
    progress_display,
    quiet,
)
from keyturn_workers.cli.secrets import read_secret
from keyturn_workers.cli.settings import SourceStatusSettings
from keyturn_workers.cli.watch import LINE_INTERVAL_S
from keyturn_workers.core.source_mapping import Source
from keyturn_workers.pipeline.ingest import v0
from keyturn_workers.pipeline.ingest.importing import CONNECTIONS, Import, ImportResult, NotImported
from keyturn_workers.pipeline.ingest.record import MAX_REFUSED, SourceRecord, SourceRecords
from keyturn_workers.pipeline.ingest.source_ingest import is_folder_marker, objects_of
from keyturn_workers.pipeline.sources.bucket import (
    Deletion,
    SourceBucket,
    open_source,
    open_sources,
)
from keyturn_workers.process.settings import SourceSettings

_COLUMNS: Final = (
    "source",
    "from",
    "to",
    "delete",
    "watch",
    "listed_at",
    "objects",
    "waiting",
    "refused",
)
_REFUSED_COLUMNS: Final = ("s3_key", "code", "refused_at", "upload_id")
# For the time left: an object counts as its bytes plus this.
_OBJECT_COST_BYTES: Final = 64 * 1024
_SHOWN: Final = 20
_NOT_POSSIBLE: Final = "not possible"
_TICK_S: Final = 1.0
# After so long without any outcome, a note names possible causes.
_SILENCE_S: Final = 30.0

SourceName = Annotated[str, typer.Argument(help="The source's name in KEYTURN_SOURCES.")]
OptionalSourceName = Annotated[
    str | None, typer.Argument(help="List the refused objects of this source.")
]


def sources(name: OptionalSourceName = None, as_json: AsJson = False) -> None:
    """Show the sources, or the refused objects of one.

    The numbers are from the last listing by an ingest worker.
    """
    settings = SourceStatusSettings.read()
    if name is not None:
        _find(settings, name)
    elif not settings.sources and not as_json:
        print_line("no sources: KEYTURN_SOURCES, the setting that lists them, is empty or missing")
        return
    with quiet():
        records, kept = asyncio.run(_read(settings, name))
    if name is None:
        rows = [_row(each, settings.sources[each], records[each]) for each in records]
        for row in rows:
            if row["source"] in kept:
                row["delete"] = _NOT_POSSIBLE
        print_rows(_COLUMNS, rows, as_json=as_json)
        return
    refused = [
        {
            "s3_key": s3_key,
            "code": refusal.code,
            "refused_at": format_time(refusal.at),
            "upload_id": refusal.upload_id or None,
        }
        for s3_key, refusal in sorted(records[name].refused.items())
    ]
    print_rows(_REFUSED_COLUMNS, refused, as_json=as_json)
    if len(refused) == MAX_REFUSED:
        note(f"there may be more: only the latest {MAX_REFUSED} are kept")


def import_source(
    name: SourceName,
    prefix: Annotated[
        str,
        typer.Option(help="Only objects whose names begin with this, after the source's prefix."),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be requested.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once the broker has all requests.")
    ] = False,
    v0_key_file: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the key of objects of the earlier system (v0), which are then "
            'opened: {"kek": base64}, or {"api_key": text, "pepper": text}.'
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import all objects of a source.

    You can run it again at any time: nothing is stored twice. Exit status 0 means that every object
    was imported (with --no-wait: requested; with --dry-run: would be requested).
    """
    settings = PublisherSettings.read()
    own = SourceSettings.read()
    _find(own, name)
    v0_kek = None if v0_key_file is None else _read_v0_key(v0_key_file)
    began = time.monotonic()
    try:
        with quiet():
            result = asyncio.run(
                _import(
                    settings,
                    own,
                    name,
                    prefix,
                    v0_kek=v0_kek,
                    dry_run=dry_run,
                    wait=not no_wait,
                    as_json=as_json,
                )
            )
    except KeyboardInterrupt:
        if not dry_run:
            note("requested objects are stored in the background; run it again for the rest")
        raise
    seconds = round(time.monotonic() - began, 1)
    _print_result(name, prefix, result, seconds, as_json=as_json)


def _read_v0_key(file: Path) -> Kek:
    try:
        return v0.parse_key(read_secret(file))
    except ValueError as exc:  # its text repeats nothing of the file
        raise typer.BadParameter(f"{file}: {exc}") from None


def _find(settings: SourceSettings, name: str) -> Source:
    if name not in settings.sources:
        known = ", ".join(sorted(settings.sources))
        reason = f"it has: {known}" if known else "it is empty or not set"
        raise UnknownSourceError(f"KEYTURN_SOURCES has no source {name!r}; {reason}")
    return settings.sources[name]


async def _read(
    settings: SourceStatusSettings, name: str | None
) -> tuple[dict[str, SourceRecord], set[str]]:
    """Return each record, or the named one, and the sources that cannot delete as configured.

    An unreachable source is not among the latter.
    """
    # It takes half a second to import code that may reach a provider of master keys.
    from keyturn_workers.keys.master_keys.providers import open_operator_keys  # noqa: PLC0415

    async with (
        open_bucket(settings) as storage,
        open_operator_keys(settings, storage, seals=False) as keys,
    ):
        source_records = SourceRecords(storage, keys)
        names = [name] if name else list(settings.sources)
        records = {each: (await source_records.read(each)).record for each in names}

        async def cannot_delete(each: str) -> bool:
            async with open_source(each, settings.sources[each], settings, storage) as bucket:
                return await _find_deletion(bucket) == _NOT_POSSIBLE

        deleting = [each for each in names if name is None and settings.sources[each].delete]
        found = await asyncio.gather(*map(cannot_delete, deleting))
        return records, set(compress(deleting, found))


def _row(name: str, source: Source, record: SourceRecord) -> dict[str, Any]:
    listed_at = record.finished_at
    return {
        "source": name,
        "from": f"{source.bucket}/{source.prefix}",
        "to": f"{source.project}/{source.key}",
        "delete": source.delete,
        "watch": source.watch,
        "listed_at": None if listed_at is None else format_time(listed_at),
        "objects": None if listed_at is None else record.objects,
        "waiting": None if listed_at is None else record.waiting,
        "refused": None if listed_at is None else len(record.refused),
    }


async def _import(
    settings: PublisherSettings,
    own: SourceSettings,
    name: str,
    prefix: str,
    *,
    v0_kek: Kek | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> ImportResult:
    async with AsyncExitStack() as stack:
        own_bucket = await stack.enter_async_context(open_bucket(own, max_connections=CONNECTIONS))
        sources = await stack.enter_async_context(
            open_sources({name: own.sources[name]}, own, own_bucket)
        )
        bucket = sources[name]
        publisher = None
        if not dry_run:
            # What the import opens itself may be staged.
            staging = None if v0_kek is None else own
            publisher = await stack.enter_async_context(Publisher.open(settings, s3=staging))
        progress = stack.enter_context(_import_progress(waits=wait and not dry_run))
        if sys.stderr.isatty() or not as_json:
            await stack.enter_async_context(optional_task(lambda: progress.count(bucket, prefix)))
        await stack.enter_async_context(optional_task(partial(progress.follow, lines=not as_json)))
        work = Import(
            bucket,
            own_bucket,
            settings.deployment,
            publisher,
            v0_kek=v0_kek,
            wait=wait,
            on_progress=progress.show,
        )
        result = await work.run(prefix)
        stays = not dry_run and await _find_deletion(bucket) == _NOT_POSSIBLE
    if stays:
        note(
            f"the objects stay in the source {name}: its storage cannot delete exactly the version "
            'that was read. Turn on versioning there, or set "delete": "unconditional"'
        )
    return result


async def _find_deletion(bucket: SourceBucket) -> Deletion | None:
    """Return how stored objects are deleted from the source; None if that is unknown now."""
    try:
        return await bucket.find_deletion()
    except SourceUnavailableError:
        return None


class _ImportProgress:
    """Objects, bytes and the time left: a bar on a terminal, otherwise a line every few seconds.

    `waits` is true if workers must serve the requests before an object is done.
    """

    def __init__(
        self, progress: Progress, *, waits: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress = progress
        self._waits = waits
        self._clock = clock
        self._objects = 0
        self._bytes = 0
        self._is_counted = False
        self._result = ImportResult()
        self._outcome_at_s = clock()
        self._next_line_s = self._outcome_at_s + LINE_INTERVAL_S
        self._has_warned = False
        self._task = progress.add_task("", total=None, counts=self._counts())

    async def count(self, bucket: SourceBucket, prefix: str) -> None:
        """List the source a second time, for the totals, during the import."""
        async for row in objects_of(bucket, prefix):
            if not is_folder_marker(row):
                self._objects += 1
                self._bytes += row.size_bytes
        self._is_counted = True

    async def follow(self, *, lines: bool) -> None:
        """Show the progress, or that the import waits, until this is canceled."""
        while True:
            self.tick(lines=lines)
            await asyncio.sleep(_TICK_S)

    def show(self, result: ImportResult) -> None:
        """Show further objects as done."""
        self._result = result
        self._outcome_at_s = self._clock()
        self._update()

    def tick(self, *, lines: bool) -> None:
        """Update the bar, or print a line if it is time; warn, once, if no outcome arrives."""
        self._update()
        now_s = self._clock()
        if lines and self._progress.disable and now_s >= self._next_line_s:
            self._next_line_s = now_s + LINE_INTERVAL_S
            note(self._counts())
        if self._waits and not self._has_warned and now_s - self._outcome_at_s >= _SILENCE_S:
            self._has_warned = True
            note(
                f"no outcome in {_SILENCE_S:.0f} s: no worker has served these requests yet, or "
                "the workers do not know this publisher with this key in this deployment (see "
                "`keyturn dead list`); still waiting"
            )

    def _update(self) -> None:
        done = _cost(self._result.objects, self._result.size_bytes)
        total = _cost(self._objects, self._bytes) if self._is_counted else None
        self._progress.update(self._task, completed=done, total=total, counts=self._counts())

    def _counts(self) -> str:
        objects, size = f"{self._result.objects:,}", decimal(self._result.size_bytes)
        if self._is_counted:
            counts = f"{objects} of {self._objects:,} objects, {size} of {decimal(self._bytes)}"
        else:
            counts = f"{objects} objects, {size}"
        is_waiting = self._waits and not self._result.objects
        return f"waiting for a worker: {counts}" if is_waiting else counts


def _cost(objects: int, size_bytes: int) -> int:
    return objects * _OBJECT_COST_BYTES + size_bytes


@contextmanager
def _import_progress(*, waits: bool) -> Iterator[_ImportProgress]:
    columns = (BarColumn(), TextColumn("{task.fields[counts]}"), TimeRemainingColumn())
    with progress_display(*columns) as progress:
        yield _ImportProgress(progress, waits=waits)


def _print_result(
    name: str, prefix: str, result: ImportResult, seconds: float, *, as_json: bool
) -> None:
    """Print the outcome for all objects.

    Raises:
        CommandError: not every object was imported.
    """
    not_imported = result.refused.total()
    if as_json:
        print_json(
            {
                "source": name,
                "prefix": prefix,
                "objects": result.objects,
                "bytes": result.size_bytes,
                "seconds": seconds,
                "statuses": dict(result.statuses),
                "refused": dict(result.refused),
                "not_in": [_not_imported_row(each) for each in result.not_imported],
            }
        )
    else:
        if result.not_imported:
            shown = [_not_imported_row(each) for each in result.not_imported[:_SHOWN]]
            print_rows(("s3_key", "code", "detail"), shown)
            if not_imported > len(shown):
                more = not_imported - len(shown)
                note(f"{more:,} more were not imported; --json names up to a thousand")
        rows = [*sorted(result.statuses.items()), *sorted(result.refused.items())]
        size = decimal(result.size_bytes)
        print_table(
            ("objects", "outcome"),
            [(f"{count:,}", outcome) for outcome, count in rows]
            + [(f"{result.objects:,}", f"in all: {size} in {seconds:g} s")],
        )
    if not_imported:
        first = result.not_imported[0]
        raise CommandError(
            f"{not_imported:,} of {result.objects:,} objects were not imported; the first: "
            f"{first.s3_key}: {first.code}: {first.detail}"
        )


def _not_imported_row(each: NotImported) -> dict[str, str]:
    return {"s3_key": each.s3_key, "code": each.code, "detail": each.detail}
