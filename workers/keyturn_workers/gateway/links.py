"""`POST` of a link to one object (SPEC 9.3).

    {"kind": "object"}       a URL of a gateway, which opens the object without the API key
    {"kind": "ciphertext"}   a URL of the storage, for a reader that opens the object itself
    {"method": "PUT"}        a URL of a gateway, which uploads the object without the API key

A link to an object is made from the keyring alone: nothing is stored, and the object need not
exist yet. A rotation ends the link. A link to the ciphertext is a presigned URL, which a rotation
does not end, so it is valid for minutes only.
"""

import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keyturn.crypto.cobblestone import HEADER_BYTES
from keyturn.crypto.links import link_token
from keyturn.errors import MalformedRequestError, NotFoundError
from keyturn.metadata import OWN_PREFIX
from keyturn_workers.gateway.auth import Authenticator, Caller
from keyturn_workers.gateway.objects import EncryptedReader, ObjectOpener
from keyturn_workers.gateway.request import (
    LINK_CONTENT_TYPE,
    Link,
    UploadLink,
    object_path,
    own_url,
    parse_links_path,
    read_json_body,
)
from keyturn_workers.gateway.shares import ConcurrencyLimit
from keyturn_workers.process.settings import GatewaySettings

LINK_MAX_S: Final = 7 * 24 * 3600
LINK_DEFAULT_S: Final = 3600
CIPHERTEXT_MAX_S: Final = 15 * 60
_BODY_MAX_BYTES: Final = 1024
_CREATED: Final = 201
_NO_STORE: Final = {"cache-control": "no-store"}


class LinkBody(BaseModel):
    """The body of a `POST`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    expires_s: Annotated[int, Field(ge=1, le=LINK_MAX_S)] = LINK_DEFAULT_S
    inline: bool = False
    kind: Literal["object", "ciphertext"] = "object"
    method: Literal["GET", "PUT"] = "GET"
    max_bytes: Annotated[int, Field(ge=0)] | None = None
    content_type: Annotated[str, Field(pattern=rf"\A{LINK_CONTENT_TYPE}\z")] | None = None


class LinkRoutes:
    """Makes links, which are bound to the deployment's name."""

    def __init__(
        self,
        settings: GatewaySettings,
        auth: Authenticator,
        limit: ConcurrencyLimit,
        opener: ObjectOpener,
    ) -> None:
        self._auth = auth
        self._limit = limit
        self._opener = opener
        self._deployment = settings.deployment
        self._public_url = settings.gateway_public_url
        self._idle_timeout_s = settings.gateway_idle_timeout_s
        self._upload_max_bytes = settings.upload_max_bytes

    async def post(self, request: Request) -> Response:
        """Make a link to the object of the path."""
        project, object_key = parse_links_path(request.scope["raw_path"])
        caller = await self._auth.authenticate(project, request.headers.getlist("authorization"))
        if object_key is None:
            raise NotFoundError("this is not a valid object key")
        with self._limit.hold(project):
            body = await read_json_body(
                request.receive, LinkBody, _BODY_MAX_BYTES, self._idle_timeout_s
            )
            if body.method == "GET" and (body.max_bytes, body.content_type) != (None, None):
                raise MalformedRequestError("max_bytes and content_type: only for method PUT")
            if body.method == "PUT" or body.kind == "object":
                return self._object_link(request, caller, object_key, body)
        return await self._ciphertext_link(caller, object_key, body)

    def _object_link(
        self, request: Request, caller: Caller, object_key: str, body: LinkBody
    ) -> Response:
        own = self._public_url or own_url(request.url.scheme, request.headers.getlist("host"))
        unsigned = self._unsigned(body)
        claims = unsigned.claims(caller.project, object_key)
        link = replace(unsigned, token=link_token(caller.kek, self._deployment, claims))
        document = {
            "url": f"{own}{object_path(caller.project, object_key)}?{link.query}",
            "expires_at": _to_the_second(datetime.fromtimestamp(link.expires, UTC)),
        }
        return JSONResponse(document, _CREATED, _NO_STORE)

    def _unsigned(self, body: LinkBody) -> Link | UploadLink:
        """Return the requested link, without its token."""
        # Rounded up: a link works for at least as long as requested.
        expires = math.ceil(time.time()) + body.expires_s
        if body.method == "GET":
            return Link(expires, body.inline, token="")
        if body.inline or body.kind != "object":
            raise MalformedRequestError("inline and kind: not for method PUT")
        if body.max_bytes is None:
            raise MalformedRequestError("max_bytes: required for method PUT")
        if body.max_bytes > self._upload_max_bytes:
            raise MalformedRequestError(f"max_bytes: at most {self._upload_max_bytes}")
        return UploadLink(expires, body.max_bytes, body.content_type, token="")

    async def _ciphertext_link(self, caller: Caller, object_key: str, body: LinkBody) -> Response:
        if body.inline:
            raise MalformedRequestError("inline: not for a link to the ciphertext")
        expires_s = min(body.expires_s, CIPHERTEXT_MAX_S)
        hold = partial(self._limit.hold, caller.project)
        async with self._opener.open(
            caller, object_key, start_bytes=HEADER_BYTES, hold=hold
        ) as reader:
            if not isinstance(reader, EncryptedReader):
                raise MalformedRequestError(
                    "kind: only an object encrypted with Cobblestone-256 has a ciphertext link"
                )
            url = await self._opener.presign(reader, expires_s)
        document = {
            "url": url,
            "expires_at": _to_the_second(reader.head.date + timedelta(seconds=expires_s)),
            "metadata": {
                name: value
                for name, value in reader.head.metadata.items()
                if name.startswith(OWN_PREFIX)
            },
        }
        return JSONResponse(document, _CREATED, _NO_STORE)


def _to_the_second(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
