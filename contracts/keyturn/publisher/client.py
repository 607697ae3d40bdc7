"""`Publisher`: the client by which a service gives its files to Keyturn (SPEC 6).

It is the publisher's half of SPEC 6. It checks a request with the same models as the workers, seals
its secrets, signs, publishes with confirms, and accepts only events signed by the deployment. It
never sends a message twice on its own. It must never log or raise a secret, a plaintext or a sealed
body.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, Self

from keyturn.api_key import ApiKey
from keyturn.crypto.base64 import to_base64
from keyturn.crypto.cobblestone import Sealer, seal
from keyturn.errors import BodyTooLargeError, NotDeliveredError, OutcomeUnknownError, SettingsError
from keyturn.identifiers import ALL_PROJECTS, staging_s3_key
from keyturn.messages.events import DeleteRejected, Event, ObjectDeleted
from keyturn.messages.fields import DeadLettersAction
from keyturn.messages.requests import (
    INLINE_MAX_BYTES,
    DeadLettersRequested,
    DeleteRequested,
    EraseRequested,
    InlineBody,
    RecoverRequested,
    Request,
    SourceBody,
    SourceObject,
    Staged,
    StagedBody,
    StatusRequested,
    SweepRequested,
    UploadRequested,
)
from keyturn.messages.status import STATUS_LIMIT, StatusFilter, StatusView
from keyturn.messages.worker_reports import WorkerReported
from keyturn.publisher.connection import BrokerAddress, BrokerConnection, persistent_json
from keyturn.publisher.event_matcher import RequestType
from keyturn.publisher.event_stream import Verifier, follow
from keyturn.publisher.event_waiter import EventWaiter
from keyturn.publisher.requests import (
    SignedRequest,
    UploadDraft,
    build,
    build_enroll,
    build_rotation,
    draft_upload,
    new_id,
    now,
    sign,
    signed_now,
)
from keyturn.publisher.sessions import SealingSession
from keyturn.publisher.staging import CONNECTIONS, Body, PendingUploads, Staging, blocks, head
from keyturn.settings import PublisherSettings, S3Settings
from keyturn.topology import EVENTS_STREAM, WORKERS_STREAM

if TYPE_CHECKING:
    from keyturn.tracing import PublisherTracing

PUBLISH_TIMEOUT_S: Final = 30.0
ALARM_TIMEOUT_S: Final = 5.0
_STAGING_ATTEMPTS: Final = 3  # a repeated put of a staged body does no harm


class Publisher:
    """A client of one deployment of Keyturn. Made by `open`; safe for concurrent use.

    It publishes on one connection to the broker and reads events on another, opened by the first
    wait. It changes nothing else in its process.
    """

    def __init__(
        self,
        settings: PublisherSettings,
        connection: BrokerConnection,
        events_connection: BrokerConnection,
        staging: Staging | None,
        tracing: "PublisherTracing | None" = None,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._events_connection = events_connection
        self._staging = staging
        self._verifier = Verifier(settings.deployment, settings.event_public_key)
        self._tracing = tracing
        self._waiter = EventWaiter(
            events_connection,
            self._verifier,
            settings.publisher_name,
            on_answer=None if tracing is None else tracing.received,
        )
        self._pending_uploads = PendingUploads()
        self._sealing_session = SealingSession(settings)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: PublisherSettings,
        *,
        s3: S3Settings | None = None,
        publish_timeout_s: float = PUBLISH_TIMEOUT_S,
        alarm_timeout_s: float = ALARM_TIMEOUT_S,
        connect: bool = True,
    ) -> AsyncIterator[Self]:
        """Yield a connected publisher.

        Args:
            settings: `PublisherSettings.read()`, or constructed by the caller.
            s3: The bucket for staging bodies above 256 KiB; without it they are rejected.
            publish_timeout_s: Seconds for one publish, reconnecting and confirmation included.
            alarm_timeout_s: Seconds of these that a publish waits while the broker is at its memory
                or disk alarm.
            connect: True to connect now, so that a wrong address fails here; False at the first
                use.

        Raises:
            BrokerTlsError: TLS with the broker failed.
            BrokerUnavailableError: the broker refuses, or does not respond in time.
            SettingsError: `s3` is given and aioboto3 is not installed (`keyturn[staging]`),
                traces are on and OpenTelemetry is not (`keyturn[otel]`), or a file of certificates
                cannot be used.
        """
        tracing = publisher_tracing(settings)
        async with AsyncExitStack() as stack:
            staging = None
            if s3 is not None:
                try:
                    from keyturn.s3 import open_client  # noqa: PLC0415  # an extra of its own
                except ModuleNotFoundError as exc:
                    raise SettingsError(
                        "S3 needs aioboto3, which is not installed: install keyturn[staging]"
                    ) from exc
                client = await stack.enter_async_context(
                    open_client(
                        s3, max_connections=CONNECTIONS, total_max_attempts=_STAGING_ATTEMPTS
                    )
                )
                staging = Staging(client, s3.s3_bucket)
            connection = BrokerConnection(
                BrokerAddress.of(settings),
                publish_timeout_s=publish_timeout_s,
                alarm_timeout_s=alarm_timeout_s,
            )
            stack.push_async_callback(connection.close)
            if connect:
                await connection.connect()
            # Made with the first wait, and separate: a message on the stream that cannot be decoded
            # breaks the connection that reads it.
            events_connection = connection.separate()
            stack.push_async_callback(events_connection.close)
            publisher = cls(settings, connection, events_connection, staging, tracing)
            stack.push_async_callback(publisher._waiter.close)
            yield publisher

    async def connect(self) -> None:
        """Connect to the broker if there is no connection; for health checks.

        Raises:
            BrokerUnavailableError: the broker refuses, or does not respond in time.
        """
        await self._connection.connect()

    @property
    def unverified_events(self) -> int:
        """The number of events ignored because the deployment had not signed them."""
        return self._verifier.refused

    async def send(self, request: Request) -> str:
        """Sign and publish a request; return its id, for `wait`.

        The other methods make their requests and send them like this. Use it for a request that
        your program made itself or kept, as by `keyturn.messages.encode` and `parse_request`.
        An equal request, sent again, gets the same answer.

        Args:
            request: One of the models in `keyturn.messages`. A staged body must be in the bucket.

        Raises:
            NotDeliveredError: no worker serves such requests, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; send the same request again.
        """
        signed = sign(self._settings, request)
        with self._waiter.sending(request, signed.body):
            if self._tracing is None:
                await self._publish(signed)
            else:
                with self._tracing.sending(request, len(signed.body)) as more:
                    await self._publish(replace(signed, headers={**signed.headers, **more}))
        return signed.request_id

    async def enroll(
        self,
        project: str,
        *,
        api_key: ApiKey,
        plaintext: bool = False,
        adopt: bool = False,
        customer_key: str | None = None,
        actor: str | None = None,
        request_id: str | None = None,
    ) -> str:
        """Request a keyring for a project; return the request's id, for `wait`.

        Args:
            project: The project's id (SPEC 1).
            api_key: Its secret. Only a key derived from it is sent, sealed to the workers.
            plaintext: Whether the project may hold unencrypted objects.
            adopt: Enroll although objects already exist under the project's prefix.
            customer_key: A customer key that every wrap shall need (SPEC 2.6), as `STORE/KEY`; it
                needs the right `customer_key`, and excludes plaintext.
            actor: The person for whom this is requested; the audit trail names them.
            request_id: The id of an earlier attempt to repeat; a new one by default.

        Raises:
            MalformedRequestError: a name, an API key or a customer key is not valid.
            NotDeliveredError: no worker serves enrollments, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; repeat it with the same `request_id`.
        """
        return await self.send(
            build_enroll(
                self._settings,
                project,
                api_key=api_key,
                plaintext=plaintext,
                adopt=adopt,
                customer_key=customer_key,
                actor=actor,
                request_id=request_id or new_id(),
            )
        )

    async def upload(
        self,
        project: str,
        object_key: str,
        body: Body,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        upload_id: str | None = None,
    ) -> str:
        """Upload one object; return the upload's id, for `wait`.

        When this returns, the broker keeps the request; the object is not stored yet. A retry
        with the same `upload_id` and the same body stores the object once.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8; objects are written once.
            body: Bytes, a path, a binary file, or an async iterable of bytes of any length.
            content_type: As in HTTP, at most 1 KiB; not authenticated.
            metadata: The caller's own, at most 1 KiB of names and values; not authenticated.
            upload_id: The id of an earlier attempt to repeat; a new one by default.

        Raises:
            MalformedRequestError: a name, the content type or the metadata is not allowed.
            BodyTooLargeError: above 256 KiB, and there is no staging.
            StorageUnavailableError: staging failed; nothing was published.
            NotDeliveredError: no worker serves uploads, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; repeat it with the same `upload_id`.
        """
        upload_id = upload_id or new_id()
        draft = draft_upload(
            self._sealing_session,
            project,
            object_key,
            content_type=content_type,
            metadata=metadata,
            upload_id=upload_id,
        )
        if (earlier := self._pending_uploads.earlier(draft.request)) is not None:
            # Signed again: each attempt has its own answer, so that the rejection of an earlier one
            # is never taken for the answer to this one.
            await self._publish_staged(signed_now(earlier), fresh=False)
            return upload_id
        if isinstance(body, bytes) and len(body) <= INLINE_MAX_BYTES:
            await self._publish_inline(draft, body)
            return upload_id
        async with aclosing(blocks(body)) as source:
            first, is_complete = await head(source, INLINE_MAX_BYTES)
            if is_complete:
                await self._publish_inline(draft, first)
                return upload_id
            staged = StagedBody(staged=Staged(size=await self._stage(draft, first, source)))
        await self._publish_staged(draft.with_body(staged), fresh=True)
        return upload_id

    async def upload_from_source(
        self,
        project: str,
        object_key: str,
        source_object: SourceObject,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        letter: bool = True,
    ) -> str:
        """Upload an object that is in S3 already; return the upload's id, for `wait`.

        The worker reads the object from the bucket of the source; its bytes do not pass through
        this process. The same object always has the same id: published again, it is stored once.

        Args:
            project: The project to which the source maps the object (SPEC 17).
            object_key: The object key to which the source maps it.
            source_object: The source's name, and the S3 key, ETag, version and size from a HEAD. An
                object that has changed since is rejected with `source_changed`.
            content_type: In place of the object's own.
            metadata: In place of the object's own.
            letter: False if a refusal shall leave no dead letter, such as when the object was
                refused before: it is still in the source.

        Raises:
            MalformedRequestError: a name, the content type or the metadata is not allowed.
            NotDeliveredError: no worker serves uploads, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; repeat it.
        """
        return await self.send(
            build(
                UploadRequested,
                requested_at=now(),
                upload_id=source_object.upload_id(self._settings.deployment),
                project=project,
                key=object_key,
                content_type=content_type,
                metadata=dict(metadata) if metadata else None,
                letter=None if letter else False,
                body=SourceBody(source=source_object),
            )
        )

    async def rotate(
        self,
        project: str,
        *,
        api_key: ApiKey | None = None,
        customer_key: str | None = None,
        expected_generation: int | None = None,
        actor: str | None = None,
        rotation_id: str | None = None,
    ) -> str:
        """Request a rotation of a project's API key, its customer key, or both; return its id.

        `wait` returns once it is accepted: from then on a new API key opens the project and the
        old one does not. `wait_completed` returns once its sweep has ended; if the event is
        `clean`, no object is left under the old key.

        Args:
            project: The project's id (SPEC 1).
            api_key: Its new secret, which replaces the old one; save it before this call.
            customer_key: A customer key that every wrap shall need, with a new secret (SPEC 2.6),
                as `STORE/KEY`; it needs the right `customer_key`.
            expected_generation: Refuse unless this is the project's current generation.
            actor: The person for whom this is requested; the audit trail names them.
            rotation_id: The id of an earlier attempt to repeat; a new one by default.

        Raises:
            MalformedRequestError: a name or a key is not valid, or no key is given.
            NotDeliveredError: no worker serves rotations, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; repeat it with the same `rotation_id`.
        """
        return await self.send(
            build_rotation(
                self._settings,
                project,
                api_key=api_key,
                customer_key=customer_key,
                expected_generation=expected_generation,
                actor=actor,
                rotation_id=rotation_id or new_id(),
            )
        )

    async def sweep(
        self,
        project: str,
        *,
        master_key: str | None = None,
        encrypt_plaintext: bool = False,
        repair: bool = False,
        actor: str | None = None,
        sweep_id: str | None = None,
    ) -> str:
        """Request that every object be brought to the desired state; return the sweep's id.

        Args:
            project: The project's id, or `*` for all.
            master_key: The id of the master key under which keyrings are sealed first.
            encrypt_plaintext: Encrypt unencrypted objects in place.
            repair: Use earlier user KEKs for objects that no other key opens, and the admin wrap
                of those whose user wrap does not open (SPEC 8.2).
            actor: The person for whom this is requested; the audit trail names them.
            sweep_id: The id of an earlier attempt to repeat; a new one by default.

        Raises:
            MalformedRequestError: a name is not valid.
            NotDeliveredError: no worker serves sweeps, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; repeat it with the same `sweep_id`.
        """
        return await self.send(
            build(
                SweepRequested,
                requested_at=now(),
                project=project,
                master_key=master_key,
                encrypt_plaintext=encrypt_plaintext,
                repair=repair,
                actor=actor,
                sweep_id=sweep_id or new_id(),
            )
        )

    async def delete(
        self,
        project: str,
        object_key: str,
        *,
        actor: str | None = None,
        request_id: str | None = None,
    ) -> str:
        """Request that an object be deleted permanently; return the request's id, for `wait`.

        A tombstone takes its place: the object key never takes another body (SPEC 8.7).

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key; it gets a tombstone even if it holds no object.
            actor: The person for whom this is requested; the audit trail names them.
            request_id: The id of an earlier attempt to repeat; a new one by default.

        Raises:
            MalformedRequestError: a name is not valid.
            NotDeliveredError: no worker serves deletes, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; repeat it with the same `request_id`.
        """
        return await self.send(
            build(
                DeleteRequested,
                requested_at=now(),
                project=project,
                key=object_key,
                actor=actor,
                request_id=request_id or new_id(),
            )
        )

    async def delete_many(
        self,
        project: str,
        object_keys: Sequence[str],
        *,
        actor: str | None = None,
        request_id: str | None = None,
    ) -> str:
        """Request that up to 1,000 objects be deleted permanently; return the request's id.

        It takes about as long as one delete. `wait` returns once each object key has an outcome,
        and `delete_outcomes` returns these: one key may be rejected while others are deleted.

        Args:
            project: The project's id (SPEC 1).
            object_keys: 1 to 1,000 object keys, each once.
            actor: The person for whom this is requested; the audit trail names them.
            request_id: The id of an earlier attempt to repeat; a new one by default.

        Raises:
            MalformedRequestError: a name is not valid, or occurs twice, or there are too many.
            NotDeliveredError: no worker serves deletes, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; repeat it with the same `request_id`.
        """
        return await self.send(
            build(
                DeleteRequested,
                requested_at=now(),
                project=project,
                keys=tuple(object_keys),
                actor=actor,
                request_id=request_id or new_id(),
            )
        )

    def delete_outcomes(self, request_id: str) -> Mapping[str, ObjectDeleted | DeleteRejected]:
        """Return the outcomes of a delete that this publisher sent, by object key, as far as known.

        They come with a `wait` for the request: all of them once it returns, some if it times out.
        A rejection of the whole request is the outcome of each of its keys.

        Raises:
            NotSentHereError: not sent by this publisher, or forgotten: 100,000 keys are remembered.
        """
        return self._waiter.outcomes(request_id)

    async def status(
        self,
        view: StatusView,
        project: str = ALL_PROJECTS,
        *,
        sweep_id: str | None = None,
        filter: StatusFilter | None = None,  # noqa: A002 - as the message names it
        order: str | None = None,
        page: int = 1,
        limit: int = STATUS_LIMIT,
        after: str | None = None,
        actor: str | None = None,
        request_id: str | None = None,
    ) -> str:
        """Request one page of a report (SPEC 16.1); return the request's id.

        `wait` returns the `StatusReported`, or a `StatusRejected`. The report goes to the stream
        of this publisher alone, and is remembered only until the first wait for it ends. Many
        requests may be under way at once.

        Args:
            view: The subject, such as `projects`; see `keyturn.messages.status`.
            project: The project's id, or `*` for all, which needs the grant for all.
            sweep_id: The sweep; for the views `sweep` and `failures`.
            filter: The rows; the view decides which fields it may have.
            order: A column of the view, descending with a leading `-`.
            page: The page, from 1.
            limit: The maximum of rows; for the view `objects`, of S3 keys inspected.
            after: For the view `objects`: `next` of the page before.
            actor: The person for whom this is requested; the audit trail names them.
            request_id: The id of an earlier attempt to repeat; a new one by default.

        Raises:
            MalformedRequestError: a name is not valid, or the view needs other arguments.
            NotDeliveredError: no worker serves requests, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; requesting it again does no harm.
        """
        return await self.send(
            build(
                StatusRequested,
                requested_at=now(),
                view=view,
                project=project,
                sweep_id=sweep_id,
                filter=filter,
                order=order,
                page=page,
                limit=limit,
                after=after,
                actor=actor,
                request_id=request_id or new_id(),
            )
        )

    async def move_dead_letters(
        self,
        action: DeadLettersAction,
        queue: str,
        *,
        code: str | None = None,
        letters: Sequence[str] | None = None,
        actor: str,
        reason: str | None = None,
        request_id: str | None = None,
    ) -> str:
        """Request that dead letters be replayed or discarded; return the request's id.

        `wait` returns `dead_letters.moved`, with the number of moved letters. Name either `code` or
        `letters`. Letters that die after this call stay in the queue.

        Args:
            action: `replay` or `discard`.
            queue: The dead-letter queue, such as `keyturn.upload.dead`.
            code: All letters with this code; `unknown` for those without one.
            letters: The hex SHA-256 of the bodies of single letters; at most 500.
            actor: The person for whom this is requested; the audit trail names them.
            reason: One line, which the audit trail keeps.
            request_id: The id of an earlier attempt to repeat; a new one by default.

        Raises:
            MalformedRequestError: an argument is not valid.
            NotDeliveredError: no worker serves requests, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; repeat it with the same `request_id`.
        """
        return await self.send(
            build(
                DeadLettersRequested,
                requested_at=now(),
                action=action,
                queue=queue,
                code=code,
                letters=None if letters is None else tuple(letters),
                actor=actor,
                reason=reason,
                request_id=request_id or new_id(),
                project=ALL_PROJECTS,
            )
        )

    async def recover(
        self,
        project: str,
        *,
        digest: str,
        serial: int | None,
        mark: str | None,
        reason: str,
        actor: str | None = None,
        request_id: str | None = None,
    ) -> str:
        """Request that a keyring be accepted as it was found (SPEC 5.5); return the request's id.

        For a keyring restored from a backup: `keyturn recover` shows its findings. Workers act only
        if the record and the highest mark are still the named ones.

        Args:
            project: The project's id (SPEC 1).
            digest: Hex SHA-256 of the keyring's record.
            serial: The serial of the project's highest mark; None if it has no mark.
            mark: The hex digest that this mark names; None if it has no mark.
            reason: One line, which the audit trail keeps.
            actor: The person for whom this is requested; the audit trail names them.
            request_id: The id of an earlier attempt to repeat; a new one by default.

        Raises:
            MalformedRequestError: an argument is not valid.
            NotDeliveredError: no worker serves recoveries, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; repeat it with the same `request_id`.
        """
        return await self.send(
            build(
                RecoverRequested,
                requested_at=now(),
                project=project,
                digest=digest,
                serial=serial,
                mark=mark,
                reason=reason,
                actor=actor,
                request_id=request_id or new_id(),
            )
        )

    async def erase(
        self,
        project: str,
        *,
        reason: str,
        actor: str | None = None,
        request_id: str | None = None,
    ) -> str:
        """Request that a project be erased (SPEC 8.8); return the request's id.

        Workers ask the stores of the project's customer keys whether they are gone, for up to five
        minutes. `project.erased` or `erase.rejected` follows. An erasure cannot be undone.

        Args:
            project: The project's id (SPEC 1).
            reason: One line, which the evidence and the audit trail keep.
            actor: The person for whom this is requested; the audit trail names them.
            request_id: The id of an earlier attempt to repeat; a new one by default.

        Raises:
            MalformedRequestError: an argument is not valid.
            NotDeliveredError: no worker serves erasures, or the broker cannot be reached.
            OutcomeUnknownError: not confirmed; repeat it with the same `request_id`.
        """
        return await self.send(
            build(
                EraseRequested,
                requested_at=now(),
                project=project,
                reason=reason,
                actor=actor,
                request_id=request_id or new_id(),
            )
        )

    async def wait(
        self,
        request_id: str,
        *,
        timeout_s: float = 60.0,
        since: datetime | None = None,
        project: str | None = None,
        request_type: RequestType | None = None,
    ) -> Event:
        """Return the signed event that answers a request, already published or still to come.

        A rejection is an event, too: check its type. A rotation is answered by `rotation.accepted`,
        long before its end; a sweep only by its end. A delete of many keys is answered once each
        has an outcome (`delete_outcomes`). A request that was sent again is answered by the outcome
        of its newest attempt. One shared reader serves all waits for requests that this publisher
        sent.

        For a request that the same publisher name sent from another process, pass `project`,
        `request_type` and `since`, a moment not later than the answer (by default, when this
        publisher was opened). Such a wait reads the stream by itself and accepts the answer to any
        attempt.

        Args:
            request_id: The request's id.
            timeout_s: The maximum wait in seconds.
            since: The moment from which to read, for a request of another process.
            project: The request's project, or `*`.
            request_type: The request's type, such as `upload.requested`.

        Returns:
            One of the models in `keyturn.messages.events`.

        Raises:
            WaitTimeoutError: nothing was published in time; waiting again is fine.
            NotSentHereError: not sent by this publisher, and project or type is missing.
            EventsUnavailableError: there is no stream of events, or it may not be read.
        """
        return await self._waiter.wait(
            request_id,
            project=project,
            request_type=request_type,
            since=since,
            timeout_s=timeout_s,
        )

    async def wait_completed(
        self,
        request_id: str,
        *,
        timeout_s: float,
        since: datetime | None = None,
        project: str | None = None,
        request_type: RequestType | None = None,
    ) -> Event:
        """Return the last signed event of a request.

        For a rotation or a sweep this is its `completed` event, its `failed` event if it cannot
        continue, or a rejection; for every other request the answer. Only `clean` says whether a
        rotation or a sweep covered every object. The arguments are those of `wait`.

        Raises:
            WaitTimeoutError: it has not ended in time; waiting again is fine.
            NotSentHereError: not sent by this publisher, and project or type is missing.
            EventsUnavailableError: there is no stream of events, or it may not be read.
        """
        return await self._waiter.wait(
            request_id,
            project=project,
            request_type=request_type,
            since=since,
            timeout_s=timeout_s,
            ended=True,
        )

    async def progress(
        self,
        request_id: str,
        *,
        since: datetime | None = None,
        project: str | None = None,
        request_type: RequestType | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield every signed event of one request, in order, up to its last one.

        It reads the stream by itself, from `since` on (by default from when the request was sent
        here, else from when this publisher was opened). `project` and `request_type` are as for
        `wait`. Close it with `contextlib.aclosing`.

        Raises:
            NotSentHereError: not sent by this publisher, and project or type is missing.
            EventsUnavailableError: there is no stream of events, or it may not be read.
        """
        events = self._waiter.progress(
            request_id, project=project, request_type=request_type, since=since
        )
        async with aclosing(events):
            async for event, _ in events:
                yield event

    async def events(self, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield every signed event of the deployment that this version knows, in order, forever.

        These are the events of all publishers: the broker's user needs permission to read
        `keyturn.events`. Reading begins at `since`, perhaps a little earlier (streams are stored in
        chunks), or at the oldest event in the stream. Close it with `contextlib.aclosing`.

        Raises:
            EventsUnavailableError: there is no stream of events, or it may not be read.
        """
        async with aclosing(
            follow(self._events_connection, since or "first", EVENTS_STREAM)
        ) as stream:
            async for record in stream:
                for event in self._verifier.events(record):
                    yield event

    async def worker_reports(
        self, since: datetime | None = None
    ) -> AsyncGenerator[WorkerReported, None]:
        """Yield every worker process's report about itself, every few seconds, forever (SPEC 16.2).

        The broker's user needs permission to read `keyturn.workers`, which has the reports of about
        a day. Arguments and errors are those of `events`.
        """
        async with aclosing(
            follow(self._events_connection, since or "first", WORKERS_STREAM)
        ) as stream:
            async for record in stream:
                if (report := self._verifier.worker_report(record)) is not None:
                    yield report

    async def _publish(self, signed: SignedRequest) -> None:
        message = persistent_json(signed.body, signed.request_id, signed.headers)
        await self._connection.publish(signed.type, message)

    def _staging_key(self, upload_id: str) -> str:
        return staging_s3_key(self._settings.publisher_name, upload_id)

    async def _stage(
        self, draft: UploadDraft, first: bytearray, rest: AsyncIterator[memoryview]
    ) -> int:
        if self._staging is None:
            raise BodyTooLargeError(
                f"a body above {INLINE_MAX_BYTES} bytes is staged in the bucket: give the "
                "publisher S3 settings (KEYTURN_S3_BUCKET and related settings)"
            )
        sealer = Sealer(draft.transport_key.reveal(), draft.context)
        s3_key = self._staging_key(draft.request.upload_id)
        if self._tracing is None:
            return await self._staging.put(s3_key, sealer, first, rest)
        with self._tracing.staging():
            return await self._staging.put(s3_key, sealer, first, rest)

    async def _publish_inline(self, draft: UploadDraft, body: bytes | bytearray) -> None:
        sealed = seal(draft.transport_key.reveal(), draft.context, body)
        # Not checked: to check base64 is to decode it, and this was encoded here.
        inline = InlineBody.model_construct(inline=to_base64(sealed))
        await self.send(draft.with_body(inline))

    async def _publish_staged(self, request: UploadRequested, *, fresh: bool) -> None:
        try:
            await self.send(request)
        except NotDeliveredError:
            # Not if an earlier attempt may be on the queue: it needs the body.
            if fresh and self._staging is not None:
                await self._staging.delete(self._staging_key(request.upload_id))
            raise
        except (OutcomeUnknownError, asyncio.CancelledError):
            self._pending_uploads.remember(request)
            raise
        self._pending_uploads.forget(request.upload_id)


def publisher_tracing(settings: PublisherSettings) -> "PublisherTracing | None":
    """Return the recorder of a publisher's traces; None if they are off.

    Raises:
        SettingsError: they are on, and OpenTelemetry is not installed.
    """
    if not settings.tracing:
        return None
    try:
        from keyturn.tracing import PublisherTracing  # noqa: PLC0415  # an extra of its own
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise SettingsError(
            "KEYTURN_TRACING is on, but OpenTelemetry is not installed: pip install 'keyturn[otel]'"
        ) from exc
    return PublisherTracing(settings.publisher_name)
