"""Replaying dead letters that are signed again (SPEC 12).

Never sign a letter again that its publisher did not sign or was not permitted to send: an attacker
with write access to the broker could put anything into a dead-letter queue and wait for the
operator's signature.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage

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
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.report_keys import open_report_keys
from keyturn_workers.cli.settings import ResignSettings
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import KeyringReader
from keyturn_workers.settings import OperatorSettings
from keyturn_workers.storage import Headers, Storage
from keyturn_workers.worker.authorization import Arrival, Rules, authorize, verify

_COPY_BYTES: Final = 1024 * 1024
_LEASE_S: Final = 15


@dataclass(frozen=True, slots=True)
class _Signed:
    request: Request
    publisher: str


class Resigner:
    """Signs letters again as the settings' publisher, with the current time."""

    def __init__(self, settings: ResignSettings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._storage: Storage | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def resign(self, message: AbstractIncomingMessage, queue: str, *, named: bool) -> Message:
        """The letter's request with a new time and signature, and the same id.

        `named` says that the operator named this letter by its id.

        Raises:
            NotPermittedError: it was not rejected for its age, or has not expired; it is a
                rotation or an enrollment that was not named; or its publisher may not send it.
            BadSignatureError, MalformedRequestError: its publisher did not sign it.
            GenerationMismatchError: the project has a later rotation.
            StagedBodyMissingError: its staged body is gone.
            UnknownProjectError, CorruptObjectError, UnknownMasterKeyError: a rotation whose
                keyring cannot be read.
        """
        code = message.headers.get(CODE_HEADER)
        if code != RequestExpiredError.code:
            # Everything else was rejected for its content: a new signature would give it a
            # second chance that its publisher never requested.
            raise NotPermittedError(f"only request_expired can be signed again, not {code!r}")
        old = self._verify(message, queue)
        # The code is not signed: an attacker with access to the broker can put it on a letter
        # rejected for another reason, or on a copy of a recent request.
        max_age = timedelta(seconds=self._settings.request_max_age_s)
        if datetime.now(UTC) - old.request.requested_at_instant <= max_age:
            raise NotPermittedError("it has not expired; replay it without --resign")
        if isinstance(old.request, RotationRequested | EnrollRequested) and not named:
            raise NotPermittedError(
                "a rotation or an enrollment is signed again only if it is named by its id"
            )
        await self._move_staged(old)
        changes: dict[str, object] = {"requested_at": format_time(datetime.now(UTC))}
        if isinstance(old.request, RotationRequested):
            changes["expected_generation"] = await self._expected_generation(old.request)
        request = old.request.model_copy(update=changes)
        body = encode(request)
        name = self._settings.publisher_name
        signature = self._settings.publisher_key.sign_request(self._settings.deployment, name, body)
        headers = {PUBLISHER_HEADER: name, SIGNATURE_HEADER: signature}
        return persistent_json(body, request_id(request), headers)

    def _verify(self, message: AbstractIncomingMessage, queue: str) -> _Signed:
        rules = Rules(self._settings.deployment, self._settings.publishers, timedelta.max)
        signer = verify(message.body, message.headers, rules)
        request = authorize(message.body, signer, Arrival(queue, REQUESTS, queue))
        return _Signed(request, signer.name)

    async def _expected_generation(self, request: RotationRequested) -> int:
        """The generation that a rotation may replace: the keyring's current one.

        A rotation keeps its place in the order of the original times. With its new time it
        could otherwise bring back an old key after a later rotation (SPEC 12). If another
        rotation is accepted before this one arrives, the generation no longer matches.

        Raises: as `resign`.
        """
        storage = await self._open_storage()
        # Nothing is written under this lease, so its length does not matter.
        async with open_report_keys(OperatorSettings.read(), storage, "dead replay") as keys:
            keyrings = KeyringReader(storage, keys, lease_s=_LEASE_S, cache_s=0)
            current = (await keyrings.read_fresh(request.project)).keyring.current
        if parse_time(current.requested_at) >= request.requested_at_instant:
            raise GenerationMismatchError(
                f"generation {current.generation} was requested later; this rotation would bring "
                "back an old key"
            )
        if request.expected_generation not in (None, current.generation):
            raise GenerationMismatchError(f"the project is at generation {current.generation}")
        return current.generation

    async def _move_staged(self, old: _Signed) -> None:
        request = old.request
        if not isinstance(request, UploadRequested) or not isinstance(request.body, StagedBody):
            return
        storage = await self._open_storage()
        source = staging_s3_key(old.publisher, request.upload_id)
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
