"""`keyturn dead`: list, show, replay and discard dead letters (SPEC 12, 14).

An attacker with write access to the broker can put anything into a dead-letter queue, and wait for
the operator's signature. So never sign again a letter that its publisher did not sign or was not
permitted to send, nor any request but an upload. An upload replaces and destroys nothing, and is
the only request that may carry the only copy of a body.
"""

import asyncio
import sys
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Self

import typer
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.intake import session_info, upload_info
from keyturn.errors import (
    NotPermittedError,
    RequestExpiredError,
    SettingsError,
    StagedBodyMissingError,
    UnknownIntakeKeyError,
)
from keyturn.identifiers import format_time, staging_s3_key
from keyturn.messages.audit import AuditAction
from keyturn.messages.codec import encode, request_id
from keyturn.messages.fields import DeadLettersAction
from keyturn.messages.requests import UNKNOWN_CODE, SealedKey, StagedBody, UploadRequested
from keyturn.publisher.connection import BrokerAddress, persistent_json
from keyturn.settings import DeploymentSettings, S3Settings
from keyturn.topology import (
    CODE_HEADER,
    DEAD_QUEUES,
    PUBLISHER_HEADER,
    REQUESTS,
    SIGNATURE_HEADER,
    UPLOAD_QUEUE,
    dead_letter_name,
)
from keyturn_workers.cli.arguments import AsJson, Reason
from keyturn_workers.cli.audit import CommandAudit, command_audit
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import Row, command_group, print_json, print_rows
from keyturn_workers.cli.secrets import write_secret
from keyturn_workers.cli.settings import IntakeKeySettings, ResignSettings
from keyturn_workers.core.authorization import Arrival, Rules, authorize, verify
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.sealed_secrets import held_intake_key, open_under_session, open_with
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.process.settings import AuditSettings
from keyturn_workers.reports.dead_letters.letters import (
    DeadLetter,
    check_body_kept,
    describe,
    digest_of,
    json_headers,
    redacted_body,
)
from keyturn_workers.reports.dead_letters.move import Copy, Move, Problem, as_sent, move_letters
from keyturn_workers.reports.dead_letters.queue import (
    Letters,
    UnreadableQueueError,
    dead_queue,
    open_letters,
    read_letters,
)

app = command_group("dead", "Inspect, replay or discard dead letters.")

_COLUMNS: Final = ("queue", "id", "type", "project", "code", "detail", "publisher", "age")
_REPLAY_LIMIT: Final = 10_000
_COPY_BYTES: Final = 1024 * 1024
_DEAD_UPLOADS: Final = dead_letter_name(UPLOAD_QUEUE)
_NOT_SIGNED_AGAIN: Final = (
    f"only an upload in {_DEAD_UPLOADS} can be signed again; its publisher must publish it again"
)
_DONE: Final[dict[DeadLettersAction, str]] = {"replay": "replayed", "discard": "discarded"}

Ids = Annotated[list[str], typer.Argument(help="Ids from `keyturn dead list`.")]
QueueOption = Annotated[str | None, typer.Option("--queue", help="Only this dead-letter queue.")]
Limit = Annotated[int, typer.Option(min=1, help="Maximum number of letters per queue.")]


@app.command("list")
def list_letters(
    queue: Annotated[
        str | None, typer.Argument(help="A single queue, such as keyturn.upload.dead.")
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(help=f"Only letters with this code; `{UNKNOWN_CODE}` for those without one."),
    ] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, oldest first. None is removed."""
    settings = DeploymentSettings.read()
    letters, more = asyncio.run(_list(settings, _queues(queue), code, limit))
    rows = [_row(letter, letters) for letter in letters]
    print_rows(_COLUMNS, rows, as_json=as_json)
    for name in more:
        note(f"{name} holds more letters; raise --limit (now {limit}) to see them")


def _queues(name: str | None) -> list[str]:
    return list(DEAD_QUEUES) if name is None else [dead_queue(name)]


def _row(letter: DeadLetter, letters: list[DeadLetter]) -> Row:
    duplicates = sum(1 for other in letters if other.id == letter.id)
    # Any publisher can reuse the id of another message; the digest is still unique.
    unique_id = letter.digest if duplicates > 1 else letter.id
    dead_at = None if letter.dead_at is None else format_time(letter.dead_at)
    row = {"id": unique_id, "age": letter.age(datetime.now(UTC)), **asdict(letter)}
    return row | {"dead_at": dead_at}


async def _list(
    settings: DeploymentSettings, queues: list[str], code: str | None, limit: int
) -> tuple[list[DeadLetter], list[str]]:
    """Return the oldest letters of each queue, and the queues with more letters."""

    def match(message: AbstractIncomingMessage, queue: str) -> DeadLetter | None:
        letter = describe(message, queue)
        return letter if code in (None, letter.code or UNKNOWN_CODE) else None

    letters: list[DeadLetter] = []
    more: list[str] = []
    async with open_letters(BrokerAddress.of(settings)) as opened:
        for queue in queues:
            try:
                # One more than is shown, to know whether there are more with this code.
                found, _ = await read_letters(opened, queue, match, limit + 1)
            except UnreadableQueueError as exc:
                note(str(exc))
                continue
            letters += found[:limit]
            if len(found) > limit:
                more.append(queue)
    return letters, more


async def _find(
    opened: Letters, queues: list[str], ids: Collection[str]
) -> list[tuple[DeadLetter, AbstractIncomingMessage]]:
    """Return the letters with these ids or digests.

    Raises:
        CommandError: an id matches no letter, or several different ones.
    """

    def match(
        message: AbstractIncomingMessage, queue: str
    ) -> tuple[DeadLetter, AbstractIncomingMessage] | None:
        letter = describe(message, queue)
        return (letter, message) if {letter.message_id, letter.digest} & {*ids} else None

    matches: list[tuple[DeadLetter, AbstractIncomingMessage]] = []
    for queue in queues:
        try:
            matches += (await read_letters(opened, queue, match))[0]
        except UnreadableQueueError as exc:
            note(str(exc))
    for id_ in ids:
        digests = {
            letter.digest for letter, _ in matches if id_ in (letter.message_id, letter.digest)
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
    """Show one dead letter as JSON.

    Includes its headers, and its body without the sealed parts.
    """
    del as_json  # for scripts that pass --json to every command
    asyncio.run(_show(DeploymentSettings.read(), letter_id, _queues(queue), raw))


async def _show(
    settings: DeploymentSettings, letter_id: str, queues: list[str], raw: Path | None
) -> None:
    async with open_letters(BrokerAddress.of(settings)) as opened:
        letter, message = (await _find(opened, queues, [letter_id]))[0]
    if raw is not None:
        write_secret(raw, message.body)
    print_json(
        {
            "queue": letter.queue,
            "message_id": message.message_id,
            "digest": letter.digest,
            "content_type": message.content_type,
            "headers": json_headers(message.headers),
            "body": redacted_body(message.body),
        }
    )


@app.command()
def replay(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids from `keyturn dead list`.")] = None,
    all_letters: Annotated[bool, typer.Option("--all", help="All letters of the queues.")] = False,
    resign: Annotated[
        bool,
        typer.Option(
            "--resign",
            help="Sign uploads again as KEYTURN_PUBLISHER_NAME, with the current time. Only for "
            f"uploads in {_DEAD_UPLOADS} rejected with request_expired that their publisher "
            "signed and may send (KEYTURN_PUBLISHERS). An upload of another publisher may need "
            "KEYTURN_INTAKE_KEYS. Any other request must be published again by its publisher.",
        ),
    ] = False,
    queue: QueueOption = None,
    limit: Limit = _REPLAY_LIMIT,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to their work queues. Each is recorded in the audit trail first."""
    if bool(ids) == all_letters:
        raise typer.BadParameter("name ids or use --all")
    signer = ResignSettings.read() if resign else None
    rows = asyncio.run(_move("replay", ids or None, _queues(queue), reason, limit, signer))
    _print_results(rows, as_json=as_json)


async def _move(
    action: DeadLettersAction,
    ids: list[str] | None,
    queues: list[str],
    reason: str | None,
    limit: int | None = None,
    signer: ResignSettings | None = None,
) -> list[Row]:
    """Replay or discard dead letters; return a row for each.

    `ids` may be digests; None moves all letters of the queues, at most `limit` of each. With a
    `signer`, a replayed letter is signed again; otherwise it is sent as it was.
    """
    settings = AuditSettings.read()
    async with AsyncExitStack() as stack:
        audit = await stack.enter_async_context(command_audit(settings, f"dead {action}", reason))
        copy = as_sent
        if signer is not None:
            copy = (await stack.enter_async_context(Resigner(signer))).copy
        opened = await stack.enter_async_context(open_letters(BrokerAddress.of(settings)))
        mover = _Mover(opened, audit, action, copy)
        if ids is not None:
            await mover.move_named(queues, ids)
        else:
            for name in queues:
                await mover.move(name, lambda _: True, limit)
        return mover.rows


class _Mover:
    """Moves letters of several queues, and notes a row for each."""

    def __init__(
        self,
        opened: Letters,
        audit: CommandAudit,
        action: DeadLettersAction,
        copy: Copy,
    ) -> None:
        self.rows: list[Row] = []
        self._letters = opened
        self._audit = audit
        self._action = action
        self._copy = copy

    async def move_named(self, queues: list[str], ids: Collection[str]) -> None:
        """Move the letters with these ids or digests; none if one of them is ambiguous."""
        digests: dict[str, set[str]] = defaultdict(set)
        for letter, _ in await _find(self._letters, queues, ids):
            digests[letter.queue].add(letter.digest)
        for queue, named in digests.items():
            await self.move(queue, partial(_is_named, named))

    async def move(
        self,
        queue: str,
        selects: Callable[[AbstractIncomingMessage], bool],
        limit: int | None = None,
    ) -> None:
        """Move the selected letters of a queue, at most `limit`; one row if it is unreadable."""
        move = Move(self._action, selects, self._record, self._copy, self._report, limit)
        try:
            await move_letters(self._letters, queue, move)
        except UnreadableQueueError as exc:
            row = {"queue": queue, "id": None, "status": "kept", "code": None, "detail": str(exc)}
            self.rows.append(row)

    async def _record(self, action: AuditAction, letter: DeadLetter, outcome: str) -> None:
        await self._audit.record(action, outcome=outcome, **letter.audit_fields())

    def _report(self, letter: DeadLetter, problem: Problem | None) -> None:
        row = {"queue": letter.queue, "id": letter.id, "code": None, "detail": None}
        row["status"] = _DONE[self._action]
        if problem is not None:
            row |= {"status": "kept", "code": problem.code, "detail": problem.detail}
        self.rows.append(row)


def _is_named(digests: Collection[str], message: AbstractIncomingMessage) -> bool:
    return digest_of(message) in digests


def _print_results(rows: list[Row], *, as_json: bool) -> None:
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
    rows = asyncio.run(_move("discard", ids, _queues(queue), reason))
    _print_results(rows, as_json=as_json)


class Resigner:
    """Signs uploads again as the settings' publisher, with the current time."""

    def __init__(self, settings: ResignSettings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._storage: Storage | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def copy(self, message: AbstractIncomingMessage, dead: str) -> Message:
        """Return the letter's upload with a new time and signature, and the same id.

        Raises:
            NotPermittedError: it is not an upload in the queue of dead uploads; it was not rejected
                for its age, or has not expired; or its publisher may not send it.
            BadSignatureError, MalformedRequestError: its publisher did not sign it, or its body was
                not kept.
            StagedBodyMissingError: its staged body is gone.
            UnknownIntakeKeyError, BadSealError: a session of another publisher sealed its key, and
                it cannot be opened here.
        """
        check_body_kept(message)
        if dead != _DEAD_UPLOADS:
            raise NotPermittedError(_NOT_SIGNED_AGAIN)
        code = message.headers.get(CODE_HEADER)
        if code != RequestExpiredError.code:
            # Other letters were rejected for their content: a new signature would give them a
            # second chance that their publisher never requested.
            raise NotPermittedError(f"only request_expired can be signed again, not {code!r}")
        request, publisher = self._verify(message)
        # The code is not signed: an attacker with access to the broker can put it on a letter
        # rejected for another reason, or on a copy of a recent request.
        max_age = timedelta(seconds=self._settings.request_max_age_s)
        if datetime.now(UTC) - request.requested_at_instant <= max_age:
            raise NotPermittedError("it has not expired; replay it without --resign")
        changes: dict[str, object] = {"requested_at": format_time(datetime.now(UTC))}
        if request.sealed_key is not None:
            changes["sealed_key"] = self._sealed_key(request, request.sealed_key, publisher)
        await self._move_staged(request, publisher)
        body = encode(request.model_copy(update=changes))
        name = self._settings.publisher_name
        signature = self._settings.publisher_key.sign_request(self._settings.deployment, name, body)
        headers = {PUBLISHER_HEADER: name, SIGNATURE_HEADER: signature}
        return persistent_json(body, request_id(request), headers)

    def _verify(self, message: AbstractIncomingMessage) -> tuple[UploadRequested, str]:
        """Return the upload, and the publisher that signed it; errors as `copy`."""
        rules = Rules(self._settings.deployment, self._settings.publishers, timedelta.max)
        signer = verify(message.body, message.headers, rules)
        arrival = Arrival(UPLOAD_QUEUE, REQUESTS, UPLOAD_QUEUE)
        request = authorize(message.body, signer, arrival)
        if not isinstance(request, UploadRequested):
            raise NotPermittedError(_NOT_SIGNED_AGAIN)
        return request, signer.name

    def _sealed_key(self, request: UploadRequested, sealed: SealedKey, publisher: str) -> SealedKey:
        """Return the upload's sealed key, resealed if only its own publisher may have sealed it.

        Raises: as `copy`.
        """
        name = self._settings.publisher_name
        if sealed.session is None or publisher == name:
            return sealed
        try:
            intake_keys = IntakeKeySettings.read().intake_keys
            intake_key = held_intake_key(sealed, intake_keys)
        except (SettingsError, UnknownIntakeKeyError) as exc:
            problem = str(exc) if isinstance(exc, SettingsError) else f"it is {sealed.intake_key}"
            raise UnknownIntakeKeyError(
                f"a session of {publisher} sealed this upload's key; to seal it for {name}, "
                f"KEYTURN_INTAKE_KEYS must have the intake key ({problem})"
            ) from exc
        session = open_with(
            intake_key,
            from_base64(sealed.session),
            session_info(self._settings.deployment, publisher),
        )
        info = upload_info(request.upload_id, request.project, request.key)
        ciphertext = intake_key.public_key.seal(open_under_session(session, sealed, info), info)
        return SealedKey(intake_key=sealed.intake_key, ciphertext=to_base64(ciphertext))

    async def _move_staged(self, request: UploadRequested, publisher: str) -> None:
        if not isinstance(request.body, StagedBody):
            return
        storage = await self._open_storage()
        source = staging_s3_key(publisher, request.upload_id)
        target = staging_s3_key(self._settings.publisher_name, request.upload_id)
        size_bytes = request.body.staged.size
        try:
            if (await storage.head(source)).size_bytes != size_bytes:
                raise StagedBodyMissingError(f"the staged body does not have {size_bytes} bytes")
            if source == target:
                return
            async with storage.stream(source) as stream:
                chunks = stream.chunks(_COPY_BYTES)
                await storage.put_stream(target, chunks, size_bytes, Headers({}))
        except MissingError as exc:
            raise StagedBodyMissingError("the staged body is gone") from exc

    async def _open_storage(self) -> Storage:
        if self._storage is None:
            self._storage = await self._stack.enter_async_context(
                open_bucket(S3Settings.read(), max_connections=4)
            )
        return self._storage
