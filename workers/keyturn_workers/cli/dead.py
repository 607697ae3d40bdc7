"""`keyturn dead`: list, show, replay and discard dead letters (SPEC 12, 14)."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError

from keyturn.errors import CodedError
from keyturn.publisher.broker_address import BrokerAddress, connect_to_broker
from keyturn.settings import DeploymentSettings
from keyturn.topology import DEAD_QUEUES
from keyturn_workers.cli.arguments import AsJson, Reason
from keyturn_workers.cli.command_audit import command_audit
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import print_json, print_rows
from keyturn_workers.cli.secrets import write_secret
from keyturn_workers.cli.settings import ResignSettings
from keyturn_workers.dead_letters.description import DeadLetter, audit_fields, describe
from keyturn_workers.dead_letters.lock import exclusive
from keyturn_workers.dead_letters.queues import dead_queue, work_queue
from keyturn_workers.dead_letters.reader import DeadLetterReader
from keyturn_workers.dead_letters.redaction import json_headers, redacted_body
from keyturn_workers.dead_letters.replay import check_body_kept, original, send_back
from keyturn_workers.settings import AuditSettings

app = typer.Typer(name="dead", help="Inspect, replay or discard dead letters.")

_COLUMNS: Final = ("queue", "id", "type", "project", "code", "detail", "publisher", "age")
_SEARCH_LIMIT: Final = 10_000

Ids = Annotated[list[str], typer.Argument(help="Ids from `keyturn dead list`.")]
QueueOption = Annotated[str | None, typer.Option("--queue", help="Only this dead-letter queue.")]
Limit = Annotated[int, typer.Option(min=1, help="Maximum number of letters per queue.")]
Action = Callable[[AbstractIncomingMessage, str], Awaitable[None]]


@app.command("list")
def list_letters(
    queue: Annotated[
        str | None, typer.Argument(help="A single queue, such as keyturn.upload.dead.")
    ] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, oldest first. None is removed."""
    settings = DeploymentSettings.read()
    letters, more = asyncio.run(_list(settings, _queues(queue), limit))
    rows = [_row(letter, letters) for letter in letters]
    print_rows(_COLUMNS, rows, as_json=as_json)
    for name in more:
        note(f"{name} holds more letters; raise --limit (now {limit}) to see them")


def _queues(name: str | None) -> list[str]:
    return list(DEAD_QUEUES) if name is None else [dead_queue(name)]


def _row(letter: DeadLetter, letters: list[DeadLetter]) -> dict[str, Any]:
    duplicates = sum(1 for other in letters if other.id == letter.id)
    # Any publisher can reuse the id of another message; the digest is still unique.
    unique_id = letter.digest if duplicates > 1 else letter.id
    return {"id": unique_id, "age": letter.age(datetime.now(UTC)), **asdict(letter)}


@asynccontextmanager
async def _open_reader(settings: DeploymentSettings) -> AsyncIterator[DeadLetterReader]:
    """A reader that returns the letters at the end; the broker does if the connection is lost."""
    async with (
        await connect_to_broker(BrokerAddress.of(settings)) as connection,
        exclusive(connection),
    ):
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        async with channel:
            reader = DeadLetterReader(channel)
            try:
                yield reader
            finally:
                if not channel.is_closed:
                    await reader.requeue_all()


async def _list(
    settings: DeploymentSettings, queues: list[str], limit: int
) -> tuple[list[DeadLetter], list[str]]:
    letters: list[DeadLetter] = []
    more: list[str] = []
    async with _open_reader(settings) as reader:
        for queue in queues:
            read = [describe(m, queue) async for m in reader.read(queue, limit + 1)]
            letters += read[:limit]
            if len(read) > limit:
                more.append(queue)
    return letters, more


@dataclass(frozen=True, slots=True)
class _Match:
    letter: DeadLetter
    message: AbstractIncomingMessage
    queue: str


async def _find(reader: DeadLetterReader, queues: list[str], ids: list[str]) -> list[_Match]:
    """The letters with these ids or digests.

    Raises:
        CommandError: an id matches no letter, or several different ones.
    """
    matches: list[_Match] = []
    for queue in queues:
        async for message in reader.read(queue, _SEARCH_LIMIT):
            letter = describe(message, queue)
            if letter.message_id in ids or letter.digest in ids:
                matches.append(_Match(letter, message, queue))
    for id_ in ids:
        digests = {
            m.letter.digest for m in matches if id_ in (m.letter.message_id, m.letter.digest)
        }
        if not digests:
            raise CommandError(f"no dead letter has the id {id_}")
        if len(digests) > 1:
            several = ", ".join(sorted(digests))
            raise CommandError(f"several dead letters have the id {id_}; use one of: {several}")
    return matches


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(help="The id from `keyturn dead list`.")],
    queue: QueueOption = None,
    raw: Annotated[
        Path | None, typer.Option(help="Write the body, still sealed, to this new file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Accepted for scripts: the output is always JSON.")
    ] = False,
) -> None:
    """Show one dead letter as JSON: its headers, and its body without the sealed parts."""
    del as_json  # for scripts that pass --json to every command
    asyncio.run(_show(DeploymentSettings.read(), letter_id, _queues(queue), raw))


async def _show(
    settings: DeploymentSettings, letter_id: str, queues: list[str], raw: Path | None
) -> None:
    async with _open_reader(settings) as reader:
        match = (await _find(reader, queues, [letter_id]))[0]
        message = match.message
        document = {
            "queue": match.letter.queue,
            "message_id": message.message_id,
            "digest": match.letter.digest,
            "content_type": message.content_type,
            "headers": json_headers(message.headers),
            "body": redacted_body(message.body),
        }
        if raw is not None:
            write_secret(raw, message.body)
    print_json(document)


@app.command()
def replay(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids from `keyturn dead list`.")] = None,
    all_letters: Annotated[bool, typer.Option("--all", help="All letters of the queues.")] = False,
    resign: Annotated[
        bool,
        typer.Option(
            "--resign",
            help="Sign again as KEYTURN_PUBLISHER_NAME, with the current time. Only for letters "
            "rejected with request_expired that their publisher signed and may send "
            "(KEYTURN_PUBLISHERS). Rotations and enrollments only if named by id; a rotation "
            "only if no later one was accepted (KEYTURN_MASTER_KEYS).",
        ),
    ] = False,
    queue: QueueOption = None,
    limit: Limit = _SEARCH_LIMIT,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to their work queues. Each is recorded in the audit trail first."""
    if bool(ids) == all_letters:
        raise typer.BadParameter("name ids or use --all")
    settings = ResignSettings.read() if resign else DeploymentSettings.read()
    rows = asyncio.run(_replay(settings, ids or [], _queues(queue), limit, reason))
    _print_results(rows, as_json=as_json)


async def _replay(
    settings: DeploymentSettings,
    ids: list[str],
    queues: list[str],
    limit: int,
    reason: str | None,
) -> list[dict[str, Any]]:
    # It imports FastStream, which takes a second.
    from keyturn_workers.cli.replay import Resigner  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        audit = await stack.enter_async_context(
            command_audit(AuditSettings.read(), "dead replay", reason)
        )
        resigner = None
        if isinstance(settings, ResignSettings):
            resigner = await stack.enter_async_context(Resigner(settings))
        reader = await stack.enter_async_context(_open_reader(settings))

        async def send(message: AbstractIncomingMessage, dead: str) -> None:
            check_body_kept(message)
            queue = work_queue(message, dead)
            if resigner is None:
                copy = original(message)
            else:
                copy = await resigner.resign(message, queue, named=bool(ids))
            async with audit.act("dead_letter.replayed", **audit_fields(message, dead)):
                await send_back(reader.channel, message, copy, queue)

        if ids:
            return [
                await _apply(send, match, "replayed") for match in await _find(reader, queues, ids)
            ]
        return [
            await _apply(send, _Match(describe(message, name), message, name), "replayed")
            for name in queues
            async for message in reader.read(name, limit)
        ]


async def _apply(action: Action, match: _Match, status: str) -> dict[str, Any]:
    """Act on one letter; on an error it stays in its queue, and the row says why."""
    row: dict[str, Any] = {"queue": match.queue, "id": match.letter.id, "status": status}
    row |= {"code": None, "detail": None}
    try:
        await action(match.message, match.queue)
    except CodedError as exc:
        row.update(status="kept", code=exc.code, detail=exc.detail)
    except DeliveryError as exc:
        row.update(status="kept", detail=f"the broker did not accept it ({type(exc).__name__})")
    return row


def _print_results(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    print_rows(("queue", "id", "status", "code", "detail"), rows, as_json=as_json)
    kept = [row for row in rows if row["status"] == "kept"]
    if kept:
        reason = ": ".join(str(part) for part in (kept[0]["code"], kept[0]["detail"]) if part)
        raise CommandError(f"{len(kept)} of {len(rows)} left in the queue; the first: {reason}")


@app.command()
def discard(
    ids: Ids,
    queue: QueueOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Discard dead letters permanently. Each is recorded in the audit trail first."""
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("without a terminal, discard needs --yes")
        typer.confirm(f"Permanently discard {len(ids)} dead letter(s)?", abort=True, err=True)
    rows = asyncio.run(_discard(AuditSettings.read(), ids, _queues(queue), reason))
    _print_results(rows, as_json=as_json)


async def _discard(
    settings: AuditSettings, ids: list[str], queues: list[str], reason: str | None
) -> list[dict[str, Any]]:
    async def acknowledge(message: AbstractIncomingMessage, queue: str) -> None:
        async with audit.act("dead_letter.discarded", **audit_fields(message, queue)):
            await message.ack()
            # Wait for each: the broker forgets acknowledgments that are still on their way when
            # the channel closes, and the letters would come back.
            await reader.channel.declare_queue(queue, passive=True)

    async with (
        command_audit(settings, "dead discard", reason) as audit,
        _open_reader(settings) as reader,
    ):
        matches = await _find(reader, queues, ids)
        return [await _apply(acknowledge, match, "discarded") for match in matches]
