"""`examples/open_with_customer_key.py`, run against a fake gateway, storage and KMS."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import (
    Secret,
    composite_kek,
    customer_secret_id,
    encryption_context,
    new_customer_secret,
)
from tests.unit.keyturn.gateway.gateway import json_answer, object_of, serving
from tests.unit.keyturn.open.storage import API_KEY, HEADERS, KEK, KEY, PATH, PEPPER, PROJECT, made

if TYPE_CHECKING:
    from aiohttp import web

_EXAMPLE = Path(__file__).parents[4] / "examples" / "open_with_customer_key.py"
_ARN = "arn:aws:kms:eu-central-1:111122223333:key/a"


@pytest.mark.slow
async def test_the_example_opens_an_object_with_credentials_of_its_own() -> None:
    secret: Secret = new_customer_secret()
    secret_id = customer_secret_id(secret)
    context = encryption_context("default", PROJECT, secret_id)
    stored = made(100_000, kek=composite_kek(KEK, secret, "user", PROJECT, secret_id))
    metadata = {**stored.metadata, "enc-kek-user": f"1:{'0' * 16}:{secret_id}"}
    wrapped = {
        "store": "kms-eu",
        "key": _ARN,
        "secret_id": secret_id,
        "wrapped": base64.b64encode(b"ciphertext").decode(),
        "context": context,
    }
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/links"):
            url = f"http://{request.host}{PATH}"
            link = {"url": url, "expires_at": "2026-11-26T10:15:00Z", "metadata": metadata}
            return json_answer(201, link)
        if request.path.endswith("/keys"):
            generations = [{"generation": 1, "dek_since": 0, "customer_key": wrapped}]
            return json_answer(200, {"dek_floor": 0, "generations": generations})
        if request.path == "/":
            asked.append((request.headers["X-Amz-Target"], json.loads(await request.read())))
            plaintext = base64.b64encode(secret.reveal()).decode()
            return json_answer(200, {"Plaintext": plaintext, "KeyId": _ARN})
        return await object_of(stored.body, HEADERS)(request)

    async with serving(answer) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(_EXAMPLE),
            PROJECT,
            KEY,
            env={
                "PATH": os.environ["PATH"],
                "KEYTURN_GATEWAY_URL": server.url,
                "KEYTURN_API_KEY": API_KEY,
                "KEYTURN_PEPPER": PEPPER,
                "AWS_ENDPOINT_URL_KMS": server.url,
                "AWS_ACCESS_KEY_ID": "a",
                "AWS_SECRET_ACCESS_KEY": "b",
            },
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
    assert (process.returncode, output) == (0, stored.plaintext)
    request = {
        "KeyId": _ARN,
        "CiphertextBlob": wrapped["wrapped"],
        "EncryptionContext": context,
    }
    assert asked == [("TrentService.Decrypt", request)]
