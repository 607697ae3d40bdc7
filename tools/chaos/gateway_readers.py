"""Customers who read through the gateway all the while: what is served must be what was sent."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp

from keyturn.identifiers import keyring_s3_key, object_s3_key
from tools.chaos.load import dice_of, plaintext
from tools.chaos.supervisor import KEYRING_CACHE_S

if TYPE_CHECKING:
    import random

    from tools.chaos.load import Upload
    from tools.chaos.operator import Operator

_PAUSE_S = 0.02
_READERS = 2
_GONE_S = 0.5
# After it is told that a rotation is accepted, the gateway may go by its cache (SPEC 9.1) for so
# long, and the test's own hearing takes some time as well.
_CACHED_S = KEYRING_CACHE_S + 0.5
_TIMEOUT = aiohttp.ClientTimeout(total=30)


@dataclass
class Reading:
    """Reads of objects at random; `seen` counts answers, `wrong` says which must not be.

    `denied` tells which S3 keys the storage falsely said not to exist, and when last: until that
    is forgotten the gateway may rightly say that there is no such object or project.
    """

    operator: Operator
    url: str
    seed: int
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stored: list[Upload] = field(default_factory=list)
    denied: dict[str, float] = field(default_factory=dict)

    async def keep_reading(self) -> None:
        """Read until cancelled."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, asyncio.TaskGroup() as both:
            for number in range(_READERS):
                both.create_task(self._read_on(session, dice_of(self.seed, f"reader {number}")))

    async def _read_on(self, session: aiohttp.ClientSession, dice: random.Random) -> None:
        while True:
            await asyncio.sleep(_PAUSE_S)
            if not self.stored:
                continue
            upload = dice.choice(self.stored)
            keys = self.operator.tenants[upload.project].api_keys
            accepted = self.operator.accepted[upload.project]
            # An earlier key now and then, else the last one that is known to be accepted.
            old = len(accepted) > 1 and dice.random() < 0.2
            generation = dice.randint(1, len(accepted) - 1) if old else len(accepted)
            began = time.monotonic()
            dead = old and began - accepted[generation] > _CACHED_S
            known = not old and began - accepted[-1] > _CACHED_S
            status, body = await self._get(session, upload, keys[generation - 1])
            # Turned meanwhile, or being turned: then either answer may be right.
            current = known and generation == len(keys)
            current &= not self._was_denied(keyring_s3_key(upload.project), began)
            here = not self._was_denied(object_s3_key(upload.project, upload.key), began)
            self._judge(upload, status, body, dead=dead, current=current, here=here)
            if not status:
                await asyncio.sleep(_GONE_S)

    def _was_denied(self, s3_key: str, began: float) -> bool:
        at = self.denied.get(s3_key)
        return at is not None and at > began - _CACHED_S

    async def _get(
        self, session: aiohttp.ClientSession, upload: Upload, api_key: str
    ) -> tuple[int, bytes]:
        """Status and body; 0 where the connection was refused or broke."""
        url = f"{self.url}/v1/projects/{upload.project}/objects/{quote(upload.key)}"
        headers = {"Authorization": f"Bearer {api_key}"}
        try:
            async with session.get(url, headers=headers) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            return 0, b""

    def _judge(
        self, upload: Upload, status: int, body: bytes, *, dead: bool, current: bool, here: bool
    ) -> None:
        """Note an answer: `dead` is a key that opens nothing any more, `current` surely does.

        `here` is an object of which the storage did not say meanwhile that it does not exist.
        """
        self.seen[f"{status or 'broken'}{' to an old key' if dead else ''}"] += 1
        where = f"{upload.project}/{upload.key} (upload {upload.upload_id})"
        if status == 200 and body != plaintext(self.seed, upload):
            self.wrong.append(f"{where}: served other bytes than were sent")
        if status == 200 and dead:
            self.wrong.append(f"{where}: served to a key that was rotated out")
        if status == 401 and current:
            self.wrong.append(f"{where}: the current key was turned away")
        if status not in {0, 200, 401, 503} and (here or status != 404):
            self.wrong.append(f"{where}: answered {status}")
