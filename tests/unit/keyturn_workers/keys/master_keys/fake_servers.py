"""KMS and Vault over HTTP on loopback: as they answer, or as a hostile server would."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyturn_workers.core.key_uris import AwsKmsUri, VaultUri, parse_key_uri
from keyturn_workers.process.settings import KmsSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
URI = AwsKmsUri(f"awskms:{ARN}", ARN, "eu-central-1")
TOKEN = "s.first-token"
REQUEST_ID = "0e6f7c1e-5b0c-4f0e-9d0e-2f7a4c1d9b3a"
KEY_PATH = "transit/keys/m1"
HMAC_PATH = "transit/hmac/m1/sha2-256"
_BODY = web.RequestKey("_BODY", object)
HMAC_KEY = {
    "type": "hmac",
    "exportable": False,
    "allow_plaintext_backup": False,
    "auto_rotate_period": 0,
    "deletion_allowed": False,
    "imported_key": False,
    "latest_version": 1,
    "min_decryption_version": 1,
    "min_encryption_version": 0,
}


class KmsStub:
    """Answers each operation with what is set for it.

    Attributes:
        answers: By operation; a document, or a complete response.
        requests: Operation and parameters of each request, in order.
        authorizations: The header of each request.
        hanging: While set, requests are received and get no answer.
        came: Set once a request came.
        cut: How many of the next requests lose their connection.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.authorizations: list[str] = []
        self.hanging = False
        self.cut = 0
        self.came = asyncio.Event()
        self.stopping = asyncio.Event()
        self.url = ""

    def settings(self, **more: Any) -> KmsSettings:
        """Settings of a process that uses the stub."""
        return KmsSettings(aws_kms_endpoint_url=self.url, **more)

    def refuse(self, operation: str, code: str, text: str = "", status: int = 400) -> None:
        """Answer an operation with an error."""
        document = {"__type": code, "message": text}
        self.answers[operation] = web.json_response(document, status=status)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        operation = request.headers["X-Amz-Target"].removeprefix("TrentService.")
        self.requests.append((operation, await request.json()))
        self.authorizations.append(request.headers["Authorization"])
        self.came.set()
        if self.cut:
            self.cut -= 1
            assert request.transport is not None
            request.transport.close()
        if self.hanging:
            await self.stopping.wait()
        answer = self.answers[operation]
        if isinstance(answer, web.Response):  # each of them can be sent once
            return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
        headers = {"x-amzn-RequestId": "11111111-2222-3333-4444-555555555555"}
        return web.Response(
            text=json.dumps(answer), content_type="application/x-amz-json-1.1", headers=headers
        )


@asynccontextmanager
async def kms_stub() -> AsyncIterator[KmsStub]:
    """A running stub."""
    stub = KmsStub()
    app = web.Application()
    app.router.add_post("/", stub.serve)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield stub
    finally:
        stub.stopping.set()
        await runner.cleanup()


def denied() -> web.Response:
    """What an unknown token gets, and a token without permission."""
    return web.json_response({"errors": ["permission denied"]}, status=403)


@dataclass
class FakeVault:
    """A transit engine with at most one key, `m1`, and logins by one credential."""

    url: str = ""
    prk: bytes | None = bytes(32)
    version: int = 1
    properties: dict[str, Any] = field(default_factory=lambda: dict(HMAC_KEY))
    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    may_read: bool = True
    credential: str = "credential"
    lease_s: int = 3600
    renewable: bool = True
    renewed_lease_s: int | None = None
    respond: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    logins: int = 0
    wrapping_key: rsa.RSAPrivateKey | None = None

    def uri(self, version: int = 1) -> VaultUri:
        """The URI of the key."""
        uri = parse_key_uri(f"vault:{self.url}/transit/m1?version={version}")
        assert isinstance(uri, VaultUri)
        return uri

    def paths(self) -> list[str]:
        """The paths that were requested so far."""
        return [path for _, path, _ in self.requests]

    async def serve(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/v1/")
        body = await request.json() if request.can_read_body else None
        self.requests.append((request.method, path, body))
        self.headers.append(dict(request.headers))
        request[_BODY] = body
        if self.respond is not None:
            return await self.respond(request)
        return self.answer(request)

    def answer(self, request: web.Request) -> web.Response:
        """What Vault would answer."""
        path, body = request.path.removeprefix("/v1/"), request[_BODY]
        if path.endswith("/login"):
            return self._login(body)
        token = request.headers.get("X-Vault-Token", "")
        if token not in self.tokens:
            return denied()
        if path == "auth/token/lookup-self":
            return web.json_response({"data": {}})
        if path == "auth/token/renew-self":
            return self._auth(token, self.renewed_lease_s or self.lease_s)
        return self._transit(request.method, path, body)

    def _login(self, body: Any) -> web.Response:
        self.logins += 1
        if self.credential not in (body.get("secret_id"), body.get("jwt")):
            return web.json_response({"errors": ["invalid role or secret ID"]}, status=400)
        token = f"s.login-{self.logins}"
        self.tokens.add(token)
        return self._auth(token, self.lease_s)

    def _auth(self, token: str, lease_s: int) -> web.Response:
        auth = {"client_token": token, "lease_duration": lease_s, "renewable": self.renewable}
        return web.json_response({"request_id": REQUEST_ID, "auth": auth})

    def _transit(self, method: str, path: str, body: Any) -> web.Response:
        if path == HMAC_PATH:
            return self._hmac(body)
        if path == "transit/wrapping_key":
            self.wrapping_key = rsa.generate_private_key(65537, 2048)
            pem = self.wrapping_key.public_key().public_bytes(
                Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
            )
            return web.json_response({"data": {"public_key": pem.decode()}})
        if method == "POST":
            self.prk = self._unwrap(body["ciphertext"]) if path.endswith("/import") else bytes(32)
            return web.Response(status=204)
        if self.prk is None:
            return web.json_response({"errors": []}, status=404)
        return web.json_response({"data": self.properties}) if self.may_read else denied()

    def _hmac(self, body: Any) -> web.Response:
        if self.prk is None:
            return web.json_response({"errors": ["encryption key not found"]}, status=400)
        mac = hmac.digest(self.prk, base64.b64decode(body["input"]), "sha256")
        text = f"vault:v{self.version}:{base64.b64encode(mac).decode()}"
        return web.json_response({"request_id": REQUEST_ID, "data": {"hmac": text}})

    def _unwrap(self, ciphertext: str) -> bytes:
        assert self.wrapping_key is not None
        wrapped = base64.b64decode(ciphertext)
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)
        aes_key = self.wrapping_key.decrypt(wrapped[:256], oaep)
        return aes_key_unwrap_with_padding(aes_key, wrapped[256:])


@asynccontextmanager
async def fake_vault(*, empty: bool = False) -> AsyncIterator[FakeVault]:
    """Serve until the block ends; without the key where it is `empty`."""
    vault = FakeVault(prk=None if empty else bytes(32))
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", vault.serve)
    async with TestServer(application) as server:
        vault.url = str(server.make_url("")).rstrip("/")
        yield vault


def settings(**values: object) -> KmsSettings:
    """Settings with a token, unless another way to authenticate is given."""
    ways = {"vault_token_file", "vault_role_id", "vault_kubernetes_role"}
    token = {} if ways & values.keys() else {"vault_token": TOKEN}
    return KmsSettings.model_validate({**token, **values})
