"""One exchange with the HTTP API of HashiCorp Vault or OpenBao (SPEC 2.2).

Nothing of a request or of a response gets into an error: a request holds the token, and a response
may repeat it. aiohttp's exceptions can hold both, so the chain of causes ends here.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
import orjson

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn.settings import PREFIX
from keyturn_workers.master_keys.port import KmsRefusedError
from keyturn_workers.settings import KmsSettings

_MAX_RESPONSE_BYTES: Final = 64 * 2**10
# Each exchange is bounded by `asyncio.timeout` of its caller: aiohttp rounds up.
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None)
_REQUEST_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
_HEADER_VALUE: Final = re.compile(r"[!-~]+")
_REDIRECTS: Final = range(300, 400)
_LOST: Final = "the connection to Vault was lost"

_REFUSED: Final = frozenset({400, 401, 403, 404, 405})
_STATUS: Final = {
    404: "no such path: the mount or the key does not exist",
    412: "this node has not caught up with the others",
    429: "too many requests, or a standby node that does not forward them",
    472: "this node is a disaster recovery secondary",
    473: "this node is a performance standby that does not forward requests",
    500: "an internal error, or no node is active yet",
    503: "it is sealed, or in maintenance",
}


@dataclass(frozen=True, slots=True)
class VaultResponse:
    """What the server answered: a status, and a JSON object if there was one.

    `repr` shows the status alone: the body of a login holds a token.
    """

    status: int
    body: Mapping[str, object]

    def __repr__(self) -> str:
        return f"VaultResponse({self.status})"

    @property
    def request_id(self) -> str | None:
        """The server's id of this call, as its audit log has it."""
        value = self.body.get("request_id")
        return value if isinstance(value, str) and _REQUEST_ID.fullmatch(value) else None

    def section(self, name: str) -> Mapping[str, object]:
        """`data` or `auth`; empty if there is none."""
        value = self.body.get(name)
        return value if isinstance(value, dict) else {}

    def says(self, phrase: str) -> bool:
        """Whether one of the server's errors or warnings contains this phrase."""
        texts: list[object] = []
        for name in ("errors", "warnings"):
            value = self.body.get(name)
            texts.extend(value if isinstance(value, list) else [])
        return any(phrase in text for text in texts if isinstance(text, str))

    def failure(self) -> KmsUnavailableError:
        """The error for a status that has no meaning of its own where it was received."""
        kind = KmsRefusedError if self.status in _REFUSED else KmsUnavailableError
        return kind(f"Vault answered {self.status}: {_STATUS.get(self.status, 'unexpected')}")


def header_value(value: str) -> str:
    """Return a value that is fit for a header, without white space around it.

    Raises:
        ValueError: it is empty, or contains a space, a line break or another unprintable character.
    """
    stripped = value.strip()
    if not _HEADER_VALUE.fullmatch(stripped):
        raise ValueError("not one word of printable ASCII")
    return stripped


class VaultHttp:
    """A pool of connections to one server.

    Raises:
        SettingsError: VAULT_NAMESPACE is no header's value, or VAULT_CA_FILE has no certificates.
    """

    def __init__(self, address: str, settings: KmsSettings) -> None:
        self._address = address
        self._tls = _tls(settings)
        # `identity`: a small response could otherwise unpack to a large one.
        self._headers = {"X-Vault-Request": "true", "Accept-Encoding": "identity"}
        if settings.vault_namespace is not None:
            try:
                self._headers["X-Vault-Namespace"] = header_value(settings.vault_namespace)
            except ValueError as exc:
                raise SettingsError(f"{PREFIX}VAULT_NAMESPACE is malformed: {exc}") from None
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        token: Secret | None = None,
        body: Mapping[str, object] | None = None,
        repeat: bool = True,
    ) -> VaultResponse:
        """Send one request to `/v1/{path}`, without following a redirect.

        Args:
            method: GET or POST.
            path: Below `/v1/`; only characters that a URL need not quote.
            token: Sent as `X-Vault-Token`.
            body: Sent as JSON.
            repeat: Whether the request may be sent twice. A server that restarts drops idle
                connections, and the next request on each would fail.

        Raises:
            KmsUnavailableError: no response, a redirect, or not a small JSON object.
        """
        headers = dict(self._headers)
        if token is not None:
            headers["X-Vault-Token"] = token.reveal().decode("ascii")
        data = None if body is None else orjson.dumps(body)
        for last in (not repeat, True):
            try:
                return await self._exchange(method, path, headers, data)
            except (aiohttp.ClientError, OSError, ValueError) as exc:
                cause = _cause(exc)
            if last or cause != _LOST:
                break
        # Raised here, it does not even have aiohttp's error as its context.
        raise KmsUnavailableError(cause)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes | None
    ) -> VaultResponse:
        if self._session is None:
            self._session = self._open_session()
        async with self._session.request(
            method, f"{self._address}/v1/{path}", headers=headers, data=data, allow_redirects=False
        ) as response:
            if response.status in _REDIRECTS:
                # Following it would send the token to another server.
                raise KmsUnavailableError(
                    "Vault redirects to another node: use the cluster's or the active node's "
                    "address"
                )
            return VaultResponse(response.status, await _json_object(response))

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # The caller bounds how many there are. In a full pool busy callers overtake waiting
            # ones, which then run into their time limit.
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_TIMEOUT,
            auto_decompress=False,
        )


async def _json_object(response: aiohttp.ClientResponse) -> Mapping[str, object]:
    content = bytearray()
    async for piece in response.content.iter_any():
        content += piece
        if len(content) > _MAX_RESPONSE_BYTES:
            raise KmsUnavailableError("Vault's response is too large")
    if not content:
        return {}
    try:
        value = orjson.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise KmsUnavailableError(
            f"the response of status {response.status} is not Vault's: not a JSON object"
        )
    return value


def _tls(settings: KmsSettings) -> ssl.SSLContext | bool:
    if settings.vault_ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=settings.vault_ca_file)
    except (OSError, ValueError):
        raise SettingsError(
            f"{PREFIX}VAULT_CA_FILE is not a readable file of PEM certificates"
        ) from None


def _cause(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "Vault's certificate is not valid for this address, or not signed by a trusted CA"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "Vault cannot be reached"
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return _LOST
    return "the response is not Vault's: not valid HTTP"
