"""The gateway's client: what a service imports to read, and to send, with an API key alone.

    async with Client.connect("https://files.example.com", api_key) as client:
        async with client.open("acme", "reports/q3.pdf") as opened:
            async for piece in opened.chunks():
                ...

It carries out the caller's half of SPEC 9. Names are checked before anything is sent. The
API key is sent to the gateway's own address alone, never where that redirects, so use
https wherever the way there is not your own machine.
It must never log or raise an API key or a body, and never sends an upload or a rotation twice.
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

_CALLER: Final = 3  # frames up to whoever enters `connect`: its own, and contextlib's
CONNECT_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 60.0
_UNRESERVED: Final = "/-_.~"
_WHOLE: Final = ByteRange(0, None)
_OK, _CREATED, _ACCEPTED, _PARTIAL, _REDIRECT = 200, 201, 202, 206, 307


@dataclass(frozen=True, slots=True)
class UploadReceipt:
    """An upload that the gateway has taken on.

    Args:
        upload_id: Its id, under which its event is told too.
        stored: Whether the object stands by now; else it will, or its refusal is told.
    """

    upload_id: str
    stored: bool


class Client:
    """One project's way to a gateway. Made by `connect`; safe for concurrent use."""

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
        """A client, and its connections, for as long as the block lasts.

        Args:
            url: The gateway's address, such as `https://files.example.com`.
            api_key: The project's current API key.
            connect_timeout_s: Seconds for one connection to be made.
            idle_timeout_s: Seconds without any progress, after which a request fails.
            max_connections: How many at once; further requests wait for one.

        Warns:
            UnencryptedGatewayWarning: an `http://` address that is not of this machine.

        Raises:
            MalformedRequestError: the API key is not of the form of SPEC 1.
            SettingsError: the URL is none of a gateway, or aiohttp is not installed.
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
        """A client with another API key on the same connections, for as long as this one lasts.

        That is another project's, or the new one of a rotation.

        Raises:
            MalformedRequestError: the API key is not of the form of SPEC 1.
        """
        return type(self)(self._transport, api_key)

    @asynccontextmanager
    async def open(
        self, project: str, object_key: str, *, start: int = 0, length: int | None = None
    ) -> AsyncIterator[OpenObject]:
        """Open an object, or a range of it, for as long as the block lasts.

        What `chunks` gives is authentic, but it is the whole only once that ends cleanly:
        see there.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8.
            start: The first byte wanted; a negative one counts from the end.
            length: How many bytes at most, or None for all from `start` on.

        Raises:
            MalformedRequestError: a name, or the range, is none that can be asked for.
            UnauthorizedError: not the project's current API key, or no such project.
            NotFoundError: nothing stands there.
            RangeNotSatisfiableError: the object ends before `start`.
            CodedError: what else the gateway refuses with: `corrupt_object`, ….
            GatewayError: the gateway cannot be reached, or its answer is none.
        """
        try:
            span = ByteRange(start, length)
        except ValueError as exc:
            raise MalformedRequestError(str(exc)) from exc
        async with self._object("GET", project, object_key, span) as (answer, by_storage):
            size_bytes, length_bytes = content_lengths(
                answer.status, answer.headers, span, by_storage=by_storage
            )
            info = object_info(size_bytes, answer.headers, by_storage=by_storage)
            yield OpenObject(info, length_bytes, answer)

    async def stat(self, project: str, object_key: str) -> ObjectInfo:
        """What is told of an object, without its body.

        The gateway has authenticated an encrypted object's length, and nothing else of it.

        Raises:
            MalformedRequestError: a name is not of the form that it must have.
            UnauthorizedError: not the project's current API key, or no such project.
            NotFoundError: nothing stands there.
            GatewayError: the gateway cannot be reached, or refuses with a status that may
                mean several codes: an answer to HEAD has no body that would tell.
        """
        async with self._object("HEAD", project, object_key, _WHOLE) as (answer, by_storage):
            size_bytes, _ = content_lengths(
                answer.status, answer.headers, _WHOLE, by_storage=by_storage
            )
            return object_info(size_bytes, answer.headers, by_storage=by_storage)

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
        """Hand in one object. It is sent once: the gateway gives each request an id of its own.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8; objects are written once.
            body: Bytes, a path, a binary file, or an async iterable of bytes of any length.
            content_type: As in HTTP; not authenticated.
            metadata: The caller's own, at most 1 KiB; not authenticated.
            wait_s: Seconds that the gateway may wait until the object is stored.

        Raises:
            MalformedRequestError: a name, the content type or the metadata is not allowed.
            UnauthorizedError: not the project's current API key, or no such project.
            AlreadyExistsError: the key holds another object; told only while waiting.
            CodedError: what else the gateway refuses with.
            GatewayUnavailableError: it cannot be reached; nothing was sent.
            ResponseLostError: the object may be stored, or may not; look with `stat`.
            UnexpectedResponseError: as that, where its status is 500 or more.
        """
        if wait_s is not None and wait_s < 1:
            raise MalformedRequestError("wait_s is 1 or more")
        headers = {} if wait_s is None else {"Prefer": f"wait={wait_s}"}
        if content_type:
            headers["Content-Type"] = check_content_type(content_type)
        for name, value in encode_caller_metadata(metadata or {}).items():
            headers[META_PREFIX + name] = value
        status, told = await self._send(
            "PUT",
            _object_path(project, object_key),
            headers,
            RequestBody(body),
            (_CREATED, _ACCEPTED),
            wait_s or 0,
        )
        return UploadReceipt(_told_id(status, told, "upload_id"), stored=status == _CREATED)

    async def rotate(self, project: str, new_api_key: ApiKey) -> str:
        """Ask for the project's key to be turned; return the rotation's id.

        The current API key holds until the rotation is accepted, from then on the new one:
        follow it by `with_api_key(new_api_key)` and `rotation`.

        Args:
            project: The project's id (SPEC 1).
            new_api_key: Its new secret; save it before this is called.

        Raises:
            MalformedRequestError: the project, or the API key, is not of the form of SPEC 1.
            UnauthorizedError: not the project's current API key, or no such project.
            CodedError: what else the gateway refuses with.
            GatewayUnavailableError: it cannot be reached; nothing was sent.
            ResponseLostError: the new API key may be in force soon, or may not: keep both.
            UnexpectedResponseError: as that, where its status is 500 or more.
        """
        secret = _checked_api_key(new_api_key)
        status, told = await self._send(
            "POST",
            f"{_project_path(project)}/rotations",
            {"Content-Type": "application/json"},
            RequestBody(orjson.dumps({"api_key": secret.get_secret_value()})),
            (_ACCEPTED,),
            secret=secret,
        )
        return _told_id(status, told, "rotation_id")

    async def rotation(self, project: str, rotation_id: str) -> dict[str, Any]:
        """How far a rotation is, as the gateway tells it: `state`, `counts` and more.

        Raises:
            MalformedRequestError: a name or the id is not of the form that it must have.
            UnauthorizedError: not the current API key, which a rotation changes.
            NotFoundError: no rotation of that id is known.
            GatewayError: the gateway cannot be reached, or its answer is none.
        """
        if not is_uuid(rotation_id):
            raise MalformedRequestError("a rotation's id is a UUID in lower case")
        path = f"{_project_path(project)}/rotations/{rotation_id}"
        answer = await self._transport.read("GET", path, {}, self._api_key)
        try:
            body = await self._transport.body_of(answer)
            if body is None:
                raise GatewayUnavailableError("the gateway's answer was cut")
            if answer.status != _OK:
                raise self._refusal(answer, body)
            told = json_object(body)
        finally:
            answer.close()
        if told.get("rotation_id") != rotation_id or not isinstance(told.get("state"), str):
            raise UnexpectedResponseError("the answer tells of no rotation", status=_OK)
        return told

    @asynccontextmanager
    async def _object(
        self, method: str, project: str, object_key: str, span: ByteRange
    ) -> "AsyncIterator[tuple[aiohttp.ClientResponse, bool]]":
        """The answer about an object, and whether it is the storage's own (SPEC 9.3)."""
        headers = {} if span.is_whole else {"Range": span.header}
        path = _object_path(project, object_key)
        answer = await self._transport.read(method, path, headers, self._api_key)
        try:
            if by_storage := answer.status == _REDIRECT:
                onward = await self._transport.follow(answer, headers)
                answer.close()
                answer = onward
            if answer.status not in (_OK, _PARTIAL):
                if by_storage:
                    raise storage_response_error(answer.status)
                raise await self._object_refusal(answer)
            yield answer, by_storage
        finally:
            # Of a body read to its end the connection went back to the pool already.
            answer.close()

    async def _object_refusal(self, answer: "aiohttp.ClientResponse") -> Exception:
        if answer.method == "HEAD":
            return self._refusal(answer, None)
        body = await self._transport.body_of(answer)
        if body is None:
            return GatewayUnavailableError("the gateway's answer was cut")
        return self._refusal(answer, body)

    async def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        sending: RequestBody,
        done: tuple[int, ...],
        wait_s: int = 0,
        *,
        secret: SecretStr | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Send a request; the status and the document of an answer that is `done`."""
        answer = await self._transport.send(
            method, path, headers, self._api_key, sending, wait_s=wait_s
        )
        try:
            told = await self._transport.body_of(answer)
            if told is None:
                raise ResponseLostError("the gateway's answer was cut")
            if answer.status not in done:
                raise self._refusal(answer, told, secret)
            return answer.status, json_object(told)
        finally:
            answer.close()

    def _refusal(
        self, answer: "aiohttp.ClientResponse", body: bytes | None, secret: SecretStr | None = None
    ) -> Exception:
        held = (self._api_key, secret)
        secrets = tuple(one.get_secret_value() for one in held if one is not None)
        return response_error(answer.status, answer.headers, body, secrets=secrets)


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


def _told_id(status: int, told: Mapping[str, Any], name: str) -> str:
    value = told.get(name)
    if not isinstance(value, str) or not is_uuid(value):
        raise UnexpectedResponseError(f"the answer tells no {name}", status=status)
    return value
