"""JSON bodies: limited in size and time, and never repeated in an error."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict

from keyturn.errors import BodyTooLargeError, MalformedRequestError
from keyturn_workers.gateway.request import read_json_body
from keyturn_workers.http_server.client_connection import ClientGoneError

if TYPE_CHECKING:
    from starlette.types import Message, Receive


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = "default"


def _receive(*pieces: bytes | None) -> Receive:
    left = list(pieces)

    async def receive() -> Message:
        piece = left.pop(0)
        if piece is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return receive


async def _read(*pieces: bytes | None) -> Any:
    return await read_json_body(_receive(*pieces), _Body, 40, 0.02)


async def test_a_body_in_pieces() -> None:
    assert (await _read(b'{"name": ', b'"given"', b"}")).name == "given"


async def test_no_body_is_an_object_without_fields() -> None:
    assert (await _read(b"")).name == "default"


@pytest.mark.parametrize(
    "body",
    [b" ", b"[]", b"null", b"{", b"\xff", b'{"name": 7}', b'{"names": "secret"}',
     b'{"name": "secret", "name": "secret"}'],
)  # fmt: skip
async def test_what_is_no_such_document_is_refused_without_its_values(body: bytes) -> None:
    with pytest.raises(MalformedRequestError) as refused:
        await _read(body)
    assert "secret" not in str(refused.value.detail)
    assert refused.value.__cause__ is None


async def test_the_size_is_limited() -> None:
    assert (await _read(b'{"name": "' + b"n" * 28 + b'"}')).name == "n" * 28
    with pytest.raises(BodyTooLargeError, match="at most 40 bytes"):
        await _read(b'{"name": "' + b"n" * 29, b'"}')


async def test_the_time_is_limited() -> None:
    with pytest.raises(ClientGoneError, match="too slowly"):
        await _read(b"{", None)
