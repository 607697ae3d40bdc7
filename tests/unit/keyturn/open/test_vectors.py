"""Every object of the shared known answers, opened by its link as another reader would."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from keyturn.errors import CodedError
from keyturn.open import open_object
from tests.unit.keyturn.crypto.shared import load
from tests.unit.keyturn.gateway.gateway import object_of, serving
from tests.unit.keyturn.open.storage import link_to

VECTORS = load("keyturn_v1.json")
KEYS = VECTORS["keys"]


async def opened(vector: dict[str, Any], start: int = 0, length: int | None = None) -> bytes:
    turned = vector["name"] == "both keys turned"
    body = base64.b64decode(vector["body"])
    async with (
        serving(object_of(body, {})) as storage,
        open_object(
            link_to(storage, vector["metadata"]),
            project=vector["project"],
            object_key=vector["key"],
            api_key=KEYS["new_api_key" if turned else "api_key"],
            pepper=KEYS["pepper"],
            start=start,
            length=length,
        ) as found,
    ):
        return await found.read()


@pytest.mark.parametrize("vector", VECTORS["objects"], ids=lambda vector: vector["name"])
async def test_object(vector: dict[str, Any]) -> None:
    """Each one gives its plaintext, whole and in part, or its code."""
    is_v0 = vector["metadata"]["enc-algo"] == "AES-256-GCM"
    expect = "unknown_algorithm" if is_v0 else vector["expect"].split(" ")[0]
    if expect != "valid":
        with pytest.raises(CodedError) as raised:
            await opened(vector)
        assert raised.value.code == expect
        return
    plaintext = await opened(vector)
    assert hashlib.sha256(plaintext).hexdigest() == vector["sha256"]
    if size := vector["size"]:
        assert await opened(vector, size // 2) == plaintext[size // 2 :]
        assert await opened(vector, -1) == plaintext[-1:]
        assert await opened(vector, size // 3, 100) == plaintext[size // 3 :][:100]


def test_each_kind_is_there() -> None:
    names = {vector["name"] for vector in VECTORS["objects"]}
    assert len(names) == 27
