"""Sending dead letters back to work: as they were sent, or signed anew (SPEC 12).

The copy is confirmed by the broker before the letter is acknowledged, so that a crash in
between gives two (which is harmless, SPEC 5.3) and never none.

To sign anew is to lend one's name. It must never be done for a letter that its publisher
did not sign or was not permitted to send: whoever may write to the broker could lay
anything into a dead-letter queue and wait for an operator to give it a signature.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Self

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from keyturn.errors import (
    GenerationMismatchError,
    NotPermittedError,
    RequestExpiredError,
    StagedBodyMissingError,
)
from keyturn.identifiers import format_time, parse_time, staging_s3_key
from keyturn.messages import (
    EnrollRequested,
    Request,
    RotationRequested,
    StagedBody,
    UploadRequested,
    encode,
    request_id,
)
from keyturn.publisher.connection import persistent_json
from keyturn.settings import S3Settings
from keyturn.topology import CODE_HEADER, PUBLISHER_HEADER, REQUESTS, SIGNATURE_HEADER
from keyturn_workers.amqp.retry import copy_of
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.dead_letters import now
from keyturn_workers.cli.settings import ResignSettings
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import KeyringReader
from keyturn_workers.settings import OperatorSettings
from keyturn_workers.storage import Headers, Storage
from keyturn_workers.worker.authorization import Arrival, Rules, permit, verify

_CONFIRM_TIMEOUT_S: Final = 30
_COPY_BYTES: Final = 1024 * 1024
_LEASE_S: Final = 15


async def send_back(
    channel: AbstractChannel, message: AbstractIncomingMessage, copy: Message, queue: str
) -> None:
    """Publish a copy to its work queue, confirmed, and acknowledge the letter."""
    await channel.default_exchange.publish(copy, queue, mandatory=True, timeout=_CONFIRM_TIMEOUT_S)
    await message.ack()


def as_sent(message: AbstractIncomingMessage) -> Message:
    """The copy of a letter without what workers and the broker added."""
    return copy_of(message, {})


@dataclass(frozen=True, slots=True)
class _Signed:
    request: Request
    publisher: str


class Resigner:
    """Signs letters anew as the settings' publisher, with the time of now."""

    def __init__(self, settings: ResignSettings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._storage: Storage | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def renewed(
        self, message: AbstractIncomingMessage, queue: str, *, named: bool
    ) -> Message:
        """The request in a letter under a new time and signature; its id stays.

        `named` says that the operator asked for this very letter.

        Raises:
            NotPermittedError: it was not refused for its age, or is not past it; it is a rotation
                or an enrolment that was not named; or its publisher may not send it.
            BadSignatureError, MalformedRequestError: its publisher did not sign it.
            GenerationMismatchError: a rotation that another one has overtaken.
            StagedBodyMissingError: its staged body is gone.
            UnknownProjectError, CorruptObjectError, UnknownMasterKeyError: a rotation whose
                project's keyring cannot be read.
        """
        code = message.headers.get(CODE_HEADER)
        if code != RequestExpiredError.code:
            # What else was refused, was refused for what it is: a new signature would lend it
            # another chance that its publisher never gave it.
            raise NotPermittedError(f"only request_expired is signed anew, this is {code!r}")
        old = self._believed(message, queue)
        # Nobody signed the code above: a broker writer can put it on a letter that was refused
        # for something else, or on a copy of a request that is not old.
        max_age = timedelta(seconds=self._settings.request_max_age_s)
        if now() - old.request.requested_at_instant <= max_age:
            raise NotPermittedError("it is not past its age: replay it without --resign")
        if isinstance(old.request, RotationRequested | EnrollRequested) and not named:
            raise NotPermittedError(
                "a rotation or an enrolment is signed anew only where it is named by its id"
            )
        await self._move_staged(old)
        changed: dict[str, object] = {"requested_at": format_time(now())}
        if isinstance(old.request, RotationRequested):
            changed["expected_generation"] = await self._generation_before(old.request)
        request = old.request.model_copy(update=changed)
        body = encode(request)
        name = self._settings.publisher_name
        signature = self._settings.publisher_key.sign_request(self._settings.deployment, name, body)
        headers = {PUBLISHER_HEADER: name, SIGNATURE_HEADER: signature}
        return persistent_json(body, request_id(request), headers)

    def _believed(self, message: AbstractIncomingMessage, queue: str) -> _Signed:
        rules = Rules(self._settings.deployment, self._settings.publishers, timedelta.max)
        signer = verify(message.body, message.headers, rules)
        request = permit(message.body, signer, Arrival(queue, REQUESTS, queue))
        return _Signed(request, signer.name)

    async def _generation_before(self, request: RotationRequested) -> int:
        """The generation that a rotation signed anew may turn from: the keyring's now.

        A rotation keeps the order of its first time: under its new one it would otherwise turn
        the project back, from a key that came later to one that was given up (SPEC 12). Should
        one be accepted between this look and its own turn, the generation no longer fits.

        Raises: as `renewed`.
        """
        storage = await self._opened_storage()
        # As workers read it; nothing is written by it, so its lease counts for nothing.
        keyrings = KeyringReader(
            storage, OperatorSettings.read().master_keys, lease_s=_LEASE_S, cache_s=0
        )
        current = (await keyrings.read_fresh(request.project)).keyring.current
        if parse_time(current.requested_at) >= request.requested_at_instant:
            raise GenerationMismatchError(
                f"generation {current.generation} was asked for later: the project would go back "
                "to a key that it has left"
            )
        if request.expected_generation not in (None, current.generation):
            raise GenerationMismatchError(f"the project is at generation {current.generation}")
        return current.generation

    async def _move_staged(self, old: _Signed) -> None:
        request = old.request
        if not isinstance(request, UploadRequested) or not isinstance(request.body, StagedBody):
            return
        storage = await self._opened_storage()
        source = staging_s3_key(old.publisher, request.upload_id)
        target = staging_s3_key(self._settings.publisher_name, request.upload_id)
        size_bytes = request.body.staged.size
        try:
            if (await storage.head(source)).size_bytes != size_bytes:
                raise StagedBodyMissingError(f"the staged body has not {size_bytes} bytes")
            if source == target:
                return
            async with storage.stream(source) as stream:
                pieces = stream.chunks(_COPY_BYTES)
                await storage.put_stream(target, pieces, size_bytes, Headers({}))
        except MissingError as exc:
            raise StagedBodyMissingError("the staged body is gone") from exc

    async def _opened_storage(self) -> Storage:
        if self._storage is None:
            self._storage = await self._stack.enter_async_context(
                open_bucket(S3Settings.read(), max_connections=4)
            )
        return self._storage
