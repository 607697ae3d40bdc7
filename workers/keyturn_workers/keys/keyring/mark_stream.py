"""Follow the stream of keyring marks from its start, and publish to it (SPEC 5.5).

A process knows the newest marks if it reached the end of the stream a short time ago. It finds the
end by a second consumer, which the broker places there. An empty stream shows nothing, so a worker
that sees no message publishes one and reads it back: by then it has read every earlier message. A
gateway or a command, which publishes no marks, takes silence for an empty stream.

A mark that no event key signed must never be accepted.
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

from keyturn.crypto.signatures import MarkVerifier, SigningKey, VerifyKey
from keyturn.errors import (
    EventsUnavailableError,
    MalformedRequestError,
    MarksUnavailableError,
    PublisherError,
)
from keyturn.identifiers import format_time, parse_time
from keyturn.messages.marks import (
    InvalidMarkError,
    KeyringMarked,
    MarkedCustomerKey,
    encode_mark,
    parse_mark,
)
from keyturn.publisher.connection import Broker, BrokerConnection, persistent_json
from keyturn.publisher.event_stream import StreamRecord, follow, last_offset
from keyturn.topology import EVENT_KEY_HEADER, KEYRING_MARKED, MARKS_STREAM, SIGNATURE_HEADER
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.keys.keyring.marks import (
    Finding,
    Mark,
    MarkTable,
    customer_keys_from_json,
    customer_keys_to_json,
)
from keyturn_workers.process.background import share
from keyturn_workers.storage.clock import boottime_s

_TIMEOUT_S: Final = 10.0
_CATCH_UP_S: Final = 5.0
_CATCH_UP_OF_GATEWAY_S: Final = 0.5
# If a consumer at the end of the stream is silent for this long, the stream is taken as empty. At
# a start it probably is, and one extra message does no harm. A process that publishes no marks
# cannot make sure by a message of its own, so it waits longer.
_SILENCE_S: Final = 0.5
_SILENCE_AT_START_S: Final = 0.1
_SILENCE_OF_READER_S: Final = 1.0
# A stream that was read before holds a message: a busy broker only delivers it late.
_SILENCE_OF_KNOWN_S: Final = 2.5
_NEWEST_S: Final = 0.1
_LOOK_AGAIN_S: Final = 0.5
_LOOK_AGAIN_MAX_S: Final = 5.0
# A gateway may start before the first worker, which declares the stream.
_LOOK_OFTEN_S: Final = 60.0
_OPENED: Final = "marks.opened"
_GAP: Final = (
    f"{MARKS_STREAM} lost messages: delete it, restart the workers, and see `keyturn recover`"
)

_State: TypeAlias = tuple[str, int, bytes]
"""A project, and its keyring's serial and digest."""

_log = structlog.get_logger()


class MarkStream:
    """The marks that a process has read, and publishes: a `keyring.marks.Witness`.

    Args:
        broker: The broker's address.
        deployment: The installation that marks must be signed for.
        verify_keys: The public event keys, the current one first.
        lease_s: This process's lease, in seconds. The stream counts as current for one lease: a
            keyring that is rolled back just after it was read to its end may be trusted for one
            lease, and a write by it takes one more. Every proof waits for both.
        signing_key: Signs marks. None for a gateway or a command, which publish none: a gateway
            serves keyrings that are not marked yet, and also while it cannot read the stream.
        on_skipped: Called for each signed mark that is skipped.

    Attributes:
        table: The marks that were received.
        signed_before: The projects whose highest mark an earlier event key signed, and its id.
        skipped: The number of signed marks with a field that no worker writes.
    """

    def __init__(
        self,
        broker: Broker,
        deployment: str,
        verify_keys: Sequence[VerifyKey],
        *,
        lease_s: float,
        signing_key: SigningKey | None,
        on_skipped: Callable[[], object] = lambda: None,
    ) -> None:
        self.table = MarkTable()
        self.signed_before: dict[str, str] = {}
        self.skipped = 0
        self._deployment = deployment
        self._verifier = MarkVerifier(deployment, verify_keys)
        self._current_key_id = verify_keys[0].id
        self._lease_s = lease_s
        self._signing_key = signing_key
        self._on_skipped = on_skipped
        self._reading = BrokerConnection(broker, publish_timeout_s=_TIMEOUT_S)
        # A separate connection: a message that cannot be decoded breaks the reading one.
        self._publishing = self._reading.separate()
        self._began_s = boottime_s()
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
        """True if the end of the stream was reached, without a gap, within the last lease."""
        if self._has_gap or self._current_s is None:
            return False
        return boottime_s() - self._current_s <= self._lease_s

    @property
    def permits_writes(self) -> bool:
        """True if a gateway may publish for an API key now: see `require_current`."""
        return self.is_current or self._is_refused

    def check_current(self, project: str) -> None:
        """Check that the newest marks are known; never raises in a gateway.

        Raises:
            MarksUnavailableError: they are not known.
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
        """Catch up if the marks are not current: the broker may just be back.

        Waits a few seconds at most. Without this, all messages that a broker delivers after its
        start would be deferred.
        """
        if self._signing_key is not None:
            await self._become_current(_CATCH_UP_S)

    async def require_current(self) -> None:
        """Check that a gateway knows the newest marks, before it publishes for an API key.

        A gateway without the permission to read marks does without them.

        Raises:
            MarksUnavailableError: it does not know them.
        """
        await self._become_current(_CATCH_UP_OF_GATEWAY_S)
        if not self.permits_writes:
            problem = f" ({self._problem})" if self._problem else ""
            raise MarksUnavailableError(f"the newest marks of keyrings are not known{problem}")

    async def _become_current(self, timeout_s: float) -> None:
        if not self.is_current:
            with suppress(TimeoutError, MarksUnavailableError):
                async with asyncio.timeout(timeout_s):
                    await self.catch_up()

    def accepts(self, finding: Finding) -> bool:
        """Return whether a keyring with this finding may be used as it is."""
        if self._signing_key is not None:
            return False
        return finding is Finding.UNMARKED or (finding is Finding.UNKNOWN and not self.is_current)

    def when_marked(self, forget: Callable[[str, Mark], None]) -> None:
        """Call `forget` with each project's new highest mark."""
        self._callbacks.append(forget)

    async def publish(self, keyring: Keyring, mark: Mark) -> None:
        """Publish a keyring's mark, once for all calls for one state; return once it is read back.

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
            # Not those of a mark that is signed again, which a thief may have signed first.
            customer_keys=_marked_keys(keyring),
            erased=keyring.is_erased or None,
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
            MarksUnavailableError: the message is not, or perhaps not, on the stream.
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
        """Read all marks that exist at the start; call it while `run` runs.

        Raises:
            EventsUnavailableError: the stream cannot be read.
        """
        while not self.is_current:
            if self._has_gap:
                raise EventsUnavailableError(_GAP)
            await self._look()

    async def catch_up(self) -> None:
        """Wait until all marks are received that were on the stream at the time of the call.

        Raises:
            MarksUnavailableError: the stream cannot be read.
        """
        called_s = boottime_s()
        try:
            while self._current_s is None or self._current_s < called_s:
                await self._look(called_s)
        except EventsUnavailableError as exc:
            raise MarksUnavailableError(str(exc)) from exc

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
                await asyncio.sleep(self._pause_s(pause_s))
                pause_s = min(2 * pause_s, _LOOK_AGAIN_MAX_S)

    def _pause_s(self, usual_s: float) -> float:
        """The pause before the next attempt: short at first, while nothing could be read."""
        is_early = boottime_s() - self._began_s < _LOOK_OFTEN_S
        return min(usual_s, _LOOK_AGAIN_S) if is_early and not self.permits_writes else usual_s

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
            mark = _mark_of(message)
        except InvalidMarkError as exc:
            self._skip(record, exc.detail)
            return
        except MalformedRequestError:
            return  # the first message of a stream, one of a later version, or an attacker's
        project = message.project
        known = self.table.find(project)
        awaited = self._awaited.get((project, mark.serial, mark.digest))
        if known is not None and mark.serial < known.serial and awaited is None:
            return  # it changes nothing, whichever key signed it
        signer = self._signer(record)
        if signer is None:
            _log.warning("ignored a mark that is not signed", offset=record.offset)
            return
        if self.table.receive(project, mark, at=parse_time(message.at)):
            self._note_signer(project, signer)
            if known != mark:
                for forget in self._callbacks:
                    forget(project, mark)
        if awaited is not None:
            awaited.set()

    def _signer(self, record: StreamRecord) -> str | None:
        return self._verifier.signer(record.body, record.signature, record.key_id)

    def _skip(self, record: StreamRecord, problem: str | None) -> None:
        """Skip a mark that no worker writes: the holder of a leaked event key may have signed it.

        Such a mark must neither end the reading of the stream nor set a serial that no other can
        exceed.
        """
        signer = self._signer(record)
        if signer is not None:
            self.skipped += 1
            self._on_skipped()
            _log.error(
                "skipped a signed mark that no worker writes: an event key may have leaked",
                offset=record.offset,
                event_key=signer,
                problem=problem,
                skipped=self.skipped,
            )

    def _note_signer(self, project: str, signer: str) -> None:
        if signer == self._current_key_id:
            self.signed_before.pop(project, None)
        else:
            self.signed_before[project] = signer

    async def _keep_current(self) -> None:
        was_current = True
        while True:
            await asyncio.sleep(self._pause_s(self._lease_s / 3))
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

        Callers that come while a search is under way share the next one; a search that began
        after `since_s` is enough.

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
            return  # the stream was replaced, as the follower is about to notice
        while self._offset < last:
            before, advanced = self._offset, self._advanced
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await advanced.wait()
            except TimeoutError:
                if self._offset == before:
                    raise EventsUnavailableError(
                        f"{MARKS_STREAM} does not deliver its messages"
                    ) from None
        self._current_s = sent_s

    @property
    def _silence_s(self) -> float:
        if self._signing_key is None:
            return _SILENCE_OF_READER_S if self._offset < 0 else _SILENCE_OF_KNOWN_S
        return _SILENCE_AT_START_S if self._offset < 0 else _SILENCE_S

    async def _look_without_messages(self, sent_s: float) -> None:
        """Publish a message to a stream that shows none, so that the next search finds it.

        The stream is empty, slow or replaced, or its last message cannot be decoded.
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
        """Close the connections."""
        await self._publishing.close()
        await self._reading.close()


def _marked_keys(keyring: Keyring) -> tuple[MarkedCustomerKey, ...] | None:
    documents = customer_keys_to_json(keyring.customer_keys)
    return tuple(map(MarkedCustomerKey.model_validate, documents)) or None


def _mark_of(message: KeyringMarked) -> Mark:
    """The mark in a message.

    Raises:
        InvalidMarkError: a customer key is malformed.
    """
    documents = [each.model_dump() for each in message.customer_keys or ()]
    try:
        customer_keys = customer_keys_from_json(documents)
    except ValueError as exc:
        raise InvalidMarkError(f"customer_keys: {exc}") from exc
    return Mark(
        message.serial,
        bytes.fromhex(message.digest),
        message.generation,
        customer_keys,
        erased=bool(message.erased),
    )


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
    """Log why the stream is no longer followed: from now on, the process refuses to work."""
    if not task.cancelled() and (problem := task.exception()) is not None:
        _log.error("the stream of marks is no longer followed", exc_info=problem)
