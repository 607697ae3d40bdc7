"""AWS Signature Version 4 for S3 requests (SPEC 8.4).

A leased write is signed in its query with the time of the keyring read that it relies on, so
that the storage itself refuses it when the lease is over. All headers that carry meaning are
signed. The signer never logs, and never sees a body.

botocore creates the same signatures, byte for byte (a test compares thousands of requests), at
about six times the cost: it derives the signing key for each request, and parses the URL and the
headers several times. Here the signing key is derived once a day, the host is known, and
percent-encoded text stays so (docs/adr/0005-own-sigv4-signer.md).

Source: AWS, "Authenticating Requests (AWS Signature ObjectVersion 4)", Amazon S3 API Reference.
"""

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote, urlsplit

from keyturn_workers.core.storage_values import Lease
from keyturn_workers.storage.credentials import Credentials

UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_TERMINATOR: Final = "aws4_request"
_SERVICE: Final = "s3"
# Headers that a proxy may change.
_NEVER_SIGNED: Final = frozenset({"expect", "transfer-encoding", "user-agent", "x-amzn-trace-id"})
_UNRESERVED: Final = "-_.~"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request that is ready to be sent once. A retry needs a new signature.

    `origin` is the URL's scheme, host and port; `target` is the rest of it.
    """

    origin: str
    target: str
    headers: dict[str, str]

    @property
    def url(self) -> str:
        """The whole URL."""
        return self.origin + self.target


@dataclass(frozen=True, slots=True, repr=False)
class _SigningKey:
    """The common part of all signatures of one day with the same credentials."""

    key: bytes
    scope: str
    credential: str
    quoted_credential: str


class Signer:
    """Signs requests below one URL, which is percent-encoded and ends with a slash."""

    def __init__(self, base_url: str, region: str) -> None:
        parts = urlsplit(base_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path
        self._host = host_header(base_url)
        # Two: yesterday's leases are still in use a minute after midnight.
        self._signing_key = lru_cache(maxsize=2)(_derivation(region))

    def sign(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        *,
        credentials: Credentials,
        query: str = "",
        payload_sha256: str = UNSIGNED_PAYLOAD,
        lease: Lease | None = None,
    ) -> SignedRequest:
        """Sign one request.

        `path` is below the base URL; it and the pairs `name=value` of the `query` are
        percent-encoded. `headers` has all headers except Host and Content-Length, each name once.
        A session token of the `credentials` is added to the request. `payload_sha256` is in hex, or
        `UNSIGNED-PAYLOAD`; a leased request signs its `Content-MD5` instead of its body. A `lease`
        signs in the query, valid until the lease ends; without one, a header has the signature.
        """
        target = self._path + path
        if lease is None:
            return self._in_header(method, target, headers, credentials, query, payload_sha256)
        return self._in_query(method, target, headers, credentials, query, lease)

    def _in_header(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        credentials: Credentials,
        query: str,
        payload_sha256: str,
    ) -> SignedRequest:
        amz_date = _amz_date(int(time.time()))
        sent = {**headers, "x-amz-content-sha256": payload_sha256, "x-amz-date": amz_date}
        if credentials.token:
            sent["x-amz-security-token"] = credentials.token
        key = self._signing_key(credentials.access_key, credentials.secret_key, amz_date[:8])
        names, canonical = self._canonical(sent)
        request = f"{method}\n{target}\n{_sorted(query)}\n{canonical}\n\n{names}\n{payload_sha256}"
        sent["authorization"] = (
            f"{_ALGORITHM} Credential={key.credential}, SignedHeaders={names}, "
            f"Signature={_signature(key, amz_date, request)}"
        )
        return SignedRequest(self._origin, f"{target}?{query}" if query else target, sent)

    def _in_query(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        credentials: Credentials,
        query: str,
        lease: Lease,
    ) -> SignedRequest:
        amz_date = _amz_date(int(lease.read_at.timestamp()))
        key = self._signing_key(credentials.access_key, credentials.secret_key, amz_date[:8])
        names, canonical = self._canonical(headers)
        parameters = (
            f"X-Amz-Algorithm={_ALGORITHM}&X-Amz-Credential={key.quoted_credential}"
            f"&X-Amz-Date={amz_date}&X-Amz-Expires={lease.expires_s}"
            f"&X-Amz-SignedHeaders={_quoted(names)}"
        )
        ordered = parameters  # sorted already, unless something is added
        if credentials.token:
            parameters += f"&X-Amz-Security-Token={quote(credentials.token, safe=_UNRESERVED)}"
        if query:
            parameters = f"{query}&{parameters}"
        if parameters is not ordered:
            ordered = _sorted(parameters)
        request = f"{method}\n{target}\n{ordered}\n{canonical}\n\n{names}\n{UNSIGNED_PAYLOAD}"
        signature = _signature(key, amz_date, request)
        return SignedRequest(
            self._origin, f"{target}?{parameters}&X-Amz-Signature={signature}", headers
        )

    def _canonical(self, headers: dict[str, str]) -> tuple[str, str]:
        """Return the signed names, and the canonical headers."""
        lowered = {name.lower(): value for name, value in headers.items()}
        lowered["host"] = self._host
        names = sorted(lowered.keys() - _NEVER_SIGNED)
        lines = [f"{name}:{' '.join(lowered[name].split())}" for name in names]
        return ";".join(names), "\n".join(lines)


def host_header(url: str) -> str:
    """Return the Host header that HTTP clients send for a URL."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    if ":" in name:
        name = f"[{name}]"
    port = parts.port
    return name if port in {None, _DEFAULT_PORTS.get(parts.scheme)} else f"{name}:{port}"


def _sorted(query: str) -> str:
    """Return the pairs in the order of their names, then their values."""
    if "&" not in query:
        return query
    pairs = sorted(pair.partition("=") for pair in query.split("&"))
    return "&".join(map("".join, pairs))


def _derivation(region: str) -> Callable[[str, str, str], _SigningKey]:
    """Return a function that derives keys for a region from access key, secret key and date."""

    def derive(access_key: str, secret_key: str, date: str) -> _SigningKey:
        key = f"AWS4{secret_key}".encode()
        for step in (date, region, _SERVICE, _TERMINATOR):
            key = hmac.digest(key, step.encode(), "sha256")
        scope = f"{date}/{region}/{_SERVICE}/{_TERMINATOR}"
        credential = f"{access_key}/{scope}"
        return _SigningKey(key, scope, credential, quote(credential, safe=_UNRESERVED))

    return derive


def _signature(key: _SigningKey, amz_date: str, request: str) -> str:
    hashed = hashlib.sha256(request.encode()).hexdigest()
    text = f"{_ALGORITHM}\n{amz_date}\n{key.scope}\n{hashed}"
    return hmac.digest(key.key, text.encode(), "sha256").hex()


@lru_cache(maxsize=64)
def _amz_date(epoch_s: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(epoch_s))


@lru_cache(maxsize=256)
def _quoted(names: str) -> str:
    return quote(names, safe=_UNRESERVED)


def lease_from_now(expires_s: int) -> Lease:
    """A lease for a request that is query-signed only because its body cannot be hashed first."""
    return Lease(datetime.now(UTC), expires_s)
