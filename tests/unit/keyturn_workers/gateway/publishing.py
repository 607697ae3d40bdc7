"""A publisher without a broker: it records requests and returns the events that a test sets."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyturn.messages import DeleteRequested
from keyturn.publisher import NotSentHereError, WaitTimeoutError
from keyturn.publisher.requests import build, draft_upload
from keyturn.publisher.sessions import SealingSession
from tests.unit.keyturn.publisher.test_requests import SETTINGS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from pydantic import SecretStr

    from keyturn.messages import Event


@dataclass
class Upload:
    project: str
    key: str
    body: bytes
    content_type: str | None
    metadata: dict[str, str]
    upload_id: str


@dataclass
class FakePublisher:
    """What the gateway uses of `keyturn.publisher.Publisher`; names are checked as there.

    `fails` is raised in place of publishing. `answer` makes the event of a request's id; where
    it is None there is no event in time.
    """

    uploads: list[Upload] = field(default_factory=list)
    rotations: list[dict[str, Any]] = field(default_factory=list)
    deletes: list[dict[str, str]] = field(default_factory=list)
    many: list[dict[str, Any]] = field(default_factory=list)
    outcomes: dict[str, Any] | None = None
    waits: list[float] = field(default_factory=list)
    fails: Exception | None = None
    answer: Any = None
    wait_fails: Exception | None = None
    telling: asyncio.Event = field(default_factory=asyncio.Event)

    async def upload(
        self,
        project: str,
        key: str,
        body: AsyncIterator[bytes],
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        upload_id: str,
    ) -> str:
        sent = dict(metadata or {})
        draft_upload(
            SealingSession(SETTINGS),
            project,
            key,
            content_type=content_type,
            metadata=sent,
            upload_id=upload_id,
        )
        taken = b"".join([piece async for piece in body])
        if self.fails is not None:
            raise self.fails
        self.uploads.append(Upload(project, key, taken, content_type, sent, upload_id))
        return upload_id

    async def rotate(
        self, project: str, *, api_key: SecretStr, expected_generation: int, rotation_id: str
    ) -> str:
        if self.fails is not None:
            raise self.fails
        rotation = {"api_key": api_key.get_secret_value(), "generation": expected_generation}
        self.rotations.append({"project": project, "id": rotation_id, **rotation})
        return rotation_id

    async def delete(self, project: str, object_key: str, *, request_id: str) -> str:
        build(DeleteRequested, project=project, key=object_key, request_id=request_id)
        if self.fails is not None:
            raise self.fails
        self.deletes.append({"project": project, "key": object_key, "id": request_id})
        return request_id

    async def delete_many(self, project: str, keys: list[str], *, request_id: str) -> str:
        build(DeleteRequested, project=project, keys=tuple(keys), request_id=request_id)
        if self.fails is not None:
            raise self.fails
        self.many.append({"project": project, "keys": keys, "id": request_id})
        return request_id

    def delete_outcomes(self, request_id: str) -> dict[str, Any]:
        if self.outcomes is None:
            raise NotSentHereError(request_id)
        return self.outcomes

    async def wait(
        self, request_id: str, *, timeout_s: float = 60.0, project: str, request_type: str
    ) -> Event:
        sent = {u.upload_id: ("upload.requested", u.project) for u in self.uploads}
        sent |= {r["id"]: ("rotation.requested", r["project"]) for r in self.rotations}
        deletes = (*self.deletes, *self.many)
        sent |= {d["id"]: ("delete.requested", d["project"]) for d in deletes}
        assert sent.get(request_id, (request_type, project)) == (request_type, project)
        self.waits.append(timeout_s)
        if self.wait_fails is not None:
            raise self.wait_fails
        if self.answer is None:
            if timeout_s > 60:  # a listener: until there is an event, or it is closed
                await self.telling.wait()
            if self.answer is None:
                raise WaitTimeoutError
        event: Event = self.answer(request_id)
        return event
