"""What an operator does in a run: enrols, rotates, deletes, turns the master key, sweeps again.

Each request is repeated until it is confirmed, and waited for until its end is told. A sweep
that ends unclean, because too much failed under it, is asked for once more when all is calm.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyturn.crypto import new_api_key
from keyturn.identifiers import ALL_PROJECTS, object_s3_key
from keyturn.messages import CountedEvent
from tools.harness import requests as rq
from tools.harness.sweep_scenario import master_keys_setting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn.messages import Event
    from tools.chaos.load import Upload
    from tools.chaos.load_sender import Hearing, Keeping, Sending
    from tools.chaos.supervisor import Crew
    from tools.harness.tenants import Tenant

NEW_MASTER = "m2"
_TAGGED = 30
_TAGS = {"kind": "canary", "of": "chaos"}
_TRIES = 4


@dataclass(frozen=True)
class Asked:
    """A request of the operator's, and an event that must have been told of it."""

    request_id: str
    must_be_told: str
    project: str


@dataclass
class Operator:
    """Asks for everything that is no upload.

    `accepted` tells when (by the monotonic clock) a project's n-th key was first known to be
    accepted; `tagged` are the S3 keys of objects that carry tags.
    """

    crew: Crew
    sending: Sending
    hearing: Hearing
    tenants: dict[str, Tenant]
    asked: list[Asked] = field(default_factory=list)
    accepted: dict[str, list[float]] = field(default_factory=dict)
    tagged: dict[str, dict[str, str]] = field(default_factory=dict)
    unclean: list[str] = field(default_factory=list)
    _turning: dict[str, asyncio.Lock] = field(default_factory=dict)

    @property
    def _publisher(self) -> Keeping:
        return self.sending.publisher

    async def enrol(self, project: str) -> None:
        """Give a project its keyring; uploads to it may then be sent."""
        tenant, request_id = self.tenants[project], rq.new_id()
        await self._ask(
            request_id,
            project,
            lambda: self._publisher.enroll(
                project, api_key=tenant.api_keys[0], request_id=request_id
            ),
            "project.enrolled",
        )
        self.accepted[project] = [time.monotonic()]
        if project in self.sending.enrolled:
            self.sending.enrolled[project].set()

    async def rotate(self, project: str) -> None:
        """Turn a project's key, once an earlier rotation of it is accepted."""
        async with self._turning.setdefault(project, asyncio.Lock()):
            if project in self.sending.enrolled:
                await self.sending.enrolled[project].wait()
            tenant, rotation_id = self.tenants[project], rq.new_id()
            if len(tenant.api_keys) == 1:
                await self._tag_some(tenant)
            expected = len(tenant.api_keys)
            tenant.api_keys.append(new_api_key())
            await self._ask(
                rotation_id,
                project,
                lambda: self._publisher.rotate(
                    project,
                    api_key=tenant.api_keys[-1],
                    expected_generation=expected,
                    rotation_id=rotation_id,
                ),
                "rotation.accepted",
            )
            self.accepted[project].append(time.monotonic())
        self.asked.append(Asked(rotation_id, "rotation.completed", project))
        await self._end(rotation_id, project, "rotation.completed")

    async def turn_master(self, masters: dict[str, bytes]) -> None:
        """Deploy the new master key as the active one, then sweep everything under it."""
        await self.crew.deploy(
            MASTER_KEYS=master_keys_setting(masters), ACTIVE_MASTER_KEY=NEW_MASTER
        )
        await self.sweep(ALL_PROJECTS, master_key=NEW_MASTER)

    async def sweep(self, project: str, *, master_key: str | None = None) -> None:
        """Sweep a project, or all, to the end."""
        sweep_id = rq.new_id()
        await self._ask(
            sweep_id,
            project,
            lambda: self._publisher.sweep(project, master_key=master_key, sweep_id=sweep_id),
            "sweep.completed",
        )

    async def delete(self, upload_id: str) -> None:
        """Delete the object of an upload, once it stands."""
        uploads = self.sending.plan.load.uploads
        upload = next(upload for upload in uploads if upload.upload_id == upload_id)
        await self.hearing.event(upload.upload_id, "upload.stored")
        request_id = rq.new_id()
        await self._ask(
            request_id,
            upload.project,
            lambda: self._publisher.delete(upload.project, upload.key, request_id=request_id),
            "object.deleted",
        )

    async def sweep_again(self) -> None:
        """Sweep what the last sweep left unclean; call it once no more harm is done.

        Raises:
            RuntimeError: it stays unclean.
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

    async def _ask(
        self, request_id: str, project: str, send: Callable[[], Awaitable[object]], told: str
    ) -> None:
        self.asked.append(Asked(request_id, told, project))
        await self.sending.until_confirmed(send)
        await self._end(request_id, project, told)

    async def _end(self, request_id: str, project: str, told: str) -> Event:
        refusals = ("enroll.rejected", "rotation.rejected", "sweep.rejected", "delete.rejected")
        event = await self.hearing.event(request_id, told, *refusals)
        if isinstance(event, CountedEvent) and not event.clean:
            self.unclean.append(project)
        return event

    async def _tag_some(self, tenant: Tenant) -> None:
        """Tag objects that are stored and told, before any copy: sweeps must keep the tags."""
        stored = [
            object_s3_key(upload.project, upload.key)
            for upload in self.sending.plan.load.uploads
            if upload.project == tenant.project and upload.is_plain and self._is_stored(upload)
        ][:_TAGGED]
        for s3_key in stored:
            await asyncio.to_thread(
                tenant.client.put_object_tagging,
                Bucket=tenant.deployment.bucket,
                Key=s3_key,
                Tagging={"TagSet": [{"Key": k, "Value": v} for k, v in _TAGS.items()]},
            )
            self.tagged[s3_key] = _TAGS

    def _is_stored(self, upload: Upload) -> bool:
        told = self.hearing.told.get(upload.upload_id, ())
        return any(event.type == "upload.stored" for event in told)


def new_masters(first: bytes) -> dict[str, bytes]:
    """Both master keys by id, the old one first."""
    return {"m1": first, NEW_MASTER: os.urandom(32)}
