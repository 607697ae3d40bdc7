"""Programs that put objects into the buckets of sources during a run, and notify (SPEC 17).

Both buckets are watched. `drop` is versioned, and emptied; `kept` is neither.
Some notifications come twice, late or never; some are forged. Some objects are overwritten or
deleted by their owner, and some have names that Keyturn must refuse. What is put, and when, depends
only on the seed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus

import stamina
from botocore.exceptions import ClientError

from keyturn.crypto import SigningKey, to_base64
from keyturn.topology import NOTIFICATIONS
from keyturn.upload_ids import source_upload_id
from tools.chaos.attackers import Message, publish
from tools.chaos.plan import (
    PROJECTS,
    SOURCED_PROJECT,
    UNKNOWN_PROJECT,
    Upload,
    plaintext,
    rng_for,
)
from tools.harness.canaries import MARKER
from tools.servers import new_bucket
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    import random

    from tools.chaos.publisher import EventLog, LoadSender
    from tools.harness.deployment import Deployment
    from tools.servers import S3Server

INGEST: Final = "ingest"
"""The publisher that signs the requests of ingest workers."""
DROP: Final = "drop"
KEPT: Final = "kept"
_PREFIX: Final = "in/"
_POLL_S: Final = 3

NOTICES: Final = ("once", "often", "late", "never")
CHANGES: Final = ("", "overwritten", "overwritten once stored", "deleted")
# By the S3 key: the code with which the source `drop` refuses an object there. Nothing looks at
# what is outside of its prefix.
_HOSTILE: Final = {
    "in/../{n}": "malformed_request",
    "in/elm/../amber/{n}": "malformed_request",
    "in/.keyturn/keyrings/amber.json": "malformed_request",
    "in/elm/{n}/bell\x07": "malformed_request",
    "in/elm//{n}": "malformed_request",
    "in/elm/{n}/" + "y" * 901: "malformed_request",
    "in/unknown/{n}": "unknown_project",
    "in/amber/{n}": "not_permitted",
    "out/elm/{n}": "",
}
_GARBAGE: Final = (b"", b"\x00\xff", b"[]", b"[" * 50_000, b'{"Records": [null, {}, 7]}')
_FORGED_EVERY: Final = 8
_LATE: Final = 6
_LARGE_EVERY: Final = 20
_EMPTY_EVERY: Final = 10
_KIB: Final = 1024
# The numbers of other uploads are far below.
_NUMBERS_FROM: Final = 10**7


@dataclass(frozen=True)
class Drop:
    """One S3 key of a source, to which something is put once `at` publishes are confirmed.

    `contents`: what is put there, one after the other; their ids are not known yet. `notice` and
    `change` are of `NOTICES` and `CHANGES`; `refused` is the code of a name that must be refused,
    and `has_place` is False for a name that is never stored.
    """

    at: int
    source: str
    s3_key: str
    contents: tuple[Upload, ...] = field(repr=False)
    notice: str
    change: str = ""
    refused: str = ""
    has_place: bool = True


@dataclass(frozen=True)
class Content:
    """One content that was put: its upload, under the id that SPEC 17.2 derives."""

    drop: Drop
    upload: Upload

    def __str__(self) -> str:
        return f"{self.drop.source}: {self.drop.s3_key!r} ({self.upload.upload_id})"


@dataclass
class Written:
    """What was put into the sources; `deleted` are the drops that their owner deleted again."""

    contents: list[Content] = field(default_factory=list)
    deleted: set[Drop] = field(default_factory=set)
    notices: Counter[str] = field(default_factory=Counter)

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all uploads for which there can be a request."""
        return frozenset(content.upload.upload_id for content in self.contents)


def make_drops(seed: int, total: int) -> tuple[Drop, ...]:
    """The drops of a run with `total` publishes, in the order of `at`."""
    rng = rng_for(seed, "drops")
    kinds = list(product((DROP, KEPT), NOTICES, CHANGES)) * (1 + total // 400)
    rng.shuffle(kinds)
    drops = [_drop(rng, number, *kind) for number, kind in enumerate(kinds)]
    drops += [
        _hostile(rng, len(drops) + number, pattern) for number, pattern in enumerate(_HOSTILE)
    ]
    placed = [replace(drop, at=int(total * rng.uniform(0.02, 0.97))) for drop in drops]
    return tuple(sorted(placed, key=lambda drop: drop.at))


def _drop(rng: random.Random, number: int, source: str, notice: str, change: str) -> Drop:
    key = f"{rng.choice(('a', 'b/c', 'ü mit raum', '1+1 %25'))}/{number:05}.bin"
    first = _content(rng, number, key)
    second = _content(rng, number + _NUMBERS_FROM, key, least_bytes=len(MARKER) + 8)
    contents = (first, second) if change.startswith("overwritten") else (first,)
    folder = f"{SOURCED_PROJECT}/" if source == DROP else ""
    return Drop(0, source, f"{_PREFIX}{folder}{key}", contents, notice, change)


def _content(rng: random.Random, number: int, key: str, *, least_bytes: int = 0) -> Upload:
    """One content; of two for one key, the second differs in its first bytes already."""
    is_large = rng.randrange(_LARGE_EVERY) == 0
    largest_bytes = 7 * _KIB**2 if is_large else 8 * _KIB
    is_empty = rng.randrange(_EMPTY_EVERY) == 0
    return Upload(
        number=_NUMBERS_FROM + number,
        upload_id="",
        project=SOURCED_PROJECT,
        key=key,
        size_bytes=least_bytes if is_empty else rng.randint(least_bytes, largest_bytes),
        content_type=rng.choice(("text/plain", "application/x-canary; charset=utf-8")),
        metadata=rng.choice(((), (("author", "kim"),))),
    )


def _hostile(rng: random.Random, number: int, pattern: str) -> Drop:
    s3_key = pattern.format(n=number)
    contents = (_content(rng, number, ""),)
    code = _HOSTILE[pattern]
    return Drop(0, DROP, s3_key, contents, "often", refused=code, has_place=False)


@dataclass(frozen=True)
class SourceBuckets:
    """The buckets of both sources, which Keyturn reaches only through a proxy."""

    server: S3Server
    seed: bytes = field(repr=False)
    names: dict[str, str]

    @classmethod
    def create(cls, server: S3Server) -> SourceBuckets:
        """Empty buckets, and a new key of the publisher."""
        names = {DROP: new_bucket(server, versioned=True), KEPT: new_bucket(server)}
        return cls(server, os.urandom(32), names)

    def settings(self, publishers: str, proxy_url: str) -> dict[str, str]:
        """The settings of all workers; `publishers` are the others."""
        key = SigningKey.from_seed(self.seed)
        grant = {
            "keys": [to_base64(key.public_bytes)],
            "may": ["upload.requested"],
            "projects": [SOURCED_PROJECT, UNKNOWN_PROJECT],
            "sources": list(self.names),
        }
        mappings: dict[str, dict[str, Any]] = {
            DROP: {"project": "{first}", "key": "{rest}", "delete": True},
            KEPT: {"project": SOURCED_PROJECT, "key": "{name}"},
        }
        sources = {
            name: {"bucket": bucket, "prefix": _PREFIX, "endpoint_url": proxy_url, **mappings[name]}
            for name, bucket in self.names.items()
        }
        return {
            "SOURCES": json.dumps(sources),
            "SOURCE_POLL_S": str(_POLL_S),
            "PUBLISHERS": json.dumps({**json.loads(publishers), INGEST: grant}),
            "PUBLISHER_NAME": INGEST,
            "PUBLISHER_KEY": to_base64(self.seed),
        }


def _is_no_such_key(error: Exception) -> bool:
    """Whether Ceph's gateway refused a put with this code: seldom, and in a versioned bucket."""
    return isinstance(error, ClientError) and error.response["Error"]["Code"] == "NoSuchKey"


class DropWriter:
    """Puts the drops of a run, and sends notifications; `written` records it."""

    def __init__(
        self,
        deployment: Deployment,
        buckets: SourceBuckets,
        sender: LoadSender,
        event_log: EventLog,
        drops: tuple[Drop, ...],
    ) -> None:
        self.written = Written()
        self._deployment = deployment
        self._buckets = buckets
        self._sender = sender
        self._event_log = event_log
        self._drops = drops
        self._seed = sender.plan.seed
        self._rng = rng_for(self._seed, "notifications")
        self._client = sync_client(buckets.server)
        self._late: list[Drop] = []

    async def write_all(self) -> None:
        """Put all drops, each once its time has come."""
        async with asyncio.TaskGroup() as group:
            for number, drop in enumerate(self._drops):
                await self._sender.reached(drop.at)
                group.create_task(self._write(drop))
                if number % _FORGED_EVERY == 0:
                    await self._forge(number)
                if len(self._late) == _LATE:
                    await self._send_late()
        await self._send_late()

    async def _write(self, drop: Drop) -> None:
        first = await self._put(drop, drop.contents[0])
        await self._notify(drop, drop.notice)
        if drop.change == "overwritten once stored":
            await self._event_log.event(first, "upload.stored")
        if drop.change == "deleted":
            self.written.deleted.add(drop)
            bucket = self._buckets.names[drop.source]
            await asyncio.to_thread(self._client.delete_object, Bucket=bucket, Key=drop.s3_key)
        for content in drop.contents[1:]:
            await self._put(drop, content)
            # Otherwise only a listing finds what it has become.
            if drop.notice == "often":
                await self._notify(drop, drop.notice)

    async def _put(self, drop: Drop, upload: Upload) -> str:
        """Put one content, and return the id of its upload."""
        async for attempt in stamina.retry_context(on=_is_no_such_key, attempts=5):
            with attempt:
                answer = await asyncio.to_thread(
                    self._client.put_object,
                    Bucket=self._buckets.names[drop.source],
                    Key=drop.s3_key,
                    Body=plaintext(self._seed, upload),
                    ContentType=str(upload.content_type),
                    Metadata=dict(upload.metadata),
                )
        upload_id = source_upload_id(
            self._deployment.name,
            drop.source,
            drop.s3_key,
            answer["ETag"].strip('"'),
            answer.get("VersionId", ""),
        )
        self.written.contents.append(Content(drop, replace(upload, upload_id=upload_id)))
        return upload_id

    async def _notify(self, drop: Drop, notice: str) -> None:
        self.written.notices[notice] += 1
        match notice:
            case "late":
                self._late.append(drop)
            case "once" | "often":
                for _ in range(3 if notice == "often" else 1):
                    await self._send(self._buckets.names[drop.source], drop.s3_key)

    async def _send_late(self) -> None:
        """Send the notifications that were kept back, in any order."""
        late, self._late = self._late, []
        self._rng.shuffle(late)
        for drop in late:
            await self._send(self._buckets.names[drop.source], drop.s3_key)

    async def _forge(self, number: int) -> None:
        """Notifications of what is not there or is no source's, and what is none."""
        own = self._deployment.bucket
        uploads = self._sender.plan.load.uploads
        stored = uploads[number % len(uploads)]
        for bucket, s3_key in (
            (self._buckets.names[DROP], f"in/{SOURCED_PROJECT}/not-there-{number}"),
            (self._buckets.names[DROP], f"in/{PROJECTS[0]}/not-there-{number}"),
            (self._buckets.names[KEPT], f"in/%2e%2e/{number}"),
            (own, f"{stored.project}/{stored.key}"),
            (own, f"in/{SOURCED_PROJECT}/{number}"),
            ("no-such-bucket", f"in/{SOURCED_PROJECT}/{number}"),
        ):
            await self._send(bucket, s3_key)
            self.written.notices["forged"] += 1
        for garbage in (*_GARBAGE, os.urandom(60)):
            await publish(self._deployment, Message(NOTIFICATIONS, garbage, {}, to_queue=True))
            self.written.notices["garbage"] += 1

    async def _send(self, bucket: str, s3_key: str) -> None:
        """Notify of an object, in the spelling of AWS or that of Ceph, with an untrue ETag."""
        key = quote_plus(s3_key) if self._rng.random() < 0.5 else s3_key
        about: dict[str, Any] = {"key": key, "size": 1, "eTag": "f" * 32}
        record = {
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": bucket}, "object": about},
        }
        body = json.dumps({"Records": [record]}).encode()
        await publish(self._deployment, Message(NOTIFICATIONS, body, {}, to_queue=True))
