"""The stream of the marks of keyrings: followed from its start, and added to (SPEC 5.5).

A process knows the newest marks if it has reached the end of the stream a short time ago. The end
is what a second consumer shows, which the broker places there. An empty stream shows nothing, so a
worker that finds none publishes a first message, and reads it back: whatever was there before it,
it has read by then. A gateway or a command, which adds no marks, takes silence for an empty stream.

It must never take a mark that no event key signed.
"""

import asyncio
import math
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Final, TypeAlias

import orjson
import structlog
from aiormq.exceptions import ChannelAccessRefused

from keyturn.crypto import MarkVerifier, SigningKey, VerifyKey
from keyturn.errors import (
    EventsUnavailableError,
    MalformedRequestError,
    MarksUnavailableError,
    PublisherError,
)
from keyturn.identifiers import format_time, parse_time
from keyturn.messages import KeyringMarked, encode_mark, parse_mark
from keyturn.publisher.connection import Broker, BrokerConnection, persistent_json
from keyturn.publisher.event_stream import StreamRecord, follow, last_offset
from keyturn.topology import EVENT_KEY_HEADER, KEYRING_MARKED, MARKS_STREAM, SIGNATURE_HEADER
from keyturn_workers.background import share
from keyturn_workers.keyring.marks import Finding, Mark, MarkTable
from keyturn_workers.keyring.model import Keyring
from keyturn_workers.storage.clock import boottime_s

_TIMEOUT_S: Final = 10.0
_CATCH_UP_S: Final = 5.0
_CATCH_UP_OF_GATEWAY_S: Final = 0.5
# A consumer at the end of the stream that is silent for this long is taken as having nothing to
# show. At a start the stream is probably empty, and one extra message does no harm. A process that
# adds no marks cannot make sure by a message of its own, so it waits longer.
_SILENCE_S: Final = 0.5
_SILENCE_AT_START_S: Final = 0.1
_SILENCE_OF_READER_S: Final = 1.0
_NEWEST_S: Final = 0.1
_LOOK_AGAIN_S: Final = 0.5
_LOOK_AGAIN_MAX_S: Final = 5.0
_OPENED: Final = "marks.opened"
_GAP: Final = (
    f"{MARKS_STREAM} lost messages: delete it, restart the workers, and see `keyturn recover`"
)

_State: TypeAlias = tuple[str, int, bytes]
"""A project, and its keyring's serial and digest."""

_log = structlog.get_logger()


class MarkStream:
    """What a process knows of the marks, and how it adds one: a `keyring.marks.Witness`.

    Args:
        broker: The broker's address.
        deployment: The installation that marks must be signed for.
        verify_keys: The public event keys; the first one is the current one.
        lease_s: Of this process, in seconds. It is current for one of them: a keyring that was
            rolled back just after that may be believed for one lease, and a write by it takes one
            more, which is what every proof waits for.
        signing_key: Signs marks. None for a gateway or a command, which add none: a gateway
            serves keyrings that are not marked yet, and also while it cannot read the stream.

    Attributes:
        table: The marks that were received.
        signed_before: The highest marks that an earlier event key signed: by project, the id of
            the key, and the mark's bytes.
    """

    def __init__(
        self,
        broker: Broker,
        deployment: str,
        verify_keys: Sequence[VerifyKey],
        *,
        lease_s: float,
        signing_key: SigningKey | None,
    ) -> None:
        self.table = MarkTable()
        self.signed_before: dict[str, tuple[str, bytes]] = {}
        self._deployment = deployment
        self._verifier = MarkVerifier(deployment, verify_keys)
        self._current_key_id = verify_keys[0].id
        self._lease_s = lease_s
        self._signing_key = signing_key
        self._reading = BrokerConnection(broker, publish_timeout_s=_TIMEOUT_S)
        # Not the same: a message that cannot be decoded breaks the one that is read from.
        self._publishing = self._reading.separate()
        self._offset = -1
        self._has_gap = False
        self._is_refused = False
        self._looking = asyncio.Lock()
        self._advanced = asyncio.Event()
        self._current_s: float | None = None
        self._problem: str | None = None
        self._publications: dict[_State, asyncio.Task[None]] = {}
        self._awaited: dict[_State, asyncio.Event] = {}
        self._callbacks: list[Callable[[str, Mark], None]] = []

    @property
    def is_current(self) -> bool:
        """Whether it reached the end of the stream, without a gap, within the last lease."""
        if self._has_gap or self._current_s is None:
            return False
        return boottime_s() - self._current_s <= self._lease_s

    def check_current(self, project: str) -> None:
        """Check that the newest marks are known; never raises in a gateway.

        Raises:
            MarksUnavailableError: they are not.
        """
        if self._signing_key is None:
            return
        if not self.is_current:
            problem = _GAP if self._has_gap else self._problem
            raise MarksUnavailableError(
                problem or f"{MARKS_STREAM} was not read to its end within the last lease"
            )
        if self.table.find_lost(project) is not None:
            raise MarksUnavailableError(
                f"{MARKS_STREAM} was replaced, and lacks the mark of {project}; "
                "see `keyturn recover`"
            )

    async def become_current(self) -> None:
        """Catch up if it is not current: the broker may just be back. Waits a few seconds at most.

        Without this, the messages that a broker delivers after its start would all be put off.
        """
        if self._signing_key is not None:
            await self._become_current(_CATCH_UP_S)

    async def require_current(self) -> None:
        """Check that a gateway knows the newest marks, before it publishes for an API key.

        If it lacks the permission to read them, it does without.

        Raises:
            MarksUnavailableError: it does not know them.
        """
        await self._become_current(_CATCH_UP_OF_GATEWAY_S)
        if not self.is_current and not self._is_refused:
            problem = f" ({self._problem})" if self._problem else ""
            raise MarksUnavailableError(f"the newest marks of keyrings are not known{problem}")

    async def _become_current(self, timeout_s: float) -> None:
        if not self.is_current:
            with suppress(TimeoutError, MarksUnavailableError):
                async with asyncio.timeout(timeout_s):
                    await self.catch_up()

    def accepts(self, finding: Finding) -> bool:
        """Whether a keyring with this finding may be used as it is."""
        if self._signing_key is not None:
            return False
        return finding is Finding.UNMARKED or (finding is Finding.UNKNOWN and not self.is_current)

    def when_marked(self, forget: Callable[[str, Mark], None]) -> None:
        """Call `forget` with each project's new highest mark."""
        self._callbacks.append(forget)

    async def publish(self, keyring: Keyring, mark: Mark) -> None:
        """Publish a keyring's mark; returns once it was read back. Calls for one state share it.

        Raises:
            MarksUnavailableError: the broker is away, or the mark was not read back in time.
        """
        state = (keyring.project, mark.serial, mark.digest)
        publication = self._publications.get(state)
        if publication is None:
            publication = self._publications[state] = share(self._publish(keyring, mark, state))
            publication.add_done_callback(lambda _: self._publications.pop(state))
        await asyncio.shield(publication)

    async def _publish(self, keyring: Keyring, mark: Mark, state: _State) -> None:
        message = KeyringMarked(
            project=keyring.project,
            serial=mark.serial,
            digest=mark.digest.hex(),
            generation=mark.generation,
            kek_id=keyring.current.kek_id,
            master_key=keyring.master_key,
            at=format_time(datetime.now(UTC)),
        )
        read_back = self._awaited[state] = asyncio.Event()
        try:
            await self._send(encode_mark(message))
            async with asyncio.timeout(_TIMEOUT_S):
                await read_back.wait()
        except TimeoutError as exc:
            raise MarksUnavailableError("the keyring's mark was not read back in time") from exc
        finally:
            del self._awaited[state]

    async def _send(self, body: bytes) -> None:
        """Publish one signed message.

        Raises:
            MarksUnavailableError: it is not on the stream, or perhaps not.
        """
        if self._signing_key is None:
            raise MarksUnavailableError("this process has no event key")
        headers = {
            SIGNATURE_HEADER: self._signing_key.sign_mark(self._deployment, body),
            EVENT_KEY_HEADER: self._signing_key.id,
        }
        message = persistent_json(body, str(uuid.uuid4()), headers)
        try:
            await self._publishing.publish(KEYRING_MARKED, message)
        except PublisherError as exc:
            raise MarksUnavailableError(f"the keyring cannot be marked: {exc}") from exc

    async def load(self) -> None:
        """Read all marks that were there at the start; call it while `run` runs.

        Raises:
            EventsUnavailableError: the stream cannot be read.
        """
        while not self.is_current:
            if self._has_gap:
                raise EventsUnavailableError(_GAP)
            await self._look()

    async def catch_up(self) -> None:
        """Return once all marks are received that were on the stream when it was called.

        Raises:
            MarksUnavailableError: the stream cannot be read.
        """
        called_s = boottime_s()
        try:
            while self._current_s is None or self._current_s < called_s:
                await self._look(called_s)
        except EventsUnavailableError as exc:
            raise MarksUnavailableError(str(exc)) from exc

    async def sign_anew(self) -> None:
        """Publish the marks that an earlier event key signed again, signed by the current key.

        Raises:
            MarksUnavailableError: the broker is away.
        """
        for _, body in tuple(self.signed_before.values()):
            await self._send(body)

    async def run(self) -> None:
        """Follow the stream forever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._keep_current())

    async def _follow(self) -> None:
        pause_s = _LOOK_AGAIN_S
        while True:
            following = follow(self._reading, 0, MARKS_STREAM, note_problem=self._note)
            try:
                async with aclosing(following) as records:
                    async for record in records:
                        self._take(record)
            except EventsUnavailableError as exc:
                # Nothing was read. A gateway may lack the permission for as long as it runs.
                self._note(str(exc))
                self._is_refused = isinstance(exc.__cause__, ChannelAccessRefused)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LOOK_AGAIN_MAX_S)

    def _note(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            _log.warning("marks cannot be read", problem=problem)
        self._problem = problem

    def _take(self, record: StreamRecord) -> None:
        expected = self._offset + 1 + record.skipped
        if record.offset < expected:
            _log.error("the stream of marks was replaced", last_offset=self._offset)
            self.table.begin_again()
            self._current_s = None
            expected = record.skipped
        if record.offset != expected:
            _log.error(_GAP, offset=record.offset, expected=expected)
            self._has_gap = True
        self._offset = record.offset
        try:
            self._receive(record)
        finally:
            self._advanced.set()
            self._advanced = asyncio.Event()

    def _receive(self, record: StreamRecord) -> None:
        try:
            message = parse_mark(record.body)
        except MalformedRequestError:
            return  # the first message of a stream, or of a later version, or an attacker's
        project = message.project
        mark = Mark(message.serial, bytes.fromhex(message.digest), message.generation)
        known = self.table.find(project)
        awaited = self._awaited.get((project, mark.serial, mark.digest))
        if known is not None and mark.serial < known.serial and awaited is None:
            return  # it changes nothing, by whichever key it was signed
        signer = self._verifier.signer(record.body, record.signature, record.key_id)
        if signer is None:
            _log.warning("ignored a mark that is not signed", offset=record.offset)
            return
        if self.table.receive(project, mark, at=parse_time(message.at)):
            self._note_signer(project, signer, record.body)
            if known != mark:
                for forget in self._callbacks:
                    forget(project, mark)
        if awaited is not None:
            awaited.set()

    def _note_signer(self, project: str, signer: str, body: bytes) -> None:
        if signer == self._current_key_id:
            self.signed_before.pop(project, None)
        else:
            self.signed_before[project] = (signer, body)

    async def _keep_current(self) -> None:
        was_current = True
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await self._look()
            except EventsUnavailableError as exc:
                self._note(str(exc))
            if self.is_current != was_current:
                was_current = self.is_current
                log = _log.info if was_current else _log.error
                log("marks are current" if was_current else "marks are not current")

    async def _look(self, since_s: float = math.inf) -> None:
        """Find the end of the stream, and wait until it is reached.

        Callers that come while one looks share the next look; one that began after `since_s`
        is enough.

        Raises:
            EventsUnavailableError: the stream cannot be read.
        """
        async with self._looking:
            if self._current_s is None or self._current_s < since_s:
                await self._look_now()

    async def _look_now(self) -> None:
        sent_s, before = boottime_s(), self._offset
        last = await last_offset(
            self._reading, MARKS_STREAM, silence_s=self._silence_s, newest_s=_NEWEST_S
        )
        if last is None:
            await self._look_without_messages(sent_s)
            return
        if last < before:
            return  # another stream is in its place, which the follower is about to notice
        while self._offset < last:
            before, advanced = self._offset, self._advanced
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await advanced.wait()
            except TimeoutError:
                if self._offset == before:
                    raise EventsUnavailableError(
                        f"{MARKS_STREAM} does not deliver what it holds"
                    ) from None
        self._current_s = sent_s

    @property
    def _silence_s(self) -> float:
        if self._signing_key is None:
            return _SILENCE_OF_READER_S
        return _SILENCE_AT_START_S if self._offset < 0 else _SILENCE_S

    async def _look_without_messages(self, sent_s: float) -> None:
        """Put a message on a stream that shows none, so that the next look finds it.

        It is empty, or slow, or another one is in its place, or its last message cannot be
        decoded.
        """
        if self._signing_key is None:
            if self._offset < 0:
                self._current_s = sent_s
            return
        body = orjson.dumps({"type": _OPENED, "at": format_time(datetime.now(UTC))})
        try:
            await self._send(body)
        except MarksUnavailableError as exc:
            raise EventsUnavailableError(exc.detail) from exc

    async def close(self) -> None:
        """Close its connections."""
        await self._publishing.close()
        await self._reading.close()


@asynccontextmanager
async def following(stream: MarkStream) -> AsyncIterator[None]:
    """Follow the stream during the block, and disconnect at its end."""
    task = asyncio.create_task(stream.run())
    task.add_done_callback(_report_failure)
    try:
        yield
    finally:
        task.cancel()
        # The client library may raise the error of a lost connection instead of the cancellation.
        await asyncio.wait({task}, timeout=_TIMEOUT_S)
        await stream.close()


def _report_failure(task: asyncio.Task[None]) -> None:
    """Log why the stream is no longer followed: from then on, the process refuses to work."""
    if not task.cancelled() and (problem := task.exception()) is not None:
        _log.error("the stream of marks is no longer followed", exc_info=problem)
