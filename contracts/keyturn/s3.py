"""S3 clients for staging and for the workers' storage: sessions that verify servers (SPEC 11).

A client suits servers other than AWS (no checksum trailers, path-style addressing if an endpoint is
set) and resends nothing unless configured to.

aiobotocore's own HTTP session does not verify the server's name: botocore disables that in its TLS
context, since urllib3 compares the name itself, and aiohttp leaves it to the context. There, a
certificate of any host from a trusted authority would pass for the storage's. `VerifiedSession` is
a session for `AioConfig(http_session_cls=...)`, for `https` alone. It follows no redirect: botocore
does, with another signature.

Logging belongs to the host process. At level DEBUG, botocore logs whole requests with their
headers: a process that sets its root logger to DEBUG should keep `botocore` and `aiobotocore`
at WARNING.

This module needs aioboto3, of the extra `keyturn[staging]`: import it only if S3 is used.
"""

import copy
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import urlsplit

import aioboto3
import aiohttp
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.config import Config
from botocore.credentials import ContainerProvider
from botocore.exceptions import (
    BotoCoreError,
    ConfigNotFound,
    ConfigParseError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    InvalidConfigError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.httpsession import ProxyConfiguration, get_cert_path
from botocore.loaders import Loader, create_loader
from yarl import URL

from keyturn.errors import SettingsError
from keyturn.settings import S3Settings
from keyturn.tls import STORAGE, renewing_context

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 60
_CHUNKED: Final = "chunked"


@cache
def _data_loader() -> Loader:
    """Return botocore's descriptions of services, read once per process, not once per session."""
    return create_loader()


def new_session(settings: S3Settings) -> aioboto3.Session:
    """Return a session with the settings' keys, or without them with the standard AWS chain."""
    botocore_session = VerifyingSession()
    botocore_session.register_component("data_loader", _data_loader())
    secret = settings.s3_secret_access_key
    return aioboto3.Session(
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=None if secret is None else secret.get_secret_value(),
        region_name=settings.s3_region,
        botocore_session=botocore_session,
    )


def storage_context(settings: S3Settings) -> ssl.SSLContext | None:
    """Return the context of TLS connections, if the settings name a file for it.

    Later connections read the files again if they have changed.

    Raises:
        SettingsError: names the setting whose file cannot be used.
    """
    files = (settings.s3_ca_file, settings.s3_cert_file, settings.s3_key_file)
    return renewing_context(STORAGE, *files) if any(files) else None


@asynccontextmanager
async def open_client(
    settings: S3Settings,
    *,
    max_connections: int,
    total_max_attempts: int = 1,
    session: aioboto3.Session | None = None,
    tls: ssl.SSLContext | None = None,
) -> "AsyncIterator[S3Client]":
    """Yield an aiobotocore S3 client.

    Args:
        settings: The bucket, and the credentials.
        max_connections: The size of the pool; at least the intended concurrency.
        total_max_attempts: 1 never resends after a response of 5xx; more is for writes that are
            safe to repeat.
        session: From `new_session`, if the caller already has one.
        tls: From `storage_context`, if the caller already has one.

    Raises:
        SettingsError: a file of certificates cannot be used.
    """
    session = session or new_session(settings)
    more: dict[str, Any] = {}
    if not (settings.s3_endpoint_url or "").startswith("http://"):
        more["http_session_cls"] = verified_sessions(tls or storage_context(settings))
    config = AioConfig(
        signature_version="s3v4",
        s3={
            # A private endpoint seldom has a DNS name for each bucket. At AWS, "auto" would presign
            # for the global host, which redirects for the first hours of a bucket.
            "addressing_style": "virtual" if settings.s3_endpoint_url is None else "path",
            "us_east_1_regional_endpoint": "regional",
        },
        # Trailing checksums are AWS's own; other servers store them in the body or refuse them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": total_max_attempts, "mode": "standard"},
        max_pool_connections=max_connections,
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        tcp_keepalive=True,
        **more,
    )
    async with session.client("s3", endpoint_url=settings.s3_endpoint_url, config=config) as client:
        yield client


def verified_sessions(tls: ssl.SSLContext | None = None) -> type[AIOHTTPSession]:
    """Return a value for `AioConfig(http_session_cls=...)`.

    Args:
        tls: The authorities that verify servers, and the client certificate. By default the
            system's authorities and botocore's own list, or those in `AWS_CA_BUNDLE`.
    """
    # Used as a function that makes a session.
    return cast("type[AIOHTTPSession]", partial(VerifiedSession, tls=tls))


class VerifyingSession(AioSession):
    """A session of aiobotocore whose clients all verify the server's name.

    The chain of credentials makes its own clients, for STS and SSO, without our configuration. The
    session's default cannot provide it: merging drops `http_session_cls`.

    For container and instance credentials it makes no client, and its HTTP session cannot be
    replaced. So those are not fetched over `https` from another machine. AWS's own services for
    them use plain HTTP, at link-local addresses.
    """

    _has_keys = False

    def set_credentials(self, *args: Any, **kwargs: Any) -> None:
        """As aiobotocore's. With explicit credentials, the chain is not used."""
        self._has_keys = True
        super().set_credentials(*args, **kwargs)

    # Async, unlike botocore's method. aiobotocore's own types ignore this, too.
    async def get_credentials(self) -> AioCredentials | None:  # type: ignore[override]
        """As aiobotocore's.

        Raises:
            SettingsError: credentials would come from a server whose name is not verified.
            BotoCoreError: a provider in the chain is configured, but yields no credentials.
        """
        if not self._has_keys:
            _check_metadata_servers(self.get_config_variable("ec2_metadata_service_endpoint"))
        return await super().get_credentials()

    def create_client(self, *args: Any, config: Config | None = None, **kwargs: Any) -> Any:
        """As aiobotocore's. A class of sessions in `config` is kept, and so is a plain endpoint."""
        if not (kwargs.get("endpoint_url") or "").startswith("http://"):
            config = _verifying(config)
        create: Any = super().create_client  # typed by a list of all services
        return create(*args, config=config, **kwargs)


class VerifiedSession:
    """One client's connections, with aiobotocore's parameters."""

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        timeout: tuple[float, float] | None = None,
        max_pool_connections: int = 10,
        proxies_config: Mapping[str, Any] | None = None,
        connector_args: Mapping[str, Any] | None = None,
        **_: object,
    ) -> None:
        self._tls = tls or _default_context(verify)
        self._proxies = ProxyConfiguration(proxies=proxies, proxies_settings=proxies_config)
        connect_s, read_s = timeout or (None, None)
        self._timeout = aiohttp.ClientTimeout(sock_connect=connect_s, sock_read=read_s)
        self._make_connector: Callable[[], aiohttp.TCPConnector] = partial(
            aiohttp.TCPConnector, limit=max_pool_connections, ssl=self._tls, **connector_args or {}
        )
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=self._make_connector(),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers={"Content-Type"},
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def send(self, request: Any) -> AioAWSResponse:
        """Send a prepared request of botocore.

        Raises:
            BotoCoreError: there is no response; of the kinds that botocore itself distinguishes.
        """
        try:
            return await self._send(request)
        except Exception as exc:
            raise _translated(exc, request) from exc

    async def _send(self, request: Any) -> AioAWSResponse:
        if self._session is None:
            raise RuntimeError("the session is not open")
        # botocore has names and values as bytes, too.
        headers = {_text(name).title(): _text(value) for name, value in request.headers.items()}
        headers["Accept-Encoding"] = "identity"
        # aiohttp sets it by itself.
        is_chunked = headers.pop("Transfer-Encoding", "").lower() == _CHUNKED
        proxy = self._proxies.proxy_url_for(request.url)
        response = await self._session.request(
            request.method,
            URL(request.url, encoded=True),
            headers=headers,
            data=request.body,
            chunked=is_chunked or None,
            allow_redirects=False,
            proxy=proxy,
            proxy_headers=None if proxy is None else self._proxies.proxy_headers_for(proxy),
        )
        fields: Any = {
            name.decode("latin-1").lower(): value.decode("utf-8", "surrogateescape")
            for name, value in response.raw_headers
        }
        answer = AioAWSResponse(str(response.url), response.status, fields, response)
        if not request.stream_output:
            content: Any = answer.content  # its types do not know that this is a coroutine
            await content  # read now: the connection goes back to the pool
        return answer


def _check_metadata_servers(instance_url: str | None) -> None:
    """Refuse credential servers whose host name aiobotocore would not verify.

    Args:
        instance_url: The endpoint of the instance metadata service, if it is not AWS's own.

    Raises:
        SettingsError: names the variable.
    """
    urls: dict[str, str | None] = {}
    # A relative URI means AWS's own service, and takes precedence.
    if ContainerProvider.ENV_VAR not in os.environ:
        urls[ContainerProvider.ENV_VAR_FULL] = os.environ.get(ContainerProvider.ENV_VAR_FULL)
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        urls["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = instance_url
    for name, url in urls.items():
        try:
            refused = url is not None and _is_remote_https(url)
        except ValueError as exc:
            raise SettingsError(f"{name}: this is not a URL") from exc
        if refused:
            raise SettingsError(
                f"{name}: AWS credentials are not fetched over https:// from another machine, "
                "because its host name would not be verified"
            )


def describe_credential_failure(error: BaseException) -> str | None:
    """Return why the standard AWS chain gives no credentials, without the text of the error.

    Return None for another error.
    """
    match error:
        case NoCredentialsError():
            return "none are configured"
        case PartialCredentialsError():
            return "the access key id or the secret access key is missing"
        case ProfileNotFound() | ConfigNotFound() | ConfigParseError() | InvalidConfigError():
            return "check AWS_PROFILE and the AWS configuration files"
        case CredentialRetrievalError() | TokenRetrievalError() | SSOError():
            return "their source provides none: check its configuration"
    return None


def _is_remote_https(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme.lower() != "https" or parts.hostname == "localhost":
        return False
    try:
        return not ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True


def _verifying(config: Config | None) -> AioConfig:
    verifying: Any  # its types do not know `http_session_cls`
    if isinstance(config, AioConfig):
        verifying = copy.copy(config)
    else:  # SSO's provider has one of botocore's own
        verifying = AioConfig() if config is None else AioConfig().merge(cast("AioConfig", config))
    if verifying.http_session_cls is AIOHTTPSession:
        verifying.http_session_cls = verified_sessions()
    made: AioConfig = verifying
    return made


def _default_context(verify: bool | str) -> ssl.SSLContext:  # noqa: FBT001  # botocore's
    if isinstance(verify, str):
        return ssl.create_default_context(cafile=verify)
    context = ssl.create_default_context()
    context.load_verify_locations(get_cert_path(verify=True))
    return context


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8")


def _translated(error: Exception, request: Any) -> BotoCoreError:
    """Return the error of botocore that its retries know."""
    url = request.url
    found: BotoCoreError = HTTPClientError(error=error)
    match error:
        case aiohttp.ClientSSLError():
            found = SSLError(endpoint_url=url, error=error)
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            found = ProxyConnectionError(proxy_url="a proxy of the environment", error=error)
        case aiohttp.ConnectionTimeoutError():
            found = ConnectTimeoutError(endpoint_url=url, error=error)
        case TimeoutError():
            found = ReadTimeoutError(endpoint_url=url, error=error)
        case aiohttp.ClientConnectorError():
            found = EndpointConnectionError(endpoint_url=url, error=error)
        case aiohttp.ClientError():
            found = ConnectionClosedError(endpoint_url=url, request=request, error=error)
    return found
