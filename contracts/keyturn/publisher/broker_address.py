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
    ProbableAuthenticationError,
)

from keyturn.errors import BrokerTlsError
from keyturn.settings import BrokerTlsSettings, DeploymentSettings
from keyturn.tls import BROKER
from keyturn.tls_failures import describe_tls_failure
from keyturn.tls_renewal import renewing_context

# Reply codes with which RabbitMQ refuses the vhost: not allowed, and internal error.
_NOT_ALLOWED: Final = (530, 541)
# How RabbitMQ 4 ends its reasons. A name is never last, so none can look like a reason.
_CLOSINGS: Final = {
    " not found": f"it has no vhost of the name in {BROKER.url}",
    " is reached": "it allows no further connection: the limit of its user or vhost is reached",
    " is down": f"the vhost of {BROKER.url} is down",
}


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

        A connection that is made later reads them again if they have changed.

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
        raise


def describe_broker_failure(error: BaseException) -> str:
    """Why no connection to the broker was made: a clause about "it", or the kind of failure."""
    return describe_tls_failure(error, BROKER) or _describe_refusal(error) or type(error).__name__


def _describe_refusal(error: BaseException) -> str | None:
    """What the broker refuses, and the setting to check; None if it refuses nothing.

    Its own text is not repeated: that names the user and the vhost.
    """
    match error:
        case ProbableAuthenticationError():
            return f"it refuses the user or the password of {BROKER.url}"
        case AuthenticationError():
            return "it does not accept a user with a password"
        case ConnectionClosed(args=(code, str(text), *_)) if code in _NOT_ALLOWED:
            return _describe_closing(text)
        case _:
            return None


def _describe_closing(text: str) -> str | None:
    """What the broker, in its own words, does not allow."""
    for end, meaning in _CLOSINGS.items():
        if text.endswith(end):
            return meaning
    if " refused for user " in text:
        return (
            f"its user may not use the vhost of {BROKER.url}: grant it permissions there "
            "(rabbitmqctl set_permissions)"
        )
    return None
