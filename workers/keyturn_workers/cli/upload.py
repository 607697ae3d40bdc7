"""`keyturn upload`: files and folders onto the queue, and what became of each (SPEC 6.4, 14).

Done without `--wait` means that the broker keeps the requests. With it, every row is the
event that the workers signed.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from keyturn.errors import CodedError, MalformedRequestError, SettingsError
from keyturn.messages import Event, Rejected
from keyturn.metadata import check_content_type, encode_caller_metadata
from keyturn.publisher import OutcomeUnknownError, Publisher, PublisherError
from keyturn.publisher.body_source import blocks
from keyturn.publisher.requests import new_id
from keyturn.settings import PublisherSettings, S3Settings
from keyturn_workers.cli.arguments import AsJson, Project, checked_key
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.file_selection import Source, find, guessed_type
from keyturn_workers.cli.output import Gauge, gauge, print_json, print_table
from keyturn_workers.cli.publishing import PUBLISH_TRIES, not_done

_STDIN: Final = "-"
_COLUMNS: Final = ("path", "key", "status", "size", "generation", "upload_id", "code", "detail")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is the same for every file of one command."""

    project: str
    metadata: dict[str, str]
    concurrency: int
    timeout_s: float | None


def upload(
    project: Project,
    paths: Annotated[list[str], typer.Argument(help="Files and folders, or - for standard input.")],
    key: Annotated[str | None, typer.Option(help="The key, for one file or -.")] = None,
    key_prefix: Annotated[
        str, typer.Option(help="What stands before every key, such as 2026/.")
    ] = "",
    content_type: Annotated[
        str | None, typer.Option(help="For all of them; guessed from each name by default.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="name=value, kept with the object, not encrypted.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until each is stored or refused.")] = False,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds to wait at most.")] = 300,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Files at a time.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Upload files and folders."""
    plan = _Plan(project, _metadata(metadata or []), concurrency, timeout_s if wait else None)
    _check_content_type(content_type)
    settings = PublisherSettings.read()
    sources = _sources(paths, key, key_prefix, content_type)
    rows = asyncio.run(_upload_all(settings, _staging(), sources, plan))
    if as_json:
        print_json(rows)
    else:
        used = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows)]
        print_table(used, ([row.get(name) for name in used] for row in rows))
    if failed := [row for row in rows if row["status"] not in ("queued", "stored")]:
        raise not_done(failed, len(rows), "path")


def _metadata(pairs: list[str]) -> dict[str, str]:
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter("--metadata reads name=value")
        parsed[name] = value
    try:
        encode_caller_metadata(parsed)
    except MalformedRequestError as exc:
        raise typer.BadParameter(str(exc)) from exc
    return parsed


def _check_content_type(content_type: str | None) -> None:
    if content_type is None:
        return
    try:
        check_content_type(content_type)
    except MalformedRequestError as exc:
        raise typer.BadParameter(str(exc)) from exc


def _sources(
    paths: list[str], key: str | None, prefix: str, content_type: str | None
) -> list[Source]:
    if key is not None and len(paths) != 1:
        raise typer.BadParameter("--key goes with one file, or with -")
    if key is not None and prefix:
        raise typer.BadParameter("--key and --key-prefix exclude each other")
    if _STDIN in paths:
        if key is None:
            raise typer.BadParameter("standard input needs --key, and no other path")
        checked_key(key)
        return [Source(None, key, None, content_type or guessed_type(key))]
    left_out: list[str] = []
    found = find([Path(path) for path in paths], prefix, content_type, left_out.append)
    for told in left_out:
        note(f"left out: {told}")
    if key is None:
        return found
    if len(found) != 1 or not Path(paths[0]).is_file():
        raise typer.BadParameter("--key goes with one file, or with -")
    only = found[0]
    return [Source(only.path, checked_key(key), only.size_bytes, only.content_type)]


def _staging() -> S3Settings | None:
    """Where large bodies are staged; small ones need no bucket, so none is no error yet."""
    try:
        return S3Settings.read()
    except SettingsError as exc:
        if "KEYTURN_S3_BUCKET is missing" in str(exc):
            return None
        raise


async def _upload_all(
    settings: PublisherSettings, staging: S3Settings | None, sources: list[Source], plan: _Plan
) -> list[dict[str, Any]]:
    sizes = [source.size_bytes for source in sources]
    known = [size for size in sizes if size is not None]
    total_bytes = sum(known) if len(known) == len(sizes) else None
    slots = asyncio.Semaphore(plan.concurrency)
    with gauge(total_bytes) as bar:
        async with Publisher.open(settings, s3=staging) as publisher:

            async def one(source: Source) -> dict[str, Any]:
                row: dict[str, Any] = {
                    "path": source.shown,
                    "key": source.key,
                    "upload_id": new_id(),
                    "status": "failed",
                    "code": None,
                    "detail": None,
                    "event": None,
                }
                async with slots:
                    sent = await _send(publisher, source, plan, row, bar)
                # Others may be sent while this one waits for its event.
                if sent and plan.timeout_s is not None:
                    await _await_event(publisher, plan.project, row, plan.timeout_s)
                return row

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(source)) for source in sources]
        return [task.result() for task in tasks]


async def _send(
    publisher: Publisher, source: Source, plan: _Plan, row: dict[str, Any], bar: Gauge
) -> bool:
    """Publish one file; what went wrong goes into its row."""
    if source.problem is not None:
        row.update(code=MalformedRequestError.code, detail=source.problem)
        return False
    bar.label(source.shown)
    # A pipe cannot be read twice.
    tries = 1 if source.path is None else PUBLISH_TRIES
    try:
        for tries_left in reversed(range(tries)):
            try:
                await publisher.upload(
                    plan.project,
                    source.key,
                    _counted(source, bar),
                    content_type=source.content_type,
                    metadata=plan.metadata,
                    upload_id=row["upload_id"],
                )
                break
            except OutcomeUnknownError:
                if not tries_left:
                    raise
    except CodedError as exc:
        row.update(code=exc.code, detail=exc.detail)
        return False
    except PublisherError as exc:
        row.update(status=_unknown(exc), detail=str(exc))
        return False
    except OSError as exc:
        row.update(detail=exc.strerror or type(exc).__name__)
        return False
    row["status"] = "queued"
    return True


def _unknown(exc: PublisherError) -> str:
    return "unknown" if isinstance(exc, OutcomeUnknownError) else "failed"


async def _counted(source: Source, bar: Gauge) -> AsyncIterator[bytes]:
    body = sys.stdin.buffer if source.path is None else source.path
    async for block in blocks(body):
        yield bytes(block)
        bar.advance(len(block))


async def _await_event(
    publisher: Publisher, project: str, row: dict[str, Any], timeout_s: float
) -> None:
    try:
        event: Event = await publisher.wait(
            row["upload_id"],
            timeout_s=timeout_s,
            project=project,
            request_type="upload.requested",
        )
    except PublisherError as exc:
        row.update(status="untold", detail=str(exc))
        return
    row["event"] = event.model_dump(mode="json")
    if isinstance(event, Rejected):
        row.update(status="rejected", code=event.code, detail=event.detail)
        return
    row.update(
        status="stored",
        size=getattr(event, "size", None),
        generation=getattr(event, "generation", None),
    )
