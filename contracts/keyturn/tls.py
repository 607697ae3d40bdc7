"""TLS contexts from the PEM files that settings name (SPEC 11).

A context that this module makes verifies the server's certificate and name, speaks TLS 1.2 or
later, and may show a client certificate. Nothing can switch the verification off.

It must never print what a file holds, or its path: a person may have put the key itself there. It
must never ask for a password: a process has no terminal.
"""

import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from keyturn.errors import SettingsError


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """The names of the settings that say how a server is reached.

    Attributes:
        url: Its address.
        tls_scheme: What an address with TLS begins with.
        ca: The authorities that its certificate may come from.
        certificate: The client certificate that this process shows.
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
    """Metadata of a file that changes when the file is replaced or written."""

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
    """A context for connections to a server.

    Args:
        names: For errors.
        ca: PEM certificates of authorities; those of the system if None.
        certificate: A client certificate in PEM, followed by its chain.
        key: Its key in PEM, not encrypted.
        with_system: Whether the system's authorities count beside those of `ca`.

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
            belong together. The context is then of no use.
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
    """The state of a file, following links; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def expiry(certificate: Path) -> datetime | None:
    """When the first certificate in a PEM file expires; None if that cannot be read."""
    # Slow to import, so only where TLS is on.
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

    try:
        return load_pem_x509_certificates(certificate.read_bytes())[0].not_valid_after_utc
    except (OSError, ValueError, IndexError):
        return None  # OpenSSL reads some files that this library does not


def speaks_tls(url: str, timeout_s: float = 2.0) -> bool:
    """Whether the server at an `http://` address answers a TLS handshake.

    For errors: many servers with TLS only hang up on what is not. Nothing else is sent, so it
    does not matter who answers. Blocks for up to twice the time.
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
    """Why OpenSSL, which only says "PEM lib", refused the two."""
    # Only where something is wrong: it takes a while to import.
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
