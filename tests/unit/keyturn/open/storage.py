"""A fake storage that serves one object at a presigned URL, and objects as a worker makes them."""

from __future__ import annotations

import base64
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyturn.crypto import BODY_CONTEXT, Kek, kek_id, seal, user_kek, wrap_dek
from keyturn.open import open_object
from tests.unit.keyturn.gateway.gateway import Answer, FakeGateway, object_of, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from keyturn.gateway import CiphertextLink
    from keyturn.open import DecryptedObject

API_KEY = "kt_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
PEPPER = "salt and pepper"
PROJECT = "acme"
KEY = "reports/q3 ü.pdf"
KEK: Kek = user_kek(API_KEY, PROJECT, PEPPER)
PATH = "/bucket/acme/a%20b?X-Amz-Expires=900&X-Amz-Signature=5ec4e7"
HEADERS = {
    "ETag": '"md5"',
    "Last-Modified": "Tue, 24 Nov 2026 10:00:00 GMT",
    "Content-Type": "text/csv",
    "x-amz-meta-author": "kim",
    "x-amz-meta-enc-algo": "Cobblestone-256",
}


@dataclass(frozen=True)
class Made:
    """An object as it is stored."""

    plaintext: bytes
    body: bytes
    dek: bytes
    metadata: dict[str, str] = field(default_factory=dict)


def made(size_bytes: int, *, kek: Kek = KEK, project: str = PROJECT, key: str = KEY) -> Made:
    plaintext, dek = os.urandom(size_bytes), os.urandom(32)
    wrap = wrap_dek(
        kek,
        "user",
        algorithm="Cobblestone-256",
        project=project,
        object_key=key,
        generation=1,
        dek=dek,
    )
    metadata = {
        "enc-algo": "Cobblestone-256",
        "enc-dek-user": base64.b64encode(wrap).decode(),
        "enc-dek-admin": base64.b64encode(bytes(136)).decode(),
        "enc-kek-user": f"1:{kek_id(kek)}",
        "enc-kek-admin": "m1",
    }
    return Made(plaintext, seal(dek, BODY_CONTEXT, plaintext), dek, metadata)


def link_to(storage: FakeGateway, metadata: Mapping[str, str]) -> dict[str, object]:
    """The gateway's JSON."""
    return {"url": storage.url + PATH, "expires_at": "2026-11-26T10:15:00Z", "metadata": metadata}


def open_link(
    link: CiphertextLink | Mapping[str, Any], start: int = 0, length: int | None = None
) -> AbstractAsyncContextManager[DecryptedObject]:
    """The object of a link, with the keys that `made` uses."""
    return open_object(
        link,
        project=PROJECT,
        object_key=KEY,
        api_key=API_KEY,
        pepper=PEPPER,
        start=start,
        length=length,
    )


@asynccontextmanager
async def opening(
    answer: Answer, metadata: Mapping[str, str], start: int = 0, length: int | None = None
) -> AsyncIterator[tuple[DecryptedObject, FakeGateway]]:
    """An object of a storage that answers so, open."""
    async with (
        serving(answer) as storage,
        open_link(link_to(storage, metadata), start, length) as opened,
    ):
        yield opened, storage


async def read_body(
    body: bytes, metadata: Mapping[str, str], start: int = 0, length: int | None = None
) -> bytes:
    """What a reader gets of a stored body."""
    answer = object_of(body, HEADERS)
    async with opening(answer, metadata, start, length) as (opened, _):
        received = await opened.read()
        assert len(received) == opened.length
        return received
