"""A thief with an old API key who may write to the bucket, during a run (SPEC 5.5).

The thief puts back a keyring from before a rotation, or removes it, and then does what the old API
key allowed: reads through the gateway, and a rotation to a new key. Meanwhile the load goes on.
In the end, the newest keyring is always put back, as an operator would restore it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from keyturn.crypto import new_api_key
from keyturn.publisher.requests import SignedRequest
from tools.chaos.attackers import Message, publish
from tools.chaos.gateway_readers import CACHED_S
from tools.chaos.operator import ROLLED_BACK, KeyringFile
from tools.chaos.plan import rng_for
from tools.chaos.processes import LogReader
from tools.harness import requests as rq

if TYPE_CHECKING:
    from datetime import datetime

    from tools.chaos.gateway_readers import GatewayReaders
    from tools.chaos.operator import Operator
    from tools.chaos.plan import Action
    from tools.chaos.processes import Supervisor
    from tools.chaos.publisher import EventLog, LoadSender
    from tools.harness.deployment import Deployment
    from tools.harness.tenants import Tenant

_PAUSE_S = 0.1
# After this time no write by the earlier generation may be under way: a lease, and the longest
# delay of a fault. It also lets uploads that were refused be retried before the next theft.
_SETTLES_S = 8.0
# An upload is tried again after 1 s, 5 s more, and 30 s more: a longer theft would delay the run.
_UPLOAD_LOOKS = 30
# A worker that was killed may start slowly on a busy machine.
_ANSWERED_S = 120.0
_REFUSED = ("refused", "retry scheduled")
_GATEWAY_TRIES = 4
_GATEWAY_TIMEOUT = aiohttp.ClientTimeout(total=10)


@dataclass
class Theft:
    """One theft: what the thief did, and what came of it.

    Attributes:
        project: The project whose keyring was rolled back or removed.
        kind: One of `schedule.THEFTS`.
        generation: The one that was put back.
        newest: The one that had been accepted.
        request: The rotation that the thief requested meanwhile.
        answer: The code or the type of the event that answered it.
        responses: The gateway's to the old API key, each with its number.
        refusals: Refusals in the log of each kind of process.
        problems: What must not have happened.
    """

    project: str
    kind: str
    generation: int
    newest: int
    request: SignedRequest
    answer: str = ""
    responses: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass
class Thief:
    """Steals keyrings; `thefts` records it."""

    deployment: Deployment
    operator: Operator
    supervisor: Supervisor
    sender: LoadSender
    event_log: EventLog
    readers: GatewayReaders
    seed: int
    thefts: list[Theft] = field(default_factory=list)
    _put_back: dict[str, float] = field(default_factory=dict)
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)
    _early: list[asyncio.Task[None]] = field(default_factory=list)

    async def steal(self, action: Action) -> None:
        """Roll a project's keyring back or remove it, try what helps a thief, and restore it."""
        async with self._one_at_a_time:
            tenant = self.operator.tenants[action.to]
            newest = await self._settled(tenant.project)
            rng = rng_for(self.seed, f"theft {len(self.thefts)}")
            generation = rng.randint(1, newest - 1)
            theft = Theft(
                tenant.project, action.kind, generation, newest, self._rotation(tenant, generation)
            )
            self.thefts.append(theft)
            self.readers.stolen.add(tenant.project)
            old = self.operator.keyrings[tenant.project][generation - 1]
            if action.process:
                await self._replace(action.process)
            stolen = await asyncio.to_thread(_steal, tenant, old, action.kind)
            try:
                await self._hold(theft)
                theft.problems += await asyncio.to_thread(
                    _written_under_old, tenant, stolen.at, newest
                )
            finally:
                theft.problems += await asyncio.shield(asyncio.to_thread(stolen.put_back))
                self._put_back[tenant.project] = time.monotonic()
            await asyncio.sleep(CACHED_S)
            self.readers.stolen.discard(tenant.project)

    def stop(self) -> None:
        """Cancel the uploads that were published early and are not confirmed."""
        for task in self._early:
            task.cancel()

    async def _settled(self, project: str) -> int:
        """Wait until a project's last rotation and theft are long ago; returns its generation.

        Also until the gateway has read the marks.
        """
        while True:
            accepted = self.operator.accepted.get(project, [])
            last = max([*accepted[-1:], self._put_back.get(project, 0.0)])
            is_settled = len(accepted) > 1 and time.monotonic() - last > _SETTLES_S
            if is_settled and self.readers.knows_marks():
                return len(accepted)
            await asyncio.sleep(_PAUSE_S)

    def _rotation(self, tenant: Tenant, generation: int) -> SignedRequest:
        """A rotation to a new key of the thief's, which a publisher signs."""
        document = rq.rotation(
            self.deployment, tenant.project, new_api_key(), expected_generation=generation
        )
        body = rq.encode(document)
        headers = rq.headers(body, self.deployment.publisher_key, deployment=self.deployment.name)
        return SignedRequest(document["rotation_id"], document["type"], body, headers)

    async def _replace(self, name: str) -> None:
        """Kill a process; returns when its successor connects, before it has read any mark.

        Not earlier: the longer a keyring is rolled back, the later its uploads are tried again.
        """
        await self.supervisor.kill(name)
        proxy = self.supervisor.processes[name].broker_proxy
        with suppress(TimeoutError):
            await proxy.has_sent(proxy.sent_bytes + 1, timeout_s=_ANSWERED_S)

    async def _hold(self, theft: Theft) -> None:
        """Do what helps a thief, until it was refused."""
        log = LogReader(self.supervisor, _is_refusal)
        self._early.append(asyncio.create_task(self.sender.send_early(theft.project)))
        gateway = asyncio.create_task(self._try_gateway(theft))
        try:
            async with asyncio.timeout(_ANSWERED_S):
                await self._request_rotation(theft)
            for _ in range(_UPLOAD_LOOKS):
                if log.found()["upload"]:
                    break
                await asyncio.sleep(_PAUSE_S)
            await gateway
        except TimeoutError:
            theft.problems.append(f"the rotation was not answered within {_ANSWERED_S:g} s")
        finally:
            gateway.cancel()
            theft.refusals = log.found()

    async def _request_rotation(self, theft: Theft) -> None:
        signed = theft.request
        message = Message(signed.type, signed.body, signed.headers, signed.request_id)
        await publish(self.deployment, message)
        event = await self.event_log.event(signed.request_id)
        theft.answer = str(getattr(event, "code", event.type))

    async def _try_gateway(self, theft: Theft) -> None:
        """Read an object, and request a rotation, with the old API key."""
        old = self.operator.tenants[theft.project].api_keys[theft.generation - 1]
        stored = [upload for upload in self.readers.stored if upload.project == theft.project]
        await asyncio.sleep(CACHED_S)
        async with aiohttp.ClientSession(timeout=_GATEWAY_TIMEOUT) as session:
            for upload in stored[-_GATEWAY_TRIES:]:
                status, _ = await self.readers.get(session, upload, old)
                self._note_response(theft, "read", status)
                self._note_response(theft, "rotation", await self._rotate(session, theft, old))

    async def _rotate(self, session: aiohttp.ClientSession, theft: Theft, old: str) -> int:
        """The status of the response to a rotation; 0 if the connection failed."""
        url = f"{self.readers.url}/v1/projects/{theft.project}/rotations"
        headers, body = {"Authorization": f"Bearer {old}"}, {"api_key": new_api_key()}
        try:
            async with session.post(url, headers=headers, json=body) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    def _note_response(self, theft: Theft, what: str, status: int) -> None:
        if not self.readers.knows_marks():
            return  # it was killed meanwhile
        theft.responses[f"{what}: {status or 'broken'}"] += 1
        if 200 <= status < 300:
            theft.problems.append(f"the gateway answered {status} to a {what} with the old key")


@dataclass(frozen=True)
class _Stolen:
    """A keyring that was rolled back or removed: the newest record, and what is in its place."""

    file: KeyringFile
    newest: bytes
    present: bytes | None
    at: datetime

    def put_back(self) -> list[str]:
        """Put the newest record back; returns what a worker changed meanwhile."""
        found = self.file.find()
        self.file.put(self.newest)
        if found == self.present:
            return []
        size = "nothing" if found is None else f"a record of {len(found)} bytes"
        return [f"{self.file.s3_key} was changed meanwhile: {size} was there"]


def _steal(tenant: Tenant, old: bytes, kind: str) -> _Stolen:
    """Put the old record in the place of the newest, at once, and remove it if asked to."""
    file = KeyringFile.of(tenant)
    newest, etag = file.read()
    while not file.replace(old, etag):
        newest, etag = file.read()
    answer = file.client.head_object(Bucket=file.bucket, Key=file.s3_key)
    if kind == "removed":
        file.remove()
    return _Stolen(file, newest, None if kind == "removed" else old, answer["LastModified"])


def _written_under_old(tenant: Tenant, since: datetime, newest: int) -> list[str]:
    """Objects that were written since then, by a keyring below the newest generation."""
    found = []
    pages = tenant.client.get_paginator("list_objects_v2").paginate(
        Bucket=tenant.deployment.bucket, Prefix=f"{tenant.project}/"
    )
    for row in (row for page in pages for row in page.get("Contents", [])):
        if row["LastModified"] <= since:
            continue
        head = tenant.client.head_object(Bucket=tenant.deployment.bucket, Key=row["Key"])
        label = head["Metadata"].get("enc-kek-user", f"{newest}:")
        if int(label.partition(":")[0]) < newest:
            found.append(f"{row['Key']} was written under generation {label} meanwhile")
    return found


def _is_refusal(line: str) -> bool:
    return f'"code":"{ROLLED_BACK}"' in line and any(f'"event":"{e}"' in line for e in _REFUSED)
