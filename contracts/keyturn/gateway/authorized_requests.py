"""Requests with one API key, and what becomes of their responses (SPEC 9, 12).

A response with another status than expected is raised as the error that it means, without the
secrets of the request.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from keyturn.errors import GatewayUnavailableError, ResponseLostError
from keyturn.gateway.request_body import RequestBody
from keyturn.gateway.responses import (
    ByteRange,
    json_object,
    response_error,
    storage_response_error,
)
from keyturn.gateway.transport import RESPONSE_MAX_BYTES, Transport

if TYPE_CHECKING:
    import aiohttp

_OK, _PARTIAL, _REDIRECT = 200, 206, 307


class AuthorizedRequests:
    """Sends requests with an API key.

    Args:
        transport: The connections.
        api_key: The project's current API key.
    """

    def __init__(self, transport: Transport, api_key: SecretStr) -> None:
        self._transport = transport
        self._api_key = api_key

    async def read(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        done: int = _OK,
        max_bytes: int = RESPONSE_MAX_BYTES,
    ) -> dict[str, Any]:
        """The document of a response to a request that changes nothing.

        Args:
            method: Its method.
            path: Its path and query, encoded.
            body: A JSON document to send, or None.
            done: The status of success.
            max_bytes: The longest document; a longer one counts as empty.

        Raises:
            GatewayUnavailableError: there is no response, or a part of one.
            CodedError, UnexpectedResponseError: the response has another status.
        """
        headers = {} if body is None else {"Content-Type": "application/json"}
        response = await self._transport.read(method, path, headers, self._api_key, body)
        try:
            is_done = response.status == done
            received = await self._transport.body_of(
                response, max_bytes=max_bytes if is_done else RESPONSE_MAX_BYTES
            )
            if received is None:
                raise GatewayUnavailableError("the gateway's response was cut short")
            if not is_done:
                raise self._error(response, received)
            return json_object(received)
        finally:
            response.close()

    async def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        request_body: RequestBody | None,
        done: tuple[int, ...],
        *,
        wait_s: int = 0,
        secret: SecretStr | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Send a request once; return status and document of a response of success.

        Args:
            method: Its method.
            path: Its path, encoded.
            headers: Its headers.
            request_body: Its body, or None.
            done: The statuses of success.
            wait_s: Seconds that the gateway was asked to wait.
            secret: What of the body no error may repeat.

        Raises:
            GatewayUnavailableError: nothing was sent.
            ResponseLostError: there is no response, or a part of one.
            CodedError, UnexpectedResponseError: the response has another status.
        """
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

    @asynccontextmanager
    async def object(
        self, method: str, path: str, span: ByteRange
    ) -> "AsyncIterator[tuple[aiohttp.ClientResponse, bool]]":
        """The response about an object, and whether it came from the storage (SPEC 9.3)."""
        headers = {} if span.is_whole else {"Range": span.header}
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

    def _error(
        self,
        response: "aiohttp.ClientResponse",
        body: bytes | None,
        secret: SecretStr | None = None,
    ) -> Exception:
        held = (self._api_key, secret)
        secrets = tuple(one.get_secret_value() for one in held if one is not None)
        return response_error(response.status, response.headers, body, secrets=secrets)
