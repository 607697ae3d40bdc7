"""Clients that read through the gateway during a run: it must serve the uploaded bytes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp

from keyturn.identifiers import keyring_s3_key, object_s3_key
from tools.chaos.plan import GATEWAY, plaintext, rng_for
from tools.chaos.processes import KEYRING_CACHE_S

if TYPE_CHECKING:
    import random

    from tools.chaos.operator import Operator
    from tools.chaos.plan import Upload

_PAUSE_S = 0.02
_READERS = 2
_GONE_S = 0.5
CACHED_S = KEYRING_CACHE_S + 0.5
"""After a rotation is accepted the gateway may use its cache for this long (SPEC 9.1), plus the
time until the run itself receives the event."""
_TIMEOUT = aiohttp.ClientTimeout(total=30)


@dataclass
class GatewayReaders:
    """Reads random objects; `seen` counts responses, `wrong` describes the wrong ones.

    `denied` has the last time at which the storage falsely reported that an S3 key does not exist:
    while that is cached the gateway may report that the object or project does not exist.
    `refused_until` has the monotonic time until which the store of a project's customer key may
    count as refusing.
    `stolen` are projects whose keyring a thief has rolled back. A gateway that has just started may
    accept such a keyring until it has read the marks (SPEC 5.5).
    """

    operator: Operator
    url: str
    seed: int
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stored: list[Upload] = field(default_factory=list)
    denied: dict[str, float] = field(default_factory=dict)
    refused_until: dict[str, float] = field(default_factory=dict)
    stolen: set[str] = field(default_factory=set)

    async def keep_reading(self) -> None:
        """Read until canceled."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, asyncio.TaskGroup() as both:
            for number in range(_READERS):
                both.create_task(self._read_on(session, rng_for(self.seed, f"reader {number}")))

    async def _read_on(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        while True:
            await asyncio.sleep(_PAUSE_S)
            if not self.stored:
                continue
            upload = rng.choice(self.stored)
            keys = self.operator.tenants[upload.project].api_keys
            accepted = self.operator.accepted[upload.project]
            # Sometimes an earlier key, else the last one that is known to be accepted.
            old = len(accepted) > 1 and rng.random() < 0.2
            generation = rng.randint(1, len(accepted) - 1) if old else len(accepted)
            began = time.monotonic()
            dead = old and began - accepted[generation] > CACHED_S
            known = not old and began - accepted[-1] > CACHED_S
            status, body = await self.get(session, upload, keys[generation - 1])
            # Rotated meanwhile, or being rotated: then either response may be correct.
            current = known and generation == len(keys)
            current &= not self._was_denied(keyring_s3_key(upload.project), began)
            here = not self._was_denied(object_s3_key(upload.project, upload.key), began)
            if upload.project in self.stolen and not self.knows_marks():
                self.seen["not judged"] += 1
                continue
            if status == 403 and began < self.refused_until.get(upload.project, 0):
                self.seen["403 without the customer key"] += 1
                continue
            self._check_response(upload, status, body, dead=dead, current=current, here=here)
            if not status:
                await asyncio.sleep(_GONE_S)

    def knows_marks(self) -> bool:
        """Whether the gateway has surely read the marks since it started."""
        return self.operator.supervisor.processes[GATEWAY].knows_marks()

    def _was_denied(self, s3_key: str, began: float) -> bool:
        at = self.denied.get(s3_key)
        return at is not None and at > began - CACHED_S

    async def get(
        self, session: aiohttp.ClientSession, upload: Upload, api_key: str
    ) -> tuple[int, bytes]:
        """Status and body; the status is 0 if the connection failed."""
        url = f"{self.url}/v1/projects/{upload.project}/objects/{quote(upload.key)}"
        headers = {"Authorization": f"Bearer {api_key}"}
        try:
            async with session.get(url, headers=headers) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            return 0, b""

    def _check_response(
        self, upload: Upload, status: int, body: bytes, *, dead: bool, current: bool, here: bool
    ) -> None:
        """Record a response: `dead` is a revoked key, `current` surely is a valid one.

        `here` is an object that the storage did not falsely report as missing meanwhile.
        """
        self.seen[f"{status or 'broken'}{' to an old key' if dead else ''}"] += 1
        where = f"{upload.project}/{upload.key} (upload {upload.upload_id})"
        if status == 200 and body != plaintext(self.seed, upload):
            self.wrong.append(f"{where}: served bytes other than the uploaded ones")
        if status == 200 and dead:
            self.wrong.append(f"{where}: served to a key that was rotated out")
        if status == 401 and current:
            self.wrong.append(f"{where}: the current key was rejected")
        if status not in {0, 200, 401, 503} and (here or status != 404):
            self.wrong.append(f"{where}: answered {status}")
