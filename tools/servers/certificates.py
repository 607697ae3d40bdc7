"""Certificates for servers on loopback and for their clients, by an authority of their own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_HOUR = timedelta(hours=1)
LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Certificate:
    """Files in PEM: a certificate, its key, and the certificate of its authority."""

    certificate: Path
    key: Path
    ca: Path


class Authority:
    """An authority, whose certificate is in `ca`.

    Args:
        folder: Where all files are written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        # Named for itself: OpenSSL distinguishes authorities of one name by their keys alone.
        self._name = _name(f"Keyturn test CA {x509.random_serial_number():x}"[:60])
        self._id = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        now = datetime.now(UTC)
        own = (
            _builder(self._name, self._name, self._key, now - 30 * _HOUR, now + 30 * _HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(self._id, critical=False)
            .add_extension(_CA_USAGE, critical=True)
            .sign(self._key, SHA256())
        )
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(own.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str = "server",
        hosts: Sequence[str] = LOOPBACK,
        *,
        from_h: float = -1,
        to_h: float = 1,
        password: bytes | None = None,
    ) -> Certificate:
        """Write a certificate for a server, or for a client, which needs no host.

        Args:
            name: Of the files, and of the subject.
            hosts: What it is valid for: names and addresses.
            from_h: When it becomes valid, in hours from now.
            to_h: When it expires.
            password: Encrypts the key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._id)
        use = x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        )
        builder = (
            _builder(_name(name), self._name, key, now + from_h * _HOUR, now + to_h * _HOUR)
            .add_extension(issuer, critical=False)
            .add_extension(use, critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key", self.ca)
        made.certificate.write_bytes(builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM))
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
        made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return made


_CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    begins: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
