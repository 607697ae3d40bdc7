"""`Client`: the client by which a service works with objects with only an API key (SPEC 9).

It is the caller's half of SPEC 9. Names are checked before anything is sent. The API key is sent
only to the gateway's own address, never to a redirect's target: use https unless the gateway runs
on the same machine. A body is yielded as it arrives and ends cleanly only if all of it arrived: the
only sign of a chunk that does not authenticate is that the gateway ends the connection.

It must never log or raise an API key, a body or a link, and never send an upload, a delete or a
rotation twice.
"""

import ssl
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload
from urllib.parse import quote

import orjson
from pydantic import SecretStr

from keyturn.api_key import ApiKey
from keyturn.crypto.keys import check_api_key
from keyturn.errors import (
    IncompleteBodyError,
    MalformedRequestError,
    UnencryptedGatewayWarning,
    UnexpectedResponseError,
)
from keyturn.gateway.keys import KEYS_MAX_BYTES, ProjectKeys, parse_keys
from keyturn.gateway.links import (
    CIPHERTEXT_LINK_MAX_S,
    CiphertextLink,
    Link,
    UploadLink,
    ciphertext_link_request,
    link_request,
    parse_ciphertext_link,
    parse_link,
    parse_upload_link,
    upload_link_request,
)
from keyturn.gateway.listing import (
    PAGE_MAX_BYTES,
    PAGE_MAX_ENTRIES,
    Entry,
    ListedObject,
    ListedPrefix,
    PageRequest,
    parse_page,
)
from keyturn.gateway.responses import (
    META_PREFIX,
    ByteRange,
    ObjectBody,
    ObjectInfo,
    content_lengths,
    object_info,
)
from keyturn.gateway.transport import (
    CONNECT_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    MAX_CONNECTIONS,
    AuthorizedRequests,
    Transport,
    Write,
    is_unencrypted,
    next_piece,
)
from keyturn.gateway.uploads import (
    UPLOAD_WAIT_S,
    UPLOADED,
    UploadReceipt,
    receipt_of,
    required_id,
)
from keyturn.identifiers import check_object_key, is_project, is_uuid
from keyturn.messages.fields import DELETED_KEYS
from keyturn.metadata import check_content_type, encode_caller_metadata
from keyturn.publisher.staging import Body

if TYPE_CHECKING:
    import aiohttp

_CALLER: Final = 3  # frames up to the caller of `connect`: its own, and contextlib's
# For 1,000 keys, each with the longest detail.
DELETES_MAX_BYTES: Final = 4 * 1024 * 1024
_WHOLE: Final = ByteRange(0, None)
_UNRESERVED: Final = "/-_.~"
_JSON: Final = {"Content-Type": "application/json"}
_OK, _CREATED, _ACCEPTED, _NO_CONTENT = 200, 201, 202, 204


@dataclass(frozen=True, slots=True)
class DeleteReceipt:
    """A delete that the gateway has accepted.

    Attributes:
        request_id: Its id, as in its event. None if `deleted`: the response has no id.
        deleted: True if the object is deleted. If not, it will be, or an event has the reason.
    """

    request_id: str | None
    deleted: bool


@dataclass(frozen=True, slots=True)
class RejectedKey:
    """A key of a delete that was not deleted.

    Attributes:
        key: The object's key.
        code: The reason (SPEC 12), such as `not_found` or `locked_object`.
        detail: One line for a person.
    """

    key: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class DeleteManyReceipt:
    """A delete of many keys that the gateway has accepted.

    Attributes:
        request_id: Its id, as in its events.
        is_final: True if each key has its outcome. If not, the keys in neither list will be
            deleted, or an event has the reason.
        deleted: The deleted keys.
        rejected: The rejected keys, with the reasons.
    """

    request_id: str
    is_final: bool
    deleted: tuple[str, ...]
    rejected: tuple[RejectedKey, ...]


class OpenObject(ObjectBody):
    """An object, or a range of one, whose body is not read yet. Made by `Client.open`.

    Args:
        info: Its size and metadata.
        length: Bytes of plaintext to come, of the whole object or the range.
        response: The open response; its owner closes it.
    """

    def __init__(self, info: ObjectInfo, length: int, response: "aiohttp.ClientResponse") -> None:
        super().__init__(info, length)
        self._answer = response
        self._left_bytes = length

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in pieces of any size, once; a second call continues after the first.

        Every piece is authentic when it is yielded. The pieces are the whole object, or range,
        only if the iteration ends without an error.

        Raises:
            IncompleteBodyError: the body ended before its length, or stalled.
        """
        while self._left_bytes:
            piece = await next_piece(self._answer)
            if not piece:
                raise IncompleteBodyError("the body ended before its length")
            self._left_bytes -= len(piece)
            yield piece


class Client:
    """Access to one project through a gateway. Made by `connect`; safe for concurrent use."""

    def __init__(self, transport: Transport, api_key: ApiKey) -> None:
        self._transport = transport
        self._requests = AuthorizedRequests(transport, _checked_api_key(api_key))

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
        tls: ssl.SSLContext | None = None,
    ) -> AsyncIterator[Self]:
        """Yield a client; it connects when needed.

        Args:
            url: The gateway's address, such as `https://files.example.com`.
            api_key: The project's current API key.
            connect_timeout_s: Seconds to make one connection.
            idle_timeout_s: Seconds without progress after which a request fails.
            max_connections: Connections at once; further requests wait for one.
            tls: The authorities that verify the gateway's certificate; the system's by default.

        Warns:
            UnencryptedGatewayWarning: an `http://` address of another machine.

        Raises:
            TypeError: the API key is not text, such as the None of an unset variable.
            MalformedRequestError: the API key does not have the form of SPEC 1.
            SettingsError: the URL cannot be a gateway's, or aiohttp is not installed.
        """
        async with Transport.open(
            url,
            connect_timeout_s=connect_timeout_s,
            idle_timeout_s=idle_timeout_s,
            max_connections=max_connections,
            tls=tls,
        ) as transport:
            if is_unencrypted(url):
                text = "the API key goes to the gateway unencrypted: use https://"
                warnings.warn(text, UnencryptedGatewayWarning, stacklevel=_CALLER)
            yield cls(transport, api_key)

    def with_api_key(self, api_key: ApiKey) -> Self:
        """Return a client with another API key, on this one's connections and with their life.

        Args:
            api_key: Another project's, or the new one after a rotation.

        Raises:
            TypeError: the API key is not text.
            MalformedRequestError: the API key does not have the form of SPEC 1.
        """
        return type(self)(self._transport, api_key)

    @asynccontextmanager
    async def open(
        self, project: str, object_key: str, *, start: int = 0, length: int | None = None
    ) -> AsyncIterator[OpenObject]:
        """Open an object, or a range of it, for the duration of the block.

        The pieces of `OpenObject.chunks` are authentic, but complete only when the iteration ends
        without an error.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8.
            start: The first byte; a negative one counts from the object's end.
            length: The maximum of bytes, or None for all from `start` on.

        Yields:
            The object: its length, its metadata, and its body as a stream.

        Raises:
            MalformedRequestError: a name or the range is not valid.
            UnauthorizedError: not the project's current API key, or no such project.
            NotFoundError: there is no object, or it was deleted.
            RangeNotSatisfiableError: the object ends before `start`.
            CodedError: any other rejection by the gateway, such as `corrupt_object`.
            GatewayError: the gateway cannot be reached, or its response is not valid.
        """
        try:
            span = ByteRange(start, length)
        except ValueError as exc:
            raise MalformedRequestError(str(exc)) from exc
        path = _object_path(project, object_key)
        async with self._requests.object("GET", path, span) as (response, by_storage):
            size_bytes, length_bytes = content_lengths(
                response.status, response.headers, span, by_storage=by_storage
            )
            info = object_info(size_bytes, response.headers, by_storage=by_storage)
            yield OpenObject(info, length_bytes, response)

    async def stat(self, project: str, object_key: str) -> ObjectInfo:
        """Return an object's size and metadata, without its body.

        For an encrypted object, the gateway has authenticated the size, and nothing else.

        Raises:
            MalformedRequestError: a name is not valid.
            UnauthorizedError: not the project's current API key, or no such project.
            NotFoundError: there is no object, or it was deleted.
            GatewayError: the gateway cannot be reached, or rejects with a status that several codes
                share: a response to HEAD has no body that would name the code.
        """
        path = _object_path(project, object_key)
        async with self._requests.object("HEAD", path, _WHOLE) as (response, by_storage):
            size_bytes, _ = content_lengths(
                response.status, response.headers, _WHOLE, by_storage=by_storage
            )
            return object_info(size_bytes, response.headers, by_storage=by_storage)

    @overload
    def list(
        self,
        project: str,
        *,
        prefix: str = "",
        delimiter: None = None,
        after: str = "",
        page_size: int = PAGE_MAX_ENTRIES,
    ) -> AsyncGenerator[ListedObject, None]: ...

    @overload
    def list(
        self,
        project: str,
        *,
        prefix: str = "",
        delimiter: Literal["/"],
        after: str = "",
        page_size: int = PAGE_MAX_ENTRIES,
    ) -> AsyncGenerator[ListedObject | ListedPrefix, None]: ...

    def list(
        self,
        project: str,
        *,
        prefix: str = "",
        delimiter: Literal["/"] | None = None,
        after: str = "",
        page_size: int = PAGE_MAX_ENTRIES,
    ) -> AsyncGenerator[Any, None]:
        """List objects in the byte order of their keys, without deleted ones.

        If the storage lists by paths, as SeaweedFS does, in that order: `a/x` before `a-b`. Pages
        are requested as the iteration reaches them. After an error, a new call with `after`
        continues after the last entry.

        Args:
            project: The project's id (SPEC 1).
            prefix: The beginning of the keys.
            delimiter: `/` to list one level: all keys with the same text up to the first `/`
                after the prefix are one `ListedPrefix`.
            after: The entry to continue after: a key or, with a delimiter, a prefix.
            page_size: The maximum of entries per request, 1 to 1000.

        Yields:
            The objects and, with a delimiter, the prefixes.

        Raises:
            MalformedRequestError: a name or a number is not valid; raised by the call itself.
            UnauthorizedError: not the project's current API key, or no such project.
            CodedError: any other rejection by the gateway.
            GatewayError: the gateway cannot be reached, or its response is not valid.
        """
        request = PageRequest(prefix, delimiter, after, page_size)
        return self._entries(_project_path(project, "objects"), request)

    async def _entries(self, path: str, request: PageRequest) -> AsyncGenerator[Entry, None]:
        while True:
            document = await self._requests.read(
                "GET", f"{path}?{request.query}", max_bytes=PAGE_MAX_BYTES
            )
            page = parse_page(document, request)
            for entry in page.entries:
                yield entry
            if page.following is None:
                return
            request = page.following

    async def upload(
        self,
        project: str,
        object_key: str,
        body: Body,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        wait: bool = True,
        wait_s: int = UPLOAD_WAIT_S,
    ) -> UploadReceipt:
        """Upload one object, and return once it is stored.

        The body is sent once: the gateway gives each request a new id.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8; objects are written once.
            body: Bytes, a path, a binary file, or an async iterable of bytes of any length.
            content_type: As in HTTP; not authenticated.
            metadata: The caller's own, at most 1 KiB of names and values; not authenticated.
            wait: True to wait until the object is stored, False to return once the request is on
                its queue. Then a later rejection is only in events.
            wait_s: The maximum wait in seconds, 1 or more. The gateway may grant less (60 by
                default).

        Returns:
            The upload's id, and whether the object is stored.

        Raises:
            MalformedRequestError: a name, the content type or the metadata is not allowed.
            UnauthorizedError: not the project's current API key, or no such project.
            AlreadyExistsError: the key holds another object.
            CodedError: any other rejection by the gateway or, while waiting, by a worker.
            UploadPendingError: accepted, but the outcome is not known after `wait_s`.
            GatewayUnavailableError: it cannot be reached; nothing was sent.
            ResponseLostError: the object may be stored; check with `stat`.
            UnexpectedResponseError: the same, if its status is 500 or more.
        """
        headers = {"Content-Type": check_content_type(content_type)} if content_type else {}
        for name, value in encode_caller_metadata(metadata or {}).items():
            headers[META_PREFIX + name] = value
        write = Write(
            "PUT",
            _object_path(project, object_key),
            UPLOADED,
            body,
            headers,
            wait_s=wait_s if wait else None,
        )
        return receipt_of(*await self._requests.send(write), wait=wait)

    async def delete(
        self, project: str, object_key: str, *, wait_s: int | None = None
    ) -> DeleteReceipt:
        """Delete one object. Its key can never be used again.

        The request is sent once; a second one does no harm.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8.
            wait_s: Seconds, 1 or more, that the gateway may wait for the delete, which takes two
                leases (30 seconds by default); None returns once the request is on its queue.

        Returns:
            Whether the object is already deleted, and otherwise the request's id.

        Raises:
            MalformedRequestError: a name is not valid.
            UnauthorizedError: not the project's current API key, or no such project.
            NotFoundError: there is no object, and the key was not deleted before.
            NotPermittedError: this gateway does not delete objects.
            TooManyRequestsError: the project has too many deletes pending.
            CodedError: any other rejection by the gateway.
            GatewayUnavailableError: it cannot be reached; nothing was sent.
            ResponseLostError: the object may be deleted; delete it again.
            UnexpectedResponseError: the same, if its status is 500 or more.
        """
        path = _object_path(project, object_key)
        write = Write("DELETE", path, (_ACCEPTED, _NO_CONTENT), wait_s=wait_s)
        status, fields = await self._requests.send(write)
        if status == _NO_CONTENT:
            return DeleteReceipt(None, deleted=True)
        return DeleteReceipt(required_id(status, fields, "request_id"), deleted=False)

    async def delete_many(
        self, project: str, object_keys: Sequence[str], *, wait_s: int | None = None
    ) -> DeleteManyReceipt:
        """Delete up to 1,000 objects, which takes no longer than one. Errors as `delete`.

        The request is sent once; a second one does no harm. A rejected key does not prevent the
        delete of the others.

        Args:
            project: The project's id (SPEC 1).
            object_keys: 1 to 1,000 keys, each once.
            wait_s: As for `delete`.

        Returns:
            The deleted and the rejected keys, as far as known at the end of the wait. Without a
            wait, only keys without an object are known.

        Raises:
            MalformedRequestError: a name is not valid, or occurs twice, or there are too many.
            NotFoundError: none of the keys has an object, or was deleted before.
            TooManyRequestsError: the project has too many keys with a pending delete.
        """
        path = _project_path(project, "deletes")
        if not 1 <= len(object_keys) <= DELETED_KEYS or len(set(object_keys)) < len(object_keys):
            raise MalformedRequestError(f"a delete names 1 to {DELETED_KEYS} keys, each once")
        for key in object_keys:
            _object_path(project, key)
        write = Write(
            "POST",
            path,
            (_OK, _ACCEPTED),
            orjson.dumps({"keys": list(object_keys)}),
            _JSON,
            wait_s=wait_s,
            max_bytes=DELETES_MAX_BYTES,
        )
        status, fields = await self._requests.send(write)
        return DeleteManyReceipt(
            required_id(status, fields, "request_id"),
            status == _OK,
            *outcomes_of_keys(status, fields, object_keys),
        )

    async def link(
        self, project: str, object_key: str, *, expires_s: int = 3600, inline: bool = False
    ) -> Link:
        """Return a URL that opens one object without the API key, for a browser or another person.

        Anyone who has the URL can read the object. It ends when it expires, or with the next
        rotation of the project's key. The object need not exist yet.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8.
            expires_s: The validity in seconds, 1 to 604800 (7 days).
            inline: True to let a browser show the object instead of saving it.

        Raises:
            MalformedRequestError: a name or `expires_s` is not valid.
            UnauthorizedError: not the project's current API key, or no such project.
            CodedError: any other rejection by the gateway.
            GatewayError: the gateway cannot be reached, or its response is not valid.
        """
        requesting = self._request_link(project, object_key, link_request(expires_s, inline=inline))
        link = parse_link(await requesting, project, object_key, inline=inline)
        if link is None:
            raise _no_such_link()
        return link

    async def ciphertext_link(
        self, project: str, object_key: str, *, expires_s: int = CIPHERTEXT_LINK_MAX_S
    ) -> CiphertextLink:
        """Return a URL of an encrypted object's stored bytes, for a reader that decrypts them.

        The reader needs the API key and the link's `metadata`. A rotation does not revoke the
        URL, so it is valid for 15 minutes at most.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8.
            expires_s: The validity in seconds, 1 to 900.

        Raises:
            MalformedRequestError: a name or `expires_s` is not valid, or the object is not
                encrypted as Cobblestone-256.
            UnauthorizedError: not the project's current API key, or no such project.
            NotFoundError: there is no object, or it was deleted.
            CodedError: any other rejection by the gateway.
            GatewayError: the gateway cannot be reached, or its response is not valid.
        """
        requesting = self._request_link(project, object_key, ciphertext_link_request(expires_s))
        link = parse_ciphertext_link(await requesting)
        if link is None:
            raise _no_such_link()
        return link

    async def upload_link(
        self,
        project: str,
        object_key: str,
        *,
        max_bytes: int,
        content_type: str | None = None,
        expires_s: int = 3600,
    ) -> UploadLink:
        """Return a URL that accepts one body for one object without the API key (`upload_to`).

        Anyone who has the URL can store the object once. It ends when it expires, or with the next
        rotation of the project's key.

        Args:
            project: The project's id (SPEC 1).
            object_key: The object's key, 1 to 900 bytes of UTF-8.
            max_bytes: The largest body, 0 to the largest object of the gateway.
            content_type: The object's content type, and the only one that may be sent; any by
                default.
            expires_s: Seconds in which the upload must begin, 1 to 604800 (7 days).

        Raises:
            MalformedRequestError: a name, a number or the content type is not valid.
            UnauthorizedError: not the project's current API key, or no such project.
            CodedError: any other rejection by the gateway.
            GatewayError: the gateway cannot be reached, or its response is not valid.
        """
        body = upload_link_request(expires_s, max_bytes, content_type)
        requesting = self._request_link(project, object_key, body)
        link = parse_upload_link(await requesting, project, object_key, max_bytes, content_type)
        if link is None:
            raise _no_such_link()
        return link

    async def _request_link(self, project: str, object_key: str, body: bytes) -> dict[str, Any]:
        path = f"{_object_path(project, object_key)}/links"
        return await self._requests.read("POST", path, body=body, done=_CREATED)

    async def keys(self, project: str) -> ProjectKeys:
        """Return what a reader needs that opens the project's objects by itself.

        If the project has a customer key, the reader decrypts each `wrapped` with credentials of
        its own for the customer's KMS, and gives the secrets to `keyturn.open`.

        Args:
            project: The project's id (SPEC 1).

        Raises:
            MalformedRequestError: the project does not have the form of SPEC 1.
            UnauthorizedError: not the project's current API key, or no such project.
            CodedError: any other rejection by the gateway.
            GatewayError: the gateway cannot be reached, or its response is not valid.
        """
        path = _project_path(project, "keys")
        return parse_keys(await self._requests.read("GET", path, max_bytes=KEYS_MAX_BYTES))

    async def rotate(self, project: str, new_api_key: ApiKey) -> str:
        """Request a rotation of the project's key; return the rotation's id.

        The current API key is valid until the rotation is accepted, and the new one from then
        on: follow the rotation by `with_api_key(new_api_key)` and `rotation`.

        Args:
            project: The project's id (SPEC 1).
            new_api_key: Its new secret; save it before this call.

        Raises:
            MalformedRequestError: the project or the API key does not have the form of SPEC 1.
            UnauthorizedError: not the project's current API key, or no such project.
            CodedError: any other rejection by the gateway.
            GatewayUnavailableError: it cannot be reached; nothing was sent.
            ResponseLostError: the new API key may become valid: keep both.
            UnexpectedResponseError: the same, if its status is 500 or more.
        """
        secret = _checked_api_key(new_api_key, "new_api_key")
        write = Write(
            "POST",
            _project_path(project, "rotations"),
            (_ACCEPTED,),
            orjson.dumps({"api_key": secret.get_secret_value()}),
            _JSON,
            secrets=(secret,),
        )
        return required_id(*await self._requests.send(write), "rotation_id")

    async def rotation(self, project: str, rotation_id: str) -> dict[str, Any]:
        """Return the state of a rotation (SPEC 9): a JSON object with `state`, `counts` and more.

        Args:
            project: The project's id (SPEC 1).
            rotation_id: As `rotate` returned it.

        Raises:
            MalformedRequestError: a name or the id is not valid.
            UnauthorizedError: not the current API key, which a rotation changes.
            NotFoundError: no rotation of that id is known.
            GatewayError: the gateway cannot be reached, or its response is not valid.
        """
        path = _project_path(project, "rotations")
        if not is_uuid(rotation_id):
            raise MalformedRequestError("a rotation's id is a UUID in lower case")
        fields = await self._requests.read("GET", f"{path}/{rotation_id}")
        if fields.get("rotation_id") != rotation_id or not isinstance(fields.get("state"), str):
            raise UnexpectedResponseError(
                "the response describes another rotation, or no rotation", status=_OK
            )
        return fields


def _checked_api_key(api_key: ApiKey, name: str = "api_key") -> SecretStr:
    if not isinstance(api_key, str | SecretStr):  # a caller without types passes None
        raise TypeError(f"{name} must be a string, not {type(api_key).__name__}")
    secret = api_key if isinstance(api_key, SecretStr) else SecretStr(api_key)
    try:
        check_api_key(secret.get_secret_value())
    except ValueError as exc:
        raise MalformedRequestError(str(exc)) from exc
    return secret


def _no_such_link() -> UnexpectedResponseError:
    # Raised by callers without a variable for the response: it may be a link to another object.
    return UnexpectedResponseError("the response has no such link", status=_CREATED)


def _object_path(project: str, object_key: str) -> str:
    """Return the path of one object.

    Raises:
        MalformedRequestError: the project or the key does not have the form of SPEC 1.
    """
    try:
        check_object_key(object_key)
    except ValueError as exc:
        raise MalformedRequestError(str(exc)) from exc
    return f"{_project_path(project, 'objects')}/{quote(object_key, safe=_UNRESERVED)}"


def outcomes_of_keys(
    status: int, fields: Mapping[str, Any], object_keys: Sequence[str]
) -> tuple[tuple[str, ...], tuple[RejectedKey, ...]]:
    """Return the deleted and the rejected keys in a response.

    Raises:
        UnexpectedResponseError: it has another form, names a key that was not sent, or is a final
            one without one of the keys.
    """
    deleted, rejected = fields.get("deleted", []), fields.get("rejected")
    wrong = UnexpectedResponseError("the response does not name the keys", status=status)
    if not isinstance(deleted, list) or not isinstance(rejected, list):
        raise wrong
    try:
        refused = tuple(RejectedKey(each["key"], each["code"], each["detail"]) for each in rejected)
    except (KeyError, TypeError):
        raise wrong from None
    texts = [text for each in refused for text in (each.key, each.code, each.detail)]
    if not all(isinstance(text, str) for text in (*deleted, *texts)):
        raise wrong
    named = {*deleted, *(each.key for each in refused)}
    if not named.issubset(object_keys) or (status == _OK and len(named) < len(object_keys)):
        raise wrong
    return tuple(deleted), refused


def _project_path(project: str, folder: str) -> str:
    if not is_project(project):
        raise MalformedRequestError("a project id has 1 to 63 characters of a-z, 0-9 and -")
    return f"/v1/projects/{project}/{folder}"
