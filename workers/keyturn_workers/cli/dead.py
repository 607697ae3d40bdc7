"""`keyturn dead`: list, show, replay and discard dead letters (SPEC 12, 14)."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError

from keyturn.errors import CodedError
from keyturn.settings import DeploymentSettings
from keyturn.topology import DEAD_QUEUES
from keyturn_workers.cli.arguments import AsJson
from keyturn_workers.cli.dead_letters import (
    Letter,
    Look,
    check_body_kept,
    connected,
    dead_queue,
    letter_of,
    now,
    shown_body,
    shown_headers,
    undisturbed,
    work_queue,
)
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import print_json, print_table
from keyturn_workers.cli.secret_files import write_secret
from keyturn_workers.cli.settings import ResignSettings

app = typer.Typer(name="dead", help="Look after what could not be served.")

_COLUMNS: Final = ("queue", "id", "type", "project", "code", "detail", "publisher", "age")
_SEARCH_LIMIT: Final = 10_000

Ids = Annotated[list[str], typer.Argument(help="Ids, as `keyturn dead list` shows them.")]
QueueOption = Annotated[str | None, typer.Option("--queue", help="Only this dead-letter queue.")]
Limit = Annotated[int, typer.Option(min=1, help="Look at so many letters a queue at most.")]
Act = Callable[[AbstractIncomingMessage, str], Awaitable[None]]


@app.command("list")
def list_letters(
    queue: Annotated[
        str | None, typer.Argument(help="One queue, such as keyturn.upload.dead.")
    ] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, oldest first; they stay where they are."""
    settings = DeploymentSettings.read()
    letters, more = asyncio.run(_list(settings, _queues(queue), limit))
    rows = [_described(letter, letters) for letter in letters]
    if as_json:
        print_json(rows)
    else:
        print_table(_COLUMNS, ([row[name] for name in _COLUMNS] for row in rows))
    for name in more:
        note(f"{name} holds more than {limit}; --limit shows them")


def _queues(name: str | None) -> list[str]:
    return list(DEAD_QUEUES) if name is None else [dead_queue(name)]


def _described(letter: Letter, among: list[Letter]) -> dict[str, Any]:
    namesakes = sum(1 for other in among if other.id == letter.id)
    # Anybody who may publish can take another message's id: then the digest tells them apart.
    chosen = letter.digest if namesakes > 1 else letter.id
    return {"id": chosen, "age": letter.age(now()), **asdict(letter)}


@asynccontextmanager
async def _look(settings: DeploymentSettings) -> AsyncIterator[Look]:
    """One look at the letters; where the broker is lost, it takes them back by itself."""
    async with (
        connected(settings.amqp_url.get_secret_value()) as connection,
        undisturbed(connection),
    ):
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        async with channel:
            look = Look(channel)
            try:
                yield look
            finally:
                if not channel.is_closed:
                    await look.give_back()


async def _list(
    settings: DeploymentSettings, queues: list[str], limit: int
) -> tuple[list[Letter], list[str]]:
    letters: list[Letter] = []
    more: list[str] = []
    async with _look(settings) as look:
        for queue in queues:
            found = [letter_of(m, queue) async for m in look.deliveries(queue, limit + 1)]
            letters += found[:limit]
            if len(found) > limit:
                more.append(found[0].queue)
    return letters, more


@dataclass(frozen=True, slots=True)
class _Found:
    letter: Letter
    message: AbstractIncomingMessage
    queue: str


async def _find(look: Look, queues: list[str], ids: list[str]) -> list[_Found]:
    """The letters with these ids, or digests.

    Raises:
        CommandError: one of them names no letter, or several that differ.
    """
    found: list[_Found] = []
    for queue in queues:
        async for message in look.deliveries(queue, _SEARCH_LIMIT):
            letter = letter_of(message, queue)
            if letter.message_id in ids or letter.digest in ids:
                found.append(_Found(letter, message, queue))
    for wanted in ids:
        digests = {
            f.letter.digest for f in found if wanted in (f.letter.message_id, f.letter.digest)
        }
        if not digests:
            raise CommandError(f"no dead letter has the id {wanted}")
        if len(digests) > 1:
            raise CommandError(f"{wanted} names several: choose of {', '.join(sorted(digests))}")
    return found


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(help="The id, as `keyturn dead list` shows it.")],
    queue: QueueOption = None,
    raw: Annotated[
        Path | None, typer.Option(help="Write the body, sealed as it is, to this new file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, as without it: a letter is no table.")
    ] = False,
) -> None:
    """Show one dead letter as JSON: headers, and the body without its sealed parts."""
    del as_json  # for scripts that say --json to every command; the output is the same
    asyncio.run(_show(DeploymentSettings.read(), letter_id, _queues(queue), raw))


async def _show(
    settings: DeploymentSettings, letter_id: str, queues: list[str], raw: Path | None
) -> None:
    async with _look(settings) as look:
        found = (await _find(look, queues, [letter_id]))[0]
        message = found.message
        document = {
            "queue": found.letter.queue,
            "message_id": message.message_id,
            "digest": found.letter.digest,
            "content_type": message.content_type,
            "headers": shown_headers(message.headers),
            "body": shown_body(message.body),
        }
        if raw is not None:
            write_secret(raw, message.body)
    print_json(document)


@app.command()
def replay(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of letters.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All letters of the queues.")] = False,
    resign: Annotated[
        bool,
        typer.Option(
            "--resign",
            help="Sign anew as KEYTURN_PUBLISHER_NAME with the time of now. Only what was refused "
            "as request_expired, and what its own publisher signed and may send "
            "(KEYTURN_PUBLISHERS). A rotation or an enrolment only by its id; a rotation only "
            "where no later one was accepted (KEYTURN_MASTER_KEYS).",
        ),
    ] = False,
    queue: QueueOption = None,
    limit: Limit = _SEARCH_LIMIT,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to their work queue."""
    if bool(ids) == every:
        raise typer.BadParameter("name ids, or --all")
    settings = ResignSettings.read() if resign else DeploymentSettings.read()
    rows = asyncio.run(_replay(settings, ids or [], _queues(queue), limit))
    _tell(rows, as_json=as_json)


async def _replay(
    settings: DeploymentSettings, ids: list[str], queues: list[str], limit: int
) -> list[dict[str, Any]]:
    # It brings the workers' side of the broker with it, a second of imports.
    from keyturn_workers.cli.replay import Resigner, as_sent, send_back  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        resigner = None
        if isinstance(settings, ResignSettings):
            resigner = await stack.enter_async_context(Resigner(settings))
        look = await stack.enter_async_context(_look(settings))

        async def act(message: AbstractIncomingMessage, dead: str) -> None:
            check_body_kept(message)
            queue = work_queue(message, dead)
            if resigner is None:
                copy = as_sent(message)
            else:
                copy = await resigner.renewed(message, queue, named=bool(ids))
            await send_back(look.channel, message, copy, queue)

        if ids:
            found = await _find(look, queues, ids)
            return [await _done(act, f.message, f.letter, f.queue, "replayed") for f in found]
        return [
            await _done(act, message, letter_of(message, name), name, "replayed")
            for name in queues
            async for message in look.deliveries(name, limit)
        ]


async def _done(
    act: Act, message: AbstractIncomingMessage, letter: Letter, queue: str, status: str
) -> dict[str, Any]:
    """Act on one letter; one that cannot be is told, and stays."""
    row = {"queue": letter.queue, "id": letter.id, "status": status, "code": None, "detail": None}
    try:
        await act(message, queue)
    except CodedError as exc:
        row.update(status="kept", code=exc.code, detail=exc.detail)
    except DeliveryError as exc:
        row.update(status="kept", detail=f"the broker did not take it ({type(exc).__name__})")
    return row


def _tell(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        columns = ("queue", "id", "status", "code", "detail")
        print_table(columns, ([row[name] for name in columns] for row in rows))
    kept = [row for row in rows if row["status"] == "kept"]
    if kept:
        reason = ": ".join(str(part) for part in (kept[0]["code"], kept[0]["detail"]) if part)
        raise CommandError(f"{len(kept)} of {len(rows)} kept; the first: {reason}")


@app.command()
def discard(
    ids: Ids,
    queue: QueueOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drop dead letters for good."""
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("without a terminal to ask on, discarding needs --yes")
        typer.confirm(f"Discard {len(ids)} dead letter(s) for good?", abort=True, err=True)
    rows = asyncio.run(_discard(DeploymentSettings.read(), ids, _queues(queue)))
    _tell(rows, as_json=as_json)


async def _discard(
    settings: DeploymentSettings, ids: list[str], queues: list[str]
) -> list[dict[str, Any]]:
    async def act(message: AbstractIncomingMessage, queue: str) -> None:
        await message.ack()
        # One at a time: acknowledgements that the channel has not passed on when it is closed,
        # the broker forgets, and the letters are there again.
        await look.channel.declare_queue(queue, passive=True)

    async with _look(settings) as look:
        found = await _find(look, queues, ids)
        return [await _done(act, f.message, f.letter, f.queue, "discarded") for f in found]
