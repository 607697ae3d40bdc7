"""An S3 client for staging; the workers' storage takes its address and credentials (SPEC 11).

It suits servers other than AWS (no checksum trailers, path-style addressing where an endpoint
is set) and resends nothing unless configured to. aioboto3 is imported only when a client is opened,
since a publisher that stages nothing does not need it.

Logging belongs to the host process. At level DEBUG, botocore logs whole requests with their
headers: a process that sets its root logger to DEBUG should keep `botocore` and `aiobotocore`
at WARNING.
"""

import ssl
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from keyturn.errors import SettingsError
from keyturn.settings import S3Settings
from keyturn.tls import STORAGE, renewing_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aioboto3
    from botocore.loaders import Loader
    from types_aiobotocore_s3.client import S3Client

CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 60


@cache
def _data_loader() -> "Loader":
    """Botocore's descriptions of services, read once per process and not once per session."""
    from botocore.loaders import create_loader  # noqa: PLC0415  # comes with aioboto3

    return create_loader()


def new_session(settings: S3Settings) -> "aioboto3.Session":
    """A session with the settings' keys, or without them with the standard AWS chain.

    Raises:
        SettingsError: aioboto3 is not installed.
    """
    try:
        import aioboto3  # noqa: PLC0415  # an optional extra

        from keyturn.botocore_http import VerifyingSession  # noqa: PLC0415  # needs it
    except ImportError as exc:
        raise SettingsError(
            "S3 needs aioboto3, which is not installed: install keyturn[staging]"
        ) from exc
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
    """The context of TLS connections, where the settings name a file for it.

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
    tls: ssl.SSLContext | None = None,
) -> "AsyncIterator[S3Client]":
    """An aiobotocore S3 client, open for the duration of the block.

    Args:
        settings: Where the bucket is, and the credentials.
        max_connections: The size of the pool; at least the intended concurrency.
        total_max_attempts: 1 never resends after a response of 5xx; more is for writes that
            may be repeated safely.
        tls: From `storage_context`, if the caller has it already.

    Raises:
        SettingsError: aioboto3 is not installed, or a file of certificates cannot be used.
    """
    session = new_session(settings)
    from aiobotocore.config import AioConfig  # noqa: PLC0415  # comes with aioboto3

    more: dict[str, Any] = {}
    if not (settings.s3_endpoint_url or "").startswith("http://"):
        from keyturn.botocore_http import verified_sessions  # noqa: PLC0415  # as above

        more["http_session_cls"] = verified_sessions(tls or storage_context(settings))
    config = AioConfig(
        signature_version="s3v4",
        s3={
            # A private endpoint seldom has a DNS name for each bucket. At AWS "auto" would
            # presign for the global host, which redirects for the first hours of a bucket.
            "addressing_style": "virtual" if settings.s3_endpoint_url is None else "path",
            "us_east_1_regional_endpoint": "regional",
        },
        # Trailing checksums are AWS's own; other servers store them in the body or refuse.
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
