"""Where the broker is, and how it is verified; the one place that connects to it (SPEC 11)."""

import ssl
from dataclasses import dataclass, field
from typing import Final, Self, TypeAlias

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
)

from keyturn.errors import BrokerTlsError
from keyturn.settings import BrokerTlsSettings, DeploymentSettings
from keyturn.tls import BROKER
from keyturn.tls_failures import describe_tls_failure
from keyturn.tls_renewal import renewing_context

# RabbitMQ's reply codes for a refused vhost: not allowed, and internal error.
_NOT_ALLOWED: Final = (530, 541)
_CLOSE: Final = "<Connection.Close "


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker's URL, and the context of TLS connections to it.

    Attributes:
        url: It holds a password, and is never logged or raised.
        tls: None where the URL begins with `amqp://`.
    """

    url: str = field(repr=False)
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, settings: DeploymentSettings) -> Self:
        """The address that the settings name. Reads the files of certificates.

        Later connections read them again if they have changed.

        Raises:
            SettingsError: names the setting whose file cannot be used.
        """
        return cls.parse(settings.amqp_url.get_secret_value(), settings)

    @classmethod
    def parse(cls, url: str, tls: BrokerTlsSettings) -> Self:
        """The address of a URL and the files of certificates; errors as `of`."""
        if not url.startswith(BROKER.tls_scheme):
            return cls(url)
        files = (tls.amqp_ca_file, tls.amqp_cert_file, tls.amqp_key_file)
        return cls(url, renewing_context(BROKER, *files))


Broker: TypeAlias = BrokerAddress | str
"""A broker's address; as text, a URL that the system's authorities verify, if it has TLS."""


async def connect_to_broker(broker: Broker) -> AbstractConnection:
    """Open a connection.

    Raises:
        BrokerTlsError: TLS failed.
        OSError, AMQPError, RuntimeError: the broker is away, refuses, or hangs up.
    """
    address = BrokerAddress(broker) if isinstance(broker, str) else broker
    try:
        return await aio_pika.connect(address.url, ssl_context=address.tls)
    except CONNECTION_EXCEPTIONS as exc:
        if (problem := describe_tls_failure(exc, BROKER)) is not None:
            raise BrokerTlsError(f"the broker cannot be reached ({problem})") from exc
        if _is_vhost_refused(exc):
            # Otherwise stream readers would take the unexpected frame for an undecodable message.
            raise ConnectionError("the broker refused the vhost") from exc
        raise


def describe_broker_failure(error: BaseException) -> str:
    """Why no connection to the broker was made: a clause about "it", or the kind of failure."""
    return describe_broker_problem(error) or type(error).__name__


def describe_broker_problem(error: BaseException) -> str | None:
    """What an operator must fix, as a clause about "it"; None if the broker may just be away."""
    return describe_tls_failure(error, BROKER) or _describe_refusal(error)


def _describe_refusal(error: BaseException) -> str | None:
    """What the broker refuses, and the setting to check; None if it refused nothing.

    The broker's own text is not repeated, because it names the user and the vhost.
    """
    if isinstance(error, ProbableAuthenticationError):
        return f"it refuses the user name or password in {BROKER.url}"
    if isinstance(error, AuthenticationError):
        return "it does not accept password logins"
    if _is_vhost_refused(error) or _is_vhost_refused(error.__cause__):
        return (
            f"it refuses the vhost in {BROKER.url}: check its name, the user's permissions there, "
            "and its connection limits"
        )
    return None


def _is_vhost_refused(error: BaseException | None) -> bool:
    """Whether the broker closed the connection instead of opening the vhost.

    The client library reports that as an unexpected frame; only the error's text names the frame.
    """
    if isinstance(error, ConnectionClosed):
        return bool(error.args) and error.args[0] in _NOT_ALLOWED
    return isinstance(error, InvalidFrameError) and _CLOSE in str(error)
