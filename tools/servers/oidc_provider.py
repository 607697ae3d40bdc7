"""An OpenID Connect provider for tests: `python -m tools.servers.oidc_provider`.

It is as strict as a provider should be: it wants PKCE by S256, the registered redirect URI and the
client's secret, and each code works once. `faults` makes it a wrong one: other claims, algorithms
and keys, no answer. A person signs in by a button with their name, without a password.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import secrets
import time
import urllib.request
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey
from joserfc.jws import JWSRegistry
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Route

from tools.servers.process import PrivateServer

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

CLIENT_ID: Final = "keyturn-console"
_TOKEN_S: Final = 300
_ALGORITHM: Final = "ES256"


@dataclass
class Faults:
    """What the provider does wrong.

    Attributes:
        status: What every endpoint answers.
        delay_s: How long every endpoint waits.
        description: Replaces fields of its description.
        callback: Replaces parameters of its response; None removes one.
        claims: Replaces claims of ID tokens; None removes one.
        algorithm: Signs ID tokens otherwise: `none`, or `HS256` by the client's secret.
        foreign_key: Signs them with a key that is not among its own, under the same id.
        token: Replaces the response of the token endpoint, as text.
    """

    status: int = 0
    delay_s: float = 0
    description: dict[str, Any] = field(default_factory=dict)
    callback: dict[str, str | None] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    algorithm: str = ""
    foreign_key: bool = False
    token: str = ""


@dataclass(frozen=True)
class _Code:
    person: str
    redirect_uri: str
    challenge: str
    nonce: str


class OidcProvider:
    """The provider's state and routes.

    Args:
        issuer: Its own origin.
        redirect_uri: The one that is registered; empty: any.
        secret: The client's.
        people: The claims of each person by their subject.
    """

    def __init__(
        self, issuer: str, redirect_uri: str, secret: str, people: dict[str, dict[str, Any]]
    ) -> None:
        self.issuer = issuer
        self.faults = Faults()
        self._redirect_uri = redirect_uri
        self._secret = secret
        self._people = people
        self._codes: dict[str, _Code] = {}
        self._tokens: dict[str, str] = {}
        self._key = _new_key()

    @property
    def app(self) -> Starlette:
        """The routes."""
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._describe),
                Route("/authorize", self._authorize, methods=["GET"]),
                Route("/token", self._token, methods=["POST"]),
                Route("/keys", self._keys),
                Route("/userinfo", self._userinfo),
                Route("/logout", self._logout),
                Route("/test/faults", self._set_faults, methods=["POST"]),
                Route("/test/rotate", self._rotate, methods=["POST"]),
            ]
        )

    def rotate(self) -> None:
        """Sign with a new key from now on, and forget the old one."""
        self._key = _new_key()

    async def _describe(self, request: Request) -> Response:
        del request
        return await self._answer(
            JSONResponse(
                {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "jwks_uri": f"{self.issuer}/keys",
                    "userinfo_endpoint": f"{self.issuer}/userinfo",
                    "end_session_endpoint": f"{self.issuer}/logout",
                    "id_token_signing_alg_values_supported": [_ALGORITHM, "HS256", "none"],
                    "code_challenge_methods_supported": ["S256"],
                    "authorization_response_iss_parameter_supported": True,
                    **self.faults.description,
                }
            )
        )

    async def _authorize(self, request: Request) -> Response:
        query = request.query_params
        redirect_uri = query["redirect_uri"]
        if query["client_id"] != CLIENT_ID or redirect_uri != (self._redirect_uri or redirect_uri):
            return PlainTextResponse("this client is not registered with this address", 400)
        if query.get("code_challenge_method") != "S256" or not query.get("code_challenge"):
            return PlainTextResponse("PKCE with S256 is required", 400)
        person = query.get("person")
        if person is None:
            return HTMLResponse(_choices(request, self._people))
        code = secrets.token_urlsafe()
        self._codes[code] = _Code(
            person, redirect_uri, query["code_challenge"], query.get("nonce", "")
        )
        fields: dict[str, str | None] = {
            "code": code,
            "state": query["state"],
            "iss": self.issuer,
            **self.faults.callback,
        }
        sent = {name: value for name, value in fields.items() if value is not None}
        return RedirectResponse(f"{redirect_uri}?{urlencode(sent)}", 302)

    async def _token(self, request: Request) -> Response:
        form = await request.form()
        code = self._codes.pop(str(form.get("code")), None)
        challenge = base64.urlsafe_b64encode(
            hashlib.sha256(str(form.get("code_verifier")).encode()).digest()
        )
        if not self._knows_client(request):
            return JSONResponse({"error": "invalid_client"}, 401)
        if (
            code is None
            or form.get("redirect_uri") != code.redirect_uri
            or challenge.rstrip(b"=").decode() != code.challenge
        ):
            return JSONResponse({"error": "invalid_grant"}, 400)
        if self.faults.token:
            return HTMLResponse(self.faults.token)
        access_token = secrets.token_urlsafe()
        self._tokens[access_token] = code.person
        return await self._answer(
            JSONResponse(
                {
                    "access_token": access_token,
                    "token_type": "Bearer",
                    "expires_in": _TOKEN_S,
                    "id_token": self._id_token(code),
                }
            )
        )

    def _knows_client(self, request: Request) -> bool:
        expected = base64.b64encode(f"{CLIENT_ID}:{self._secret}".encode()).decode()
        return request.headers.get("authorization") == f"Basic {expected}"

    def _id_token(self, code: _Code) -> str:
        now = int(time.time())
        person = self._people[code.person]
        claims = {
            "iss": self.issuer,
            "sub": code.person,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + _TOKEN_S,
            "nonce": code.nonce,
            **{name: value for name, value in person.items() if name != "userinfo"},
            **self.faults.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        algorithm = self.faults.algorithm or _ALGORITHM
        key = _new_key() if self.faults.foreign_key else self._key
        header = {"alg": algorithm, "kid": self._key.kid}
        registry = JWSRegistry(algorithms=[algorithm])
        if algorithm == "none":
            return f"{_part(header)}.{_part(claims)}."
        signing = OctKey.import_key(self._secret) if algorithm == "HS256" else key
        return jwt.encode(header, claims, signing, registry=registry)

    async def _keys(self, request: Request) -> Response:
        del request
        return await self._answer(JSONResponse(KeySet([self._key]).as_dict(private=False)))

    async def _userinfo(self, request: Request) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        person = self._tokens.get(token)
        if person is None:
            return JSONResponse({"error": "invalid_token"}, 401)
        return JSONResponse({"sub": person, **self._people[person].get("userinfo", {})})

    async def _logout(self, request: Request) -> Response:
        del request
        return HTMLResponse("<!doctype html><title>Signed out</title><h1>Signed out here too</h1>")

    async def _set_faults(self, request: Request) -> Response:
        self.faults = Faults(**await request.json())
        return PlainTextResponse("ok")

    async def _rotate(self, request: Request) -> Response:
        del request
        self.rotate()
        return PlainTextResponse("ok")

    async def _answer(self, response: Response) -> Response:
        await asyncio.sleep(self.faults.delay_s)
        if self.faults.status:
            return PlainTextResponse("out of order", self.faults.status)
        return response


class OidcProviderProcess(PrivateServer):
    """The provider with these people: their claims by their subject."""

    def __init__(self, people: dict[str, dict[str, Any]], *, redirect_uri: str = "") -> None:
        super().__init__("oidc-provider")
        self._people = people
        self._redirect_uri = redirect_uri
        self.secret = secrets.token_hex(16)
        self.issuer = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """As `PrivateServer.start`; each time on the same port, with new keys."""
        self._launch_module(
            "the provider",
            "tools.servers.oidc_provider",
            OIDC_PEOPLE=json.dumps(self._people),
            OIDC_CLIENT_SECRET=self.secret,
            OIDC_REDIRECT_URI=self._redirect_uri,
        )

    def set_faults(self, **faults: Any) -> None:
        """What it does wrong from now on; nothing without arguments."""
        self._post("/test/faults", faults)

    def rotate(self) -> None:
        """Sign with a new key from now on."""
        self._post("/test/rotate", {})

    def _post(self, path: str, document: dict[str, Any]) -> None:
        request = urllib.request.Request(  # noqa: S310  # a loopback address
            self.issuer + path, json.dumps(document).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310  # as above
            response.read()


def _new_key() -> ECKey:
    return ECKey.generate_key("P-256", {"kid": secrets.token_hex(4), "use": "sig"})


def _part(document: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def _choices(request: Request, people: dict[str, dict[str, Any]]) -> str:
    links = "".join(
        f'<li><a href="{escape(str(request.url))}&amp;person={escape(person)}">{escape(person)}</a>'
        for person in people
    )
    return f'<!doctype html><html lang="en"><title>Provider</title><h1>Who are you?</h1><ul>{links}'


def main() -> None:
    """Serve on loopback until killed."""
    parser = argparse.ArgumentParser(description="An OpenID Connect provider for tests")
    parser.add_argument("--port", type=int, required=True)
    port: int = parser.parse_args().port
    provider = OidcProvider(
        f"http://127.0.0.1:{port}",
        os.environ.get("OIDC_REDIRECT_URI", ""),
        os.environ["OIDC_CLIENT_SECRET"],
        json.loads(os.environ["OIDC_PEOPLE"]),
    )
    uvicorn.run(provider.app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
