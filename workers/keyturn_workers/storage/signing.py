"""Signatures for raw requests: AWS's version 4, as S3 wants it (SPEC 8.4).

A leased write is signed in its query with the time of the keyring read that it rests on,
so that the storage itself refuses it once the lease is over. All headers that carry
meaning are signed.

botocore makes the same signatures, byte for byte (a test holds thousands of requests
against it), at four times the cost: it derives the key anew each time, and takes URL and
headers apart again and again. Here a key is derived once a day, the host is known, and
what was percent-encoded stays so.
It must never log, and never puts a body into what it signs.

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

from botocore.credentials import ReadOnlyCredentials

from keyturn_workers.storage.port import Lease

UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_TERMINATOR: Final = "aws4_request"
_SERVICE: Final = "s3"
# What a proxy may change, or aiohttp sets by itself.
_NEVER_SIGNED: Final = frozenset({"expect", "transfer-encoding", "user-agent", "x-amzn-trace-id"})
_UNRESERVED: Final = "-_.~"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request ready to be sent once. A retry needs a new one.

    `origin` is the URL's scheme, host and port, and `target` the rest of it.
    """

    origin: str
    target: str
    headers: dict[str, str]

    @property
    def url(self) -> str:
        """The whole URL."""
        return self.origin + self.target


@dataclass(frozen=True, slots=True, repr=False)
class _Day:
    """What all signatures of one day, by the same credentials, have in common."""

    key: bytes
    scope: str
    credential: str
    quoted_credential: str


class Signer:
    """Signs requests for what lies below one URL.

    Args:
        base_url: Scheme, host and path, ending with a slash; percent-encoded.
        region: The bucket's.
    """

    def __init__(self, base_url: str, region: str) -> None:
        parts = urlsplit(base_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path
        self._host = host_header(base_url)
        # Two: leases of yesterday are still in use a minute after midnight.
        self._day = lru_cache(maxsize=2)(_day_of(region))

    def sign(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        *,
        credentials: ReadOnlyCredentials,
        query: str = "",
        payload_sha256: str = UNSIGNED_PAYLOAD,
        lease: Lease | None = None,
    ) -> SignedRequest:
        """Sign one request.

        Args:
            method: In upper case.
            path: Below the base URL, percent-encoded.
            headers: All headers that the request will carry, but for Host and
                Content-Length; each name once.
            credentials: Frozen ones; a session token travels along where there is one.
            query: Pairs `name=value`, percent-encoded.
            payload_sha256: Hex, or `UNSIGNED-PAYLOAD`. A leased request never signs its body;
                its `Content-MD5` is signed.
            lease: Signs in the query, bounded in time, where given.
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
        credentials: ReadOnlyCredentials,
        query: str,
        payload_sha256: str,
    ) -> SignedRequest:
        stamp = _stamp(int(time.time()))
        sent = {**headers, "x-amz-content-sha256": payload_sha256, "x-amz-date": stamp}
        if credentials.token:
            sent["x-amz-security-token"] = credentials.token
        day = self._day(credentials.access_key, credentials.secret_key, stamp[:8])
        names, canonical = self._canonical(sent)
        request = f"{method}\n{target}\n{_sorted(query)}\n{canonical}\n\n{names}\n{payload_sha256}"
        sent["authorization"] = (
            f"{_ALGORITHM} Credential={day.credential}, SignedHeaders={names}, "
            f"Signature={_signature(day, stamp, request)}"
        )
        return SignedRequest(self._origin, f"{target}?{query}" if query else target, sent)

    def _in_query(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        credentials: ReadOnlyCredentials,
        query: str,
        lease: Lease,
    ) -> SignedRequest:
        stamp = _stamp(int(lease.read_at.timestamp()))
        day = self._day(credentials.access_key, credentials.secret_key, stamp[:8])
        names, canonical = self._canonical(headers)
        said = (
            f"X-Amz-Algorithm={_ALGORITHM}&X-Amz-Credential={day.quoted_credential}"
            f"&X-Amz-Date={stamp}&X-Amz-Expires={lease.expires_s}"
            f"&X-Amz-SignedHeaders={_quoted(names)}"
        )
        ordered = said  # as it is; what comes to it may not be
        if credentials.token:
            said += f"&X-Amz-Security-Token={quote(credentials.token, safe=_UNRESERVED)}"
        if query:
            said = f"{query}&{said}"
        if said is not ordered:
            ordered = _sorted(said)
        request = f"{method}\n{target}\n{ordered}\n{canonical}\n\n{names}\n{UNSIGNED_PAYLOAD}"
        signature = _signature(day, stamp, request)
        return SignedRequest(self._origin, f"{target}?{said}&X-Amz-Signature={signature}", headers)

    def _canonical(self, headers: dict[str, str]) -> tuple[str, str]:
        """The names that are signed, and the headers as they are signed."""
        lowered = {name.lower(): value for name, value in headers.items()}
        lowered["host"] = self._host
        names = sorted(lowered.keys() - _NEVER_SIGNED)
        lines = [f"{name}:{' '.join(lowered[name].split())}" for name in names]
        return ";".join(names), "\n".join(lines)


def host_header(url: str) -> str:
    """The Host header that an HTTP client sends for a URL."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    if ":" in name:
        name = f"[{name}]"
    port = parts.port
    return name if port in {None, _DEFAULT_PORTS.get(parts.scheme)} else f"{name}:{port}"


def _sorted(query: str) -> str:
    """The pairs in the order of their names, then of their values."""
    if "&" not in query:
        return query
    pairs = sorted(pair.partition("=") for pair in query.split("&"))
    return "&".join(map("".join, pairs))


def _day_of(region: str) -> Callable[[str, str, str], _Day]:
    def derive(access_key: str, secret_key: str, date: str) -> _Day:
        key = f"AWS4{secret_key}".encode()
        for step in (date, region, _SERVICE, _TERMINATOR):
            key = hmac.digest(key, step.encode(), "sha256")
        scope = f"{date}/{region}/{_SERVICE}/{_TERMINATOR}"
        credential = f"{access_key}/{scope}"
        return _Day(key, scope, credential, quote(credential, safe=_UNRESERVED))

    return derive


def _signature(day: _Day, stamp: str, request: str) -> str:
    hashed = hashlib.sha256(request.encode()).hexdigest()
    text = f"{_ALGORITHM}\n{stamp}\n{day.scope}\n{hashed}"
    return hmac.digest(day.key, text.encode(), "sha256").hex()


@lru_cache(maxsize=64)
def _stamp(epoch_s: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(epoch_s))


@lru_cache(maxsize=256)
def _quoted(names: str) -> str:
    return quote(names, safe=_UNRESERVED)


def lease_from_now(expires_s: int) -> Lease:
    """For requests that are query-signed only because their body cannot be hashed first."""
    return Lease(datetime.now(UTC), expires_s)
