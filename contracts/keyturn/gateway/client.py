"""`Client`: what a service imports to read and send objects with only an API key (SPEC 9).

It is the caller's half of SPEC 9. Names are checked before anything is sent. The API key is
sent to the gateway's own address only, never to where that redirects: use https unless the
gateway runs on the same machine.
It must never log or raise an API key or a body, and never send an upload or a rotation twice.
"""

import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import orjson
from pydantic import SecretStr

from keyturn.crypto import check_api_key
from keyturn.errors import (
    GatewayUnavailableError,
    MalformedRequestError,
    ResponseLostError,
    UnencryptedGatewayWarning,
    UnexpectedResponseError,
)
from keyturn.gateway.object_stream import OpenObject
from keyturn.gateway.request_body import RequestBody
from keyturn.gateway.responses import (
    META_PREFIX,
    ByteRange,
    ObjectInfo,
    content_lengths,
    json_object,
    object_info,
    response_error,
    storage_response_error,
)
from keyturn.gateway.transport import MAX_CONNECTIONS, Transport, is_unencrypted
from keyturn.identifiers import check_object_key, is_project, is_uuid
from keyturn.metadata import check_content_type, encode_caller_metadata
from keyturn.publisher.body_source import Body
from keyturn.publisher.requests import ApiKey

if TYPE_CHECKING:
    import aiohttp

_CALLER: Final = 3  # frames up to the caller of `connect`: its own, and contextlib's
CONNECT_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 60.0
_UNRESERVED: Final = "/-_.~"
_WHOLE: Final = ByteRange(0, None)
_OK, _CREATED, _ACCEPTED, _PARTIAL, _REDIRECT = 200, 201, 202, 206, 307


@dataclass(frozen=True, slots=True)
class UploadReceipt:
    """An upload that the gateway has accepted.

    Attributes:
        upload_id: Its id, which its event names too.
        stored: Whether the object is stored already. If not, it will be, or an event says why not.
    """

    upload_id: str
    stored: bool


class Client:
    """Access to one project through a gateway. Made by `connect`; safe for concurrent use."""

    def __init__(self, transport: Transport, api_key: ApiKey) -> None:
        self._transport = transport
        self._api_key = _checked_api_key(api_key)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        url: str,
        api_key: ApiKey,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        max_connections: int = MAX_CONNECTIONS,
    ) -> AsyncIterator[Self]:
        """A client and its connections, open as long as the block lasts. Connects when needed.

        Args:
            url: The gateway's address, such as `https://files.example.com`.
            api_key: The project's current API key.
            connect_timeout_s: Seconds to make one connection.
            idle_timeout_s: Seconds without progress after which a request fails.
            max_connections: Connections at once; further requests wait for one.

        Warns:
            UnencryptedGatewayWarning: an `http://` address of another machine.

        Raises:
            MalformedRequestError: the API key does not have the form of SPEC 1.
            SettingsError: the URL cannot be a gateway's, or aiohttp is not installed.
        """
        async with Transport.open(
            url,
            connect_timeout_s=connect_timeout_s,
            idle_timeout_s=idle_timeout_s,
            max_connections=max_connections,
        ) as transport:
            if is_unencrypted(url):
                text = "the API key goes to the gateway unencrypted: use https://"
                warnings.warn(text, UnencryptedGatewayWarning, stacklevel=_CALLER)
            yield cls(transport, api_key)

    def with_api_key(self, api_key: ApiKey) -> Self:
        """A client with another API key, on the connections of this one and as long as they last.

        Args:
            api_key: Another project's, or the new one after a rotation.

        Raises:
            MalformedRequestError: the API key does not have the form of SPEC 1.
        """
        return type(self)(self._transport, api_key)

    @asynccontextmanager
    async def open(
        self, project: str, object_key: str, *, start: int = 0, length: int | None = None
    ) -> AsyncIterator[OpenObject]:
        """Open an object, or a range of it, as long as the block lasts.

        What `OpenObject.chunks` yields is authentic, but it is complete only when the iteration
        ends without an error.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8.
            start: The first byte; a negative one counts from the object's end.
            length: Bytes at most, or None for all from `start` on.

        Yields:
            The object: its length, its metadata, and its body as a stream.

        Raises:
            MalformedRequestError: a name or the range is not valid.
            UnauthorizedError: not the project's current API key, or no such project.
            NotFoundError: there is no object, or it was deleted.
            RangeNotSatisfiableError: the object ends before `start`.
            CodedError: any other refusal of the gateway, such as `corrupt_object`.
            GatewayError: the gateway cannot be reached, or its response is not valid.
        """
        try:
            span = ByteRange(start, length)
        except ValueError as exc:
            raise MalformedRequestError(str(exc)) from exc
        async with self._object("GET", project, object_key, span) as (response, by_storage):
            size_bytes, length_bytes = content_lengths(
                response.status, response.headers, span, by_storage=by_storage
            )
            info = object_info(size_bytes, response.headers, by_storage=by_storage)
            yield OpenObject(info, length_bytes, response)

    async def stat(self, project: str, object_key: str) -> ObjectInfo:
        """An object's size and metadata, without its body.

        Of an encrypted object the gateway has authenticated the size, and nothing else.

        Raises:
            MalformedRequestError: a name is not valid.
            UnauthorizedError: not the project's current API key, or no such project.
            NotFoundError: there is no object, or it was deleted.
            GatewayError: the gateway cannot be reached, or refuses with a status that several
                codes share: a response to HEAD has no body that would name the code.
        """
        async with self._object("HEAD", project, object_key, _WHOLE) as (response, by_storage):
            size_bytes, _ = content_lengths(
                response.status, response.headers, _WHOLE, by_storage=by_storage
            )
            return object_info(size_bytes, response.headers, by_storage=by_storage)

    async def upload(
        self,
        project: str,
        object_key: str,
        body: Body,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        wait_s: int | None = None,
    ) -> UploadReceipt:
        """Upload one object. It is sent once: the gateway gives each request a new id.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8; objects are written once.
            body: Bytes, a path, a binary file, or an async iterable of bytes of any length.
            content_type: As in HTTP; not authenticated.
            metadata: The caller's own, at most 1 KiB of names and values; not authenticated.
            wait_s: Seconds, 1 or more, that the gateway may wait until the object is stored;
                None responds once the request is on its queue.

        Returns:
            The upload's id, and whether the object is stored already.

        Raises:
            MalformedRequestError: a name, the content type or the metadata is not allowed.
            UnauthorizedError: not the project's current API key, or no such project.
            AlreadyExistsError: the key holds another object; raised only while waiting.
            CodedError: any other refusal of the gateway.
            GatewayUnavailableError: it cannot be reached; nothing was sent.
            ResponseLostError: the object may be stored, or not; check with `stat`.
            UnexpectedResponseError: likewise, if its status is 500 or more.
        """
        if wait_s is not None and wait_s < 1:
            raise MalformedRequestError("wait_s is 1 or more")
        headers = {} if wait_s is None else {"Prefer": f"wait={wait_s}"}
        if content_type:
            headers["Content-Type"] = check_content_type(content_type)
        for name, value in encode_caller_metadata(metadata or {}).items():
            headers[META_PREFIX + name] = value
        status, fields = await self._send(
            "PUT",
            _object_path(project, object_key),
            headers,
            RequestBody(body),
            (_CREATED, _ACCEPTED),
            wait_s or 0,
        )
        return UploadReceipt(_required_id(status, fields, "upload_id"), stored=status == _CREATED)

    async def rotate(self, project: str, new_api_key: ApiKey) -> str:
        """Request a rotation of the project's key; return the rotation's id.

        The current API key is valid until the rotation is accepted, and the new one from then
        on: follow the rotation by `with_api_key(new_api_key)` and `rotation`.

        Args:
            project: The project's id (SPEC 1).
            new_api_key: Its new secret; save it before you call this.

        Raises:
            MalformedRequestError: the project or the API key does not have the form of SPEC 1.
            UnauthorizedError: not the project's current API key, or no such project.
            CodedError: any other refusal of the gateway.
            GatewayUnavailableError: it cannot be reached; nothing was sent.
            ResponseLostError: the new API key may become valid, or not: keep both.
            UnexpectedResponseError: likewise, if its status is 500 or more.
        """
        secret = _checked_api_key(new_api_key)
        status, fields = await self._send(
            "POST",
            f"{_project_path(project)}/rotations",
            {"Content-Type": "application/json"},
            RequestBody(orjson.dumps({"api_key": secret.get_secret_value()})),
            (_ACCEPTED,),
            secret=secret,
        )
        return _required_id(status, fields, "rotation_id")

    async def rotation(self, project: str, rotation_id: str) -> dict[str, Any]:
        """The state of a rotation (SPEC 9): a JSON object with `state`, `counts` and more.

        Args:
            project: The project's id (SPEC 1).
            rotation_id: As `rotate` returned it.

        Raises:
            MalformedRequestError: a name or the id is not valid.
            UnauthorizedError: not the current API key, which a rotation changes.
            NotFoundError: no rotation of that id is known.
            GatewayError: the gateway cannot be reached, or its response is not valid.
        """
        if not is_uuid(rotation_id):
            raise MalformedRequestError("a rotation's id is a UUID in lower case")
        path = f"{_project_path(project)}/rotations/{rotation_id}"
        response = await self._transport.read("GET", path, {}, self._api_key)
        try:
            body = await self._transport.body_of(response)
            if body is None:
                raise GatewayUnavailableError("the gateway's response was cut short")
            if response.status != _OK:
                raise self._error(response, body)
            fields = json_object(body)
        finally:
            response.close()
        if fields.get("rotation_id") != rotation_id or not isinstance(fields.get("state"), str):
            raise UnexpectedResponseError(
                "the response describes another rotation, or none", status=_OK
            )
        return fields

    @asynccontextmanager
    async def _object(
        self, method: str, project: str, object_key: str, span: ByteRange
    ) -> "AsyncIterator[tuple[aiohttp.ClientResponse, bool]]":
        """The response about an object, and whether it came from the storage (SPEC 9.3)."""
        headers = {} if span.is_whole else {"Range": span.header}
        path = _object_path(project, object_key)
        response = await self._transport.read(method, path, headers, self._api_key)
        try:
            if by_storage := response.status == _REDIRECT:
                redirected = await self._transport.follow(response, headers)
                response.close()
                response = redirected
            if response.status not in (_OK, _PARTIAL):
                if by_storage:
                    raise storage_response_error(response.status)
                raise await self._object_error(response)
            yield response, by_storage
        finally:
            # If the body was read to its end, the connection is in the pool already.
            response.close()

    async def _object_error(self, response: "aiohttp.ClientResponse") -> Exception:
        if response.method == "HEAD":
            return self._error(response, None)
        body = await self._transport.body_of(response)
        if body is None:
            return GatewayUnavailableError("the gateway's response was cut short")
        return self._error(response, body)

    async def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        request_body: RequestBody,
        done: tuple[int, ...],
        wait_s: int = 0,
        *,
        secret: SecretStr | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Send a request; return status and document of a response whose status is in `done`."""
        response = await self._transport.send(
            method, path, headers, self._api_key, request_body, wait_s=wait_s
        )
        try:
            received = await self._transport.body_of(response)
            if received is None:
                raise ResponseLostError("the gateway's response was cut short")
            if response.status not in done:
                raise self._error(response, received, secret)
            return response.status, json_object(received)
        finally:
            response.close()

    def _error(
        self,
        response: "aiohttp.ClientResponse",
        body: bytes | None,
        secret: SecretStr | None = None,
    ) -> Exception:
        held = (self._api_key, secret)
        secrets = tuple(one.get_secret_value() for one in held if one is not None)
        return response_error(response.status, response.headers, body, secrets=secrets)


def _checked_api_key(api_key: ApiKey) -> SecretStr:
    secret = api_key if isinstance(api_key, SecretStr) else SecretStr(api_key)
    try:
        check_api_key(secret.get_secret_value())
    except ValueError as exc:
        raise MalformedRequestError(str(exc)) from exc
    return secret


def _project_path(project: str) -> str:
    if not is_project(project):
        raise MalformedRequestError("a project id has 1 to 63 characters of a-z, 0-9 and -")
    return f"/v1/projects/{project}"


def _object_path(project: str, object_key: str) -> str:
    try:
        check_object_key(object_key)
    except ValueError as exc:
        raise MalformedRequestError(str(exc)) from exc
    return f"{_project_path(project)}/objects/{quote(object_key, safe=_UNRESERVED)}"


def _required_id(status: int, fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not is_uuid(value):
        raise UnexpectedResponseError(f"the response has no {name}", status=status)
    return value
