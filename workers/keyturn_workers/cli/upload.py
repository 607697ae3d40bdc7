"""`keyturn upload`: upload files and folders (SPEC 6.4, 14).

Every row comes from an event that the workers signed. With `--no-wait`, success means only that the
broker has the requests.
"""

import asyncio
import mimetypes
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from keyturn.errors import AlreadyExistsError, MalformedRequestError, SettingsError
from keyturn.identifiers import check_object_key
from keyturn.messages.requests import INLINE_MAX_BYTES
from keyturn.metadata import check_content_type, encode_caller_metadata
from keyturn.progress import format_bytes
from keyturn.publisher.client import Publisher
from keyturn.publisher.requests import new_id
from keyturn.publisher.staging import blocks
from keyturn.settings import PublisherSettings, S3Settings
from keyturn_workers.cli.arguments import AsJson, Project, TimeoutS, validate_object_key
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import TransferProgress, transfer_progress
from keyturn_workers.cli.publishing import (
    PUBLISH_ATTEMPTS,
    Outcomes,
    print_request_rows,
    publish_row,
    request_row,
    showing_waits,
    wait_for_row,
)

_STDIN: Final = "-"
_COLUMNS: Final = ("path", "key", "status", "size", "generation", "upload_id", "code", "detail")

_ENCODINGS: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2"}
_UNKNOWN: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class SelectedFile:
    """One file to upload; `path` is None for standard input.

    `problem` is the reason why it cannot be uploaded.
    """

    path: Path | None
    object_key: str
    size_bytes: int | None
    content_type: str | None
    problem: str | None = None

    @property
    def display_name(self) -> str:
        """The file's name on the command line."""
        return "-" if self.path is None else str(self.path)


def select_files(
    paths: list[Path], prefix: str, content_type: str | None, on_skip: Callable[[str], None]
) -> list[SelectedFile]:
    """Return all files that the arguments name, in a stable order.

    `prefix` precedes every object key, including its `/` if it has one. Without `content_type`,
    each name determines it. `on_skip` is called with the name of each skipped file, and why.

    Raises:
        typer.BadParameter: a path does not exist, or two files would have the same key.
    """
    files: dict[str, SelectedFile] = {}
    for argument in paths:
        for path, name in _walk(argument, on_skip):
            file = _describe(path, prefix + name, content_type)
            if file.object_key in files:
                first = files[file.object_key].display_name
                raise typer.BadParameter(f"{first} and {path} would have the same key")
            files[file.object_key] = file
    return list(files.values())


def _walk(argument: Path, on_skip: Callable[[str], None]) -> Iterator[tuple[Path, str]]:
    """Yield the files of one argument, with names relative to its parent."""
    if argument.is_file():
        yield argument, argument.name
        return
    if not argument.is_dir():
        reason = "is neither a file nor a folder" if argument.exists() else "does not exist"
        raise typer.BadParameter(f"{argument} {reason}")
    own = "" if argument.name in ("", "..") else f"{argument.name}/"

    def unreadable(error: OSError) -> None:
        on_skip(f"{error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(argument, onerror=unreadable):
        folders.sort()
        for name in [*folders, *sorted(names)]:
            path = Path(folder, name)
            if path.is_symlink():
                on_skip(f"{path} is a symbolic link")
            elif path.is_file():
                yield path, own + path.relative_to(argument).as_posix()
            elif not path.is_dir():
                on_skip(f"{path} is not a regular file")


def _describe(path: Path, object_key: str, content_type: str | None) -> SelectedFile:
    try:
        check_object_key(object_key)
        problem = None
    except ValueError as exc:
        problem = str(exc)
    size_bytes = path.stat().st_size
    content_type = content_type or guess_content_type(path.name)
    return SelectedFile(path, object_key, size_bytes, content_type, problem)


def guess_content_type(name: str) -> str:
    """Return a content type by file extension; for a compressed file its compression's."""
    guessed, encoding = mimetypes.guess_type(name, strict=True)
    if encoding is not None:
        return _ENCODINGS.get(encoding, _UNKNOWN)
    return guessed or _UNKNOWN


@dataclass(frozen=True, slots=True)
class _Options:
    """Options for every file of one command; `timeout_s` is None with `--no-wait`."""

    project: str
    metadata: dict[str, str]
    concurrency: int
    timeout_s: float | None
    as_json: bool


def upload(
    project: Project,
    paths: Annotated[list[str], typer.Argument(help="Files and folders, or - for standard input.")],
    key: Annotated[str | None, typer.Option(help="The object key, for one file or -.")] = None,
    key_prefix: Annotated[
        str, typer.Option(help="Prefix of every object key, such as 2026/.")
    ] = "",
    content_type: Annotated[
        str | None, typer.Option(help="Content type of all files. Default: guessed from each name.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Stored with the object, unencrypted; may be repeated."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until each file is stored or rejected.")] = True,
    timeout_s: TimeoutS = 300,
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="How many files to send at once.")
    ] = 4,
    as_json: AsJson = False,
) -> None:
    """Upload files and folders."""
    options = _Options(
        project, _metadata(metadata or []), concurrency, timeout_s if wait else None, as_json
    )
    _check_content_type(content_type)
    settings = PublisherSettings.read()
    files = _select(paths, key, key_prefix, content_type)
    began_s = time.monotonic()
    rows = asyncio.run(_upload_all(settings, _staging_settings(files), files, options))
    summary = _summary(rows, time.monotonic() - began_s)
    print_request_rows(_COLUMNS, rows, "path", "stored", as_json=as_json, summary=summary)


def _summary(rows: list[dict[str, Any]], elapsed_s: float) -> str:
    """Return how many files were stored, or only sent, with their size and the time."""
    stored = [row for row in rows if row["status"] == "stored"]
    queued = sum(row["status"] == "queued" for row in rows)
    size = format_bytes(sum(row["size"] or 0 for row in stored))
    of = f"{len(stored):,}" if len(stored) == len(rows) else f"{len(stored):,} of {len(rows):,}"
    if queued:
        return f"{queued:,} of {len(rows):,} files sent; `--json` prints their ids"
    return f"{of} file{'s' if len(rows) > 1 else ''} stored, {size}, {elapsed_s:.1f} s"


def _metadata(pairs: list[str]) -> dict[str, str]:
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter("--metadata must be name=value")
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


def _select(
    paths: list[str], key: str | None, prefix: str, content_type: str | None
) -> list[SelectedFile]:
    if key is not None and len(paths) != 1:
        raise typer.BadParameter("--key needs exactly one file or -")
    if key is not None and prefix:
        raise typer.BadParameter("--key and --key-prefix cannot be used together")
    if _STDIN in paths:
        if key is None:
            raise typer.BadParameter("standard input needs --key and no other path")
        validate_object_key(key)
        return [SelectedFile(None, key, None, content_type or guess_content_type(key))]
    skipped: list[str] = []
    files = select_files([Path(path) for path in paths], prefix, content_type, skipped.append)
    for reason in skipped:
        note(f"skipped: {reason}")
    if key is None:
        return files
    if len(files) != 1 or not Path(paths[0]).is_file():
        raise typer.BadParameter("--key needs exactly one file or -")
    return [replace(files[0], object_key=validate_object_key(key), problem=None)]


def _staging_settings(files: list[SelectedFile]) -> S3Settings | None:
    """Return the bucket for staging large bodies; None without one, or without such a body.

    Without such a body nothing is opened, and botocore is not loaded.
    """
    try:
        settings = S3Settings.read()
    except SettingsError as exc:
        if "KEYTURN_S3_BUCKET is missing" in str(exc):
            return None
        raise
    large = any(file.size_bytes is None or file.size_bytes > INLINE_MAX_BYTES for file in files)
    return settings if large else None


async def _upload_all(
    settings: PublisherSettings,
    staging: S3Settings | None,
    files: list[SelectedFile],
    options: _Options,
) -> list[dict[str, Any]]:
    sizes = [file.size_bytes for file in files]
    known = [size for size in sizes if size is not None]
    total_bytes = sum(known) if len(known) == len(sizes) else None
    slots = asyncio.Semaphore(options.concurrency)
    outcomes = Outcomes(len(files))
    rows = [
        request_row(path=file.display_name, key=file.object_key, upload_id=new_id())
        for file in files
    ]
    with transfer_progress(total_bytes) as progress:
        async with Publisher.open(settings, s3=staging) as publisher:

            async def upload_one(file: SelectedFile, row: dict[str, Any]) -> None:
                async with slots:
                    sent = await _send(publisher, file, options, row, progress)
                # The next files are sent while this one waits for its event.
                if sent and options.timeout_s is not None:
                    outcomes.add_sent()
                    await _await_event(publisher, options.project, row, options.timeout_s)
                    outcomes.add_answered()

            waits = showing_waits(outcomes, progress.label, as_json=options.as_json)
            try:
                async with waits, asyncio.TaskGroup() as group:
                    for file, row in zip(files, rows, strict=True):
                        group.create_task(upload_one(file, row))
            except asyncio.CancelledError:
                note(_interrupted(rows))
                raise
    return rows


def _interrupted(rows: list[dict[str, Any]]) -> str:
    """Return what was stored before an interruption, and how to go on."""
    states = Counter(row["status"] for row in rows)
    unsent = sum(row["status"] == "failed" and row["detail"] is None for row in rows)
    text = f"{states['stored']:,} of {len(rows):,} files are stored"
    if states["queued"]:
        text += f", {states['queued']:,} more were sent and will be, unless they are rejected"
    if unsent:
        text += f", {unsent:,} were not sent"
    code = AlreadyExistsError.code
    return f"{text}. To go on, run the same command again: of a stored file it says {code}"


async def _send(
    publisher: Publisher,
    file: SelectedFile,
    options: _Options,
    row: dict[str, Any],
    progress: TransferProgress,
) -> bool:
    """Publish one file; its row gets the error, if any."""
    if file.problem is not None:
        row.update(code=MalformedRequestError.code, detail=file.problem)
        return False
    progress.label(file.display_name)
    upload = partial(
        publisher.upload,
        options.project,
        file.object_key,
        content_type=file.content_type,
        metadata=options.metadata,
        upload_id=row["upload_id"],
    )
    # A pipe cannot be read twice.
    attempts = 1 if file.path is None else PUBLISH_ATTEMPTS
    try:
        return await publish_row(row, lambda: upload(_read(file, progress)), attempts=attempts)
    except OSError as exc:
        row.update(detail=exc.strerror or type(exc).__name__)
        return False


async def _read(file: SelectedFile, progress: TransferProgress) -> AsyncIterator[bytes]:
    body = sys.stdin.buffer if file.path is None else file.path
    async for block in blocks(body):
        yield bytes(block)
        progress.advance(0, len(block))


async def _await_event(
    publisher: Publisher, project: str, row: dict[str, Any], timeout_s: float
) -> None:
    event = publisher.wait(
        row["upload_id"], timeout_s=timeout_s, project=project, request_type="upload.requested"
    )
    await wait_for_row(row, event, "stored")
    if row["status"] == "stored":
        row.update(size=row["event"].get("size"), generation=row["event"].get("generation"))
