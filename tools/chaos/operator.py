"""The operator of a run: enrolls, rotates, deletes, rotates the master key, and sweeps.

Each request is repeated until it is confirmed, and its outcome is awaited. One that is refused
because a thief has rolled the keyring back is sent again, with its id, until it is accepted. A
sweep that did not complete cleanly, because of the faults, is repeated after the last fault.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from keyturn.crypto import new_api_key
from keyturn.identifiers import ALL_PROJECTS, keyring_s3_key, object_s3_key
from keyturn.messages import CountedEvent, Rejected
from tools.harness import requests as rq
from tools.harness.scene import master_keys_setting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mypy_boto3_s3 import S3Client

    from keyturn.messages import Event
    from tools.chaos.processes import Supervisor
    from tools.chaos.publisher import EventLog, LoadSender, RecordingPublisher
    from tools.harness.tenants import Tenant

_CHANGED = frozenset({"PreconditionFailed", "NoSuchKey", "404", "412"})

NEW_MASTER = "m2"
_TAGGED = 30
_TAGS = {"kind": "canary", "of": "chaos"}
_TRIES = 4
_PAUSE_S = 1.0
ROLLED_BACK = "keyring_rolled_back"
_REFUSALS = ("enroll.rejected", "rotation.rejected", "sweep.rejected", "delete.rejected")


@dataclass(frozen=True)
class OperatorRequest:
    """A request of the operator, and the event that must follow it."""

    request_id: str
    expected_event: str
    project: str


@dataclass
class Operator:
    """Publishes all requests other than uploads.

    `accepted` has the monotonic times at which each key of a project was known to be accepted;
    `keyrings` has the record of each generation, as it was before the next rotation was requested;
    `tagged` are the tags by S3 key.
    """

    supervisor: Supervisor
    sender: LoadSender
    event_log: EventLog
    tenants: dict[str, Tenant]
    requested: list[OperatorRequest] = field(default_factory=list)
    accepted: dict[str, list[float]] = field(default_factory=dict)
    keyrings: dict[str, list[bytes]] = field(default_factory=dict, repr=False)
    tagged: dict[str, dict[str, str]] = field(default_factory=dict)
    unclean: list[str] = field(default_factory=list)
    _rotation_locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    @property
    def _publisher(self) -> RecordingPublisher:
        return self.sender.publisher

    async def enroll(self, project: str, customer_key: str | None = None) -> None:
        """Enroll a project; its uploads may be published afterwards."""
        tenant, request_id = self.tenants[project], rq.new_id()
        await self._request(
            request_id,
            project,
            lambda: self._publisher.enroll(
                project,
                api_key=tenant.api_keys[0],
                customer_key=customer_key,
                request_id=request_id,
            ),
            "project.enrolled",
        )
        self.accepted[project] = [time.monotonic()]
        if project in self.sender.enrolled:
            self.sender.enrolled[project].set()

    async def rotate(self, project: str, customer_key: str | None = None) -> None:
        """Rotate a project's API key, once its earlier rotation is accepted.

        Where a customer key is given, the new generation has that, too.
        """
        async with self._rotation_locks.setdefault(project, asyncio.Lock()):
            if project in self.sender.enrolled:
                await self.sender.enrolled[project].wait()
            tenant, rotation_id = self.tenants[project], rq.new_id()
            if len(tenant.api_keys) == 1:
                await self._tag_some(tenant)
            expected = len(tenant.api_keys)
            self.keyrings.setdefault(project, []).append(await _present_keyring(tenant))
            tenant.api_keys.append(new_api_key())
            await self._request(
                rotation_id,
                project,
                lambda: self._publisher.rotate(
                    project,
                    api_key=tenant.api_keys[-1],
                    customer_key=customer_key,
                    expected_generation=expected,
                    rotation_id=rotation_id,
                ),
                "rotation.accepted",
            )
            self.accepted[project].append(time.monotonic())
        self.requested.append(OperatorRequest(rotation_id, "rotation.completed", project))
        self._note_end(project, await self.event_log.event(rotation_id, "rotation.completed"))

    async def rotate_master_key(self, masters: dict[str, bytes]) -> None:
        """Deploy the new master key as the active one, then sweep all projects."""
        await self.supervisor.deploy(
            MASTER_KEYS=master_keys_setting(masters), ACTIVE_MASTER_KEY=NEW_MASTER
        )
        await self.sweep(ALL_PROJECTS, master_key=NEW_MASTER)

    async def sweep(self, project: str, *, master_key: str | None = None) -> None:
        """Sweep a project, or all, and wait for the completion."""
        sweep_id = rq.new_id()
        await self._request(
            sweep_id,
            project,
            lambda: self._publisher.sweep(project, master_key=master_key, sweep_id=sweep_id),
            "sweep.completed",
        )

    async def delete(self, upload_id: str) -> None:
        """Delete the object of an upload, once it is stored."""
        uploads = self.sender.plan.load.uploads
        upload = next(upload for upload in uploads if upload.upload_id == upload_id)
        await self.event_log.event(upload.upload_id, "upload.stored")
        request_id = rq.new_id()
        await self._request(
            request_id,
            upload.project,
            lambda: self._publisher.delete(upload.project, upload.key, request_id=request_id),
            "object.deleted",
        )

    async def sweep_again(self) -> None:
        """Repeat the sweeps that did not complete cleanly; call it after the last fault.

        Raises:
            RuntimeError: they still do not complete cleanly.
        """
        for _ in range(_TRIES):
            if not self.unclean:
                return
            projects, self.unclean = sorted(set(self.unclean)), []
            for project in projects:
                master_key = NEW_MASTER if project == ALL_PROJECTS else None
                await self.sweep(project, master_key=master_key)
        if self.unclean:
            raise RuntimeError(f"sweeps stay unclean: {self.unclean}")

    async def _request(
        self,
        request_id: str,
        project: str,
        send: Callable[[], Awaitable[object]],
        expected_event: str,
    ) -> None:
        self.requested.append(OperatorRequest(request_id, expected_event, project))
        seen = 0
        while True:
            await self.sender.until_confirmed(send)
            event = await self.event_log.event(request_id, expected_event, *_REFUSALS, after=seen)
            if not (isinstance(event, Rejected) and event.code == ROLLED_BACK):
                break
            # It may have been done before: the same id, so that it is not done twice.
            seen = len(self.event_log.events[request_id])
            await asyncio.sleep(_PAUSE_S)
        self._note_end(project, event)

    def _note_end(self, project: str, event: Event) -> None:
        if isinstance(event, CountedEvent) and not event.clean:
            self.unclean.append(project)

    async def _tag_some(self, tenant: Tenant) -> None:
        """Tag objects that are reported as stored, before any copy: sweeps must keep the tags."""
        stored = [
            object_s3_key(upload.project, upload.key)
            for upload in self.sender.plan.load.uploads
            if upload.project == tenant.project
            and upload.is_plain
            and self.event_log.is_stored(upload.upload_id)
        ][:_TAGGED]
        for s3_key in stored:
            await asyncio.to_thread(
                tenant.client.put_object_tagging,
                Bucket=tenant.deployment.bucket,
                Key=s3_key,
                Tagging={"TagSet": [{"Key": k, "Value": v} for k, v in _TAGS.items()]},
            )
            self.tagged[s3_key] = _TAGS


def new_masters(first: bytes) -> dict[str, bytes]:
    """Both master keys by id, the old one first."""
    return {"m1": first, NEW_MASTER: os.urandom(32)}


async def _present_keyring(tenant: Tenant) -> bytes:
    """The bytes of a keyring; the thief removes it for moments."""
    file = KeyringFile.of(tenant)
    while (record := await asyncio.to_thread(file.find)) is None:  # noqa: ASYNC110  # no event
        await asyncio.sleep(_PAUSE_S)
    return record


@dataclass(frozen=True)
class KeyringFile:
    """The object that holds a project's keyring."""

    client: S3Client
    bucket: str
    s3_key: str

    @classmethod
    def of(cls, tenant: Tenant) -> KeyringFile:
        """The keyring of a project."""
        return cls(tenant.client, tenant.deployment.bucket, keyring_s3_key(tenant.project))

    def read(self) -> tuple[bytes, str]:
        """The record's bytes, and its ETag."""
        answer = self.client.get_object(Bucket=self.bucket, Key=self.s3_key)
        # Ceph compares with the ETag without its quotes.
        return answer["Body"].read(), answer["ETag"].strip('"')

    def replace(self, body: bytes, etag: str) -> bool:
        """Put a record in the place of the one with this ETag; False if another one is there."""
        try:
            self.client.put_object(Bucket=self.bucket, Key=self.s3_key, Body=body, IfMatch=etag)
        except ClientError as exc:
            if exc.response["Error"]["Code"] in _CHANGED:
                return False
            raise
        return True

    def put(self, body: bytes) -> None:
        """Put a record, whatever is there."""
        self.client.put_object(Bucket=self.bucket, Key=self.s3_key, Body=body)

    def remove(self) -> None:
        """Delete it."""
        self.client.delete_object(Bucket=self.bucket, Key=self.s3_key)

    def find(self) -> bytes | None:
        """The record's bytes; None if there is none."""
        try:
            return self.read()[0]
        except ClientError as exc:
            if exc.response["Error"]["Code"] in _CHANGED:
                return None
            raise
