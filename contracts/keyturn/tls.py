"""TLS: contexts from the PEM files in settings, and descriptions of failures (SPEC 11).

A context of this module verifies the server's certificate and name, speaks TLS 1.2 or later, and
may show a client certificate. Nothing can disable the verification.

A long-running process reads the files again when they change. Each new connection uses their
contents at the start of its handshake; open connections keep theirs. So a renewed client
certificate or a changed authority needs no restart. Unusable files change nothing: the previous
ones stay in use. No task watches the files: a client library keeps one context for all its
connections, so the context itself checks them, once for each handshake.

A failed connection, with TLS or without, is described in one line that names the setting. Other
libraries wrap errors of OpenSSL and of the system as causes of their own; that line contains
nothing of a request, an address or a certificate.

It must never print the content of a file, or its path: a person may have put the key itself there.
It must never ask for a password: a process has no terminal.
"""

import asyncio
import errno
import logging
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from keyturn.errors import SettingsError

# A renewal writes one file after the other; until both are there, no problem is reported.
_SETTLED_NS: Final = 10**9

_log = logging.getLogger(__name__)
_NO_ROUTE: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL})
_RESET: Final = frozenset({errno.ECONNABORTED, errno.ECONNRESET, errno.EPIPE})
# From the text of asyncio's error for several addresses, which has no number of its own.
_ERRNO: Final = re.compile(r"\[Errno (\d+)\]")
# X509_V_ERR_… of OpenSSL.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_UNKNOWN_ISSUER: Final = frozenset({2, 7, 18, 19, 20, 21})
_OTHER_HOST: Final = frozenset({62, 64})

_ALERT_AS_FRAME_BYTES: Final = range(0x00020201, 0x00020301)

# From a server without TLS on this port.
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
# Alerts by which a server refuses the client's certificate.
_REFUSED: Final = {
    "SSLV3_ALERT_BAD_CERTIFICATE": "malformed",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "not accepted",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "unsupported",
    "TLSV1_ALERT_ACCESS_DENIED": "access denied",
    "TLSV1_ALERT_UNKNOWN_CA": "unknown authority",
}


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """The names of the settings of a connection to a server.

    Attributes:
        url: Its address.
        tls_scheme: The scheme of an address with TLS.
        ca: The authorities of its certificate.
        certificate: The client certificate of this process.
        key: The key of that certificate.
    """

    url: str
    tls_scheme: str
    ca: str
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class PairSettings:
    """The names of the settings of a certificate and of its key."""

    certificate: str
    key: str


BROKER: Final = PeerSettings(
    "KEYTURN_AMQP_URL",
    "amqps://",
    "KEYTURN_AMQP_CA_FILE",
    "KEYTURN_AMQP_CERT_FILE",
    "KEYTURN_AMQP_KEY_FILE",
)
STORAGE: Final = PeerSettings(
    "KEYTURN_S3_ENDPOINT_URL",
    "https://",
    "KEYTURN_S3_CA_FILE",
    "KEYTURN_S3_CERT_FILE",
    "KEYTURN_S3_KEY_FILE",
)
GATEWAY: Final = PeerSettings("KEYTURN_GATEWAY_URL", "https://", "KEYTURN_GATEWAY_CA_FILE")


@dataclass(frozen=True, slots=True)
class FileState:
    """A file's metadata that change when it is replaced or written."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


class _EncryptedKeyError(Exception):
    """OpenSSL asked for a password."""


def client_context(
    names: PeerSettings,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    *,
    with_system: bool = False,
) -> ssl.SSLContext:
    """Return a context for connections to a server.

    Args:
        names: For errors.
        ca: PEM certificates of authorities; the system's if None.
        certificate: A client certificate in PEM, followed by its chain.
        key: Its key in PEM, not encrypted.
        with_system: True to trust the system's authorities in addition to those of `ca`.

    Raises:
        SettingsError: names the setting whose file cannot be used.
    """
    if ca is not None:
        _check_readable(ca, names.ca)
    try:
        context = ssl.create_default_context(cafile=None if with_system else ca)
        if with_system and ca is not None:
            context.load_verify_locations(ca)
    except OSError:  # of ssl, too
        raise SettingsError(f"{names.ca} holds no certificate in PEM") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None and key is not None:
        load_pair(context, certificate, key, PairSettings(names.certificate, names.key))
    return context


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path, names: PairSettings) -> None:
    """Load a certificate, its chain and its key into a context.

    Raises:
        SettingsError: names the setting whose file cannot be used, or says that the two do not
            belong together. The context is then useless.
    """
    _check_readable(certificate, names.certificate)
    _check_readable(key, names.key)
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except _EncryptedKeyError:
        raise SettingsError(f"{names.key} is encrypted: store the key without a password") from None
    except OSError as exc:  # of ssl, too
        raise SettingsError(_pair_problem(certificate, key, names, exc)) from None


def file_state(path: Path) -> FileState | None:
    """Return the state of a file, following links; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def expiry(certificate: Path) -> datetime | None:
    """Return when the first certificate in a PEM file expires; None if that is unreadable."""
    # Slow to import, so only with TLS.
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

    try:
        return load_pem_x509_certificates(certificate.read_bytes())[0].not_valid_after_utc
    except (OSError, ValueError, IndexError):
        return None  # OpenSSL reads some files that this library does not


def speaks_tls(url: str, timeout_s: float = 2.0) -> bool:
    """Return whether the server at an `http://` address answers a TLS handshake.

    For errors: many TLS servers only close plaintext connections. Nothing else is sent, so it does
    not matter who answers. Blocks for up to twice the time.
    """
    parts = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        address = (parts.hostname or "", parts.port or 80)
        with (
            socket.create_connection(address, timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname),
        ):
            return True
    except (OSError, ValueError):
        return False


def _refuse_password() -> str:
    raise _EncryptedKeyError


def _check_readable(path: Path, name: str) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as exc:
        # Without a cause: its text is the path.
        raise SettingsError(f"{name} cannot be read ({exc.strerror})") from None


def _pair_problem(certificate: Path, key: Path, names: PairSettings, error: OSError) -> str:
    """Return why OpenSSL, which only says "PEM lib", refused the two."""
    # Only at a problem: it takes a while to import.
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        load_pem_private_key,
    )
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

    try:
        leaf = load_pem_x509_certificates(certificate.read_bytes())[0]
    except (OSError, ValueError):
        return f"{names.certificate} holds no certificate in PEM"
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except Exception:  # noqa: BLE001  # TypeError, ValueError and more; their texts may show the key
        return f"{names.key} holds no private key in PEM"
    if leaf.public_key() != private.public_key():
        return f"{names.key} is not the key of the first certificate in {names.certificate}"
    reason = getattr(error, "reason", None) or "refused by OpenSSL"
    return f"{names.certificate} cannot be used ({reason})"


_States: TypeAlias = dict[str, FileState | None]


def renewing_context(
    names: PeerSettings,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> ssl.SSLContext:
    """Return the same as `client_context`, for all connections of a long-running process.

    Raises:
        SettingsError: names the setting whose file cannot be used.
    """
    if ca is None and certificate is None and key is None:
        return client_context(names)
    return _RenewingContext(ssl.PROTOCOL_TLS_CLIENT, names, ca, certificate, key)


class _RenewingContext(ssl.SSLContext):
    """Wraps connections with a context made from the current files. It trusts no CA itself."""

    def __init__(
        self,
        _: int,
        names: PeerSettings,
        ca: Path | None,
        certificate: Path | None,
        key: Path | None,
    ) -> None:
        super().__init__()
        self._names = names
        self._files = (ca, certificate, key)
        self._used = self._states()
        self._current = client_context(names, *self._files)
        # The files last reported as unusable.
        self._unusable: _States | None = None

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """As in `ssl`, with the current contents of the files. asyncio and uvloop call this."""
        self._renew()
        return self._current.wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """As in `ssl`, with the current contents of the files."""
        self._renew()
        return self._current.wrap_socket(*args, **kwargs)

    def _renew(self) -> None:
        states = self._states()
        if states in (self._used, self._unusable):
            return
        changed = [name for name, state in states.items() if state != self._used[name]]
        try:
            context = client_context(self._names, *self._files)
            expires = self._expiry() if self._names.certificate in changed else None
        except SettingsError as exc:
            self._refuse(states, str(exc))
            return
        if self._states() != states:
            return  # they changed during the read: the next connection checks again
        self._current, self._used, self._unusable = context, states, None
        until = "" if expires is None else f", expires {expires}"
        _log.info("certificate renewed: %s%s", ", ".join(changed), until)

    def _refuse(self, states: _States, problem: str) -> None:
        """Keep the context in use, and report the problem once, if the files have settled."""
        changed_ns = max((state.changed_ns for state in states.values() if state), default=0)
        if time.time_ns() - changed_ns >= _SETTLED_NS:
            self._unusable = states
            _log.error("certificate not renewed; the old one stays in use: %s", problem)

    def _expiry(self) -> datetime | None:
        _, certificate, _ = self._files
        expires = None if certificate is None else expiry(certificate)
        if expires is not None and expires < datetime.now(UTC):
            raise SettingsError(f"{self._names.certificate} has expired")
        return expires

    def _states(self) -> _States:
        names = (self._names.ca, self._names.certificate, self._names.key)
        return {
            name: file_state(path)
            for name, path in zip(names, self._files, strict=True)
            if path is not None
        }


def describe_tls_failure(error: BaseException, names: PeerSettings) -> str | None:
    """Return the problem of TLS with a server, as a clause about "it"; None if there is none.

    A retry will not help until a person changes a certificate or a setting.

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


def describe_connection_failure(error: BaseException, names: PeerSettings) -> str | None:
    """Return why a server was not reached, or its connection was lost, as a clause about "it".

    It never contains the text of an error, which may hold an address, or the sent data.

    Args:
        error: As a library raised it, with its causes.
        names: The settings of that server.

    Returns:
        None for an error that is neither of TLS nor of the network.
    """
    if (problem := describe_tls_failure(error, names)) is not None:
        return problem
    causes = [*_causes(error)]
    numbers = {number for each in causes for number in _error_numbers(each)}

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in causes)

    if has(socket.gaierror, UnicodeError):  # UnicodeError: a label of the name is too long
        return f"its host name cannot be resolved: check {names.url}"
    if errno.ECONNREFUSED in numbers or has(ConnectionRefusedError):
        return f"connection refused: check the host and port in {names.url}, and that it is running"
    if numbers & _NO_ROUTE:
        return f"there is no route to its host: check the network, and the host in {names.url}"
    if errno.ETIMEDOUT in numbers or has(TimeoutError):
        return "it did not respond in time"
    lost = numbers & _RESET or has(ConnectionError, EOFError, ssl.SSLEOFError)
    return "the connection was lost" if lost else None


def _error_numbers(error: BaseException) -> Iterator[int]:
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror):
        if error.errno is not None:
            yield error.errno
        else:
            yield from map(int, _ERRNO.findall(str(error)))


def needs_tls(names: PeerSettings) -> str:
    """Describe the problem of plaintext sent to a TLS port."""
    return f"it speaks TLS on that port: {names.url} must begin with {names.tls_scheme}"


def _is_alert(error: BaseException) -> bool:
    """Return whether a server answered plaintext by an alert of TLS."""
    if isinstance(error, asyncio.IncompleteReadError):
        # A fatal alert, 15 03 03 00 02 02 0a, is a frame of AMQP of this many bytes.
        expected = error.expected or 0
        return not error.partial and expected in _ALERT_AS_FRAME_BYTES
    # aiohttp shows what it takes for a malformed status line.
    return r"b'\x15\x03" in str(getattr(error, "message", ""))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and all its causes, each once."""
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        one = pending.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        pending += [one.__context__, one.__cause__]
        # aiohttp's own: the errors that it wraps.
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
    # aiohttp has its own subclasses, without a code: the errors that they wrap have it.
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
