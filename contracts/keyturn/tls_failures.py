"""What a failed TLS connection means, in one line that names the setting (SPEC 11).

The libraries between pass OpenSSL's errors on as causes of their own. The text that this module
makes of them holds nothing of a request, an address or a certificate.
"""

import asyncio
import ssl
from collections.abc import Iterator
from typing import Final

from keyturn.tls import PeerSettings

# X509_V_ERR_… of OpenSSL.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_UNKNOWN_ISSUER: Final = frozenset({2, 7, 18, 19, 20, 21})
_OTHER_HOST: Final = frozenset({62, 64})

_ALERT_AS_FRAME_BYTES: Final = range(0x00020201, 0x00020301)

# Of a server that speaks something else than TLS on this port.
_NOT_TLS: Final = frozenset(
    {
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNKNOWN_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)
_OTHER_VERSION: Final = frozenset(
    {"NO_PROTOCOLS_AVAILABLE", "TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"}
)
# Alerts by which a server refuses the certificate that it was shown.
_REFUSED: Final = {
    "SSLV3_ALERT_BAD_CERTIFICATE": "malformed",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "not accepted",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "unsupported",
    "TLSV1_ALERT_ACCESS_DENIED": "access denied",
    "TLSV1_ALERT_UNKNOWN_CA": "unknown authority",
}


def describe_tls_failure(error: BaseException, names: PeerSettings) -> str | None:
    """What is wrong with TLS towards a server, as a clause about "it"; None if nothing is.

    Trying again will not help, until a person changes a certificate or a setting.

    Args:
        error: As a library raised it, with its causes.
        names: The settings of that server.
    """
    for cause in _causes(error):
        if _is_alert(cause):
            return needs_tls(names)
        if isinstance(cause, ssl.SSLError) and (text := _describe(cause, names)) is not None:
            return text
    return None


def needs_tls(names: PeerSettings) -> str:
    """What is wrong where a port of TLS was spoken to without."""
    return f"it speaks TLS on that port: {names.url} must begin with {names.tls_scheme}"


def _is_alert(error: BaseException) -> bool:
    """Whether a server answered what was sent without TLS by an alert of TLS."""
    if isinstance(error, asyncio.IncompleteReadError):
        # A fatal alert, 15 03 03 00 02 02 0a, is a frame of AMQP of this many bytes.
        expected = error.expected or 0
        return not error.partial and expected in _ALERT_AS_FRAME_BYTES
    # aiohttp shows what it takes for a malformed status line.
    return r"b'\x15\x03" in str(getattr(error, "message", ""))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that led to it, each once."""
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        one = pending.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        pending += [one.__context__, one.__cause__]
        # Of aiohttp: what it wraps.
        pending += [getattr(one, "os_error", None), getattr(one, "certificate_error", None)]


def _describe(error: ssl.SSLError, names: PeerSettings) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _describe_verification(error, names)
    match getattr(error, "reason", None):
        case reason if reason in _NOT_TLS:
            text = f"it does not speak TLS on that port: check {names.url}"
        case reason if reason in _OTHER_VERSION:
            text = "it does not speak TLS 1.2 or later"
        case "TLSV13_ALERT_CERTIFICATE_REQUIRED":
            text = f"it requires a client certificate: set {names.certificate} and {names.key}"
        case "SSLV3_ALERT_HANDSHAKE_FAILURE":
            may = f"it may require a client certificate, {names.certificate}"
            text = f"it refused the handshake: {may}"
        case reason if reason in _REFUSED:
            text = f"it refused the client certificate of {names.certificate}: {_REFUSED[reason]}"
        case _:
            return None
    return text


def _describe_verification(error: ssl.SSLCertVerificationError, names: PeerSettings) -> str | None:
    # aiohttp has subclasses of its own, without a code: what they wrap has it.
    match getattr(error, "verify_code", None):
        case None:
            return None
        case code if code == _EXPIRED:
            what = "has expired"
        case code if code == _NOT_YET_VALID:
            what = "is not valid yet"
        case code if code in _UNKNOWN_ISSUER:
            what = f"is from an unknown authority: check {names.ca}"
        case code if code in _OTHER_HOST:
            what = f"is for another host than the one in {names.url}"
        case code:
            what = f"does not verify (error {code} of OpenSSL)"
    return f"its certificate {what}"
