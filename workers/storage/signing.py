"""Signatures for raw requests, by botocore's own signers (SPEC 8.4).

A leased write is signed in its query with the time of the keyring read that it rests on,
so that the storage itself refuses it once the lease is over. All headers that carry
meaning are signed. `botocore.auth` is no formal API: its version is pinned.
It must never log, and never puts a body into what it signs.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from botocore.auth import (  # type: ignore[attr-defined]  # _host_from_url: see the pin
    SIGNED_HEADERS_BLACKLIST,
    SIGV4_TIMESTAMP,
    UNSIGNED_PAYLOAD,
    S3SigV4Auth,
    S3SigV4QueryAuth,
    _host_from_url,
)
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from workers.storage.port import Lease

_SERVICE: Final = "s3"


class _PlainHeaders:
    """Canonical headers from one dict, made once a request.

    botocore makes them twice, each time as an email message; for the dozen headers of a
    put that is a third of what signing costs. Nothing else of the signature is ours.
    """

    def headers_to_sign(self, request: AWSRequest) -> dict[str, str]:
        made: dict[str, str] | None = request.context.get("headers_to_sign")
        if made is None:
            made = {name.lower(): value for name, value in request.headers.items()}
            for name in SIGNED_HEADERS_BLACKLIST:
                made.pop(name, None)
            made["host"] = _host_from_url(request.url)
            request.context["headers_to_sign"] = made
        return made

    def canonical_headers(self, headers_to_sign: dict[str, str]) -> str:
        return "\n".join(
            f"{name}:{' '.join(str(headers_to_sign[name]).split())}"
            for name in sorted(headers_to_sign)
        )

    def signed_headers(self, headers_to_sign: dict[str, str]) -> str:
        return ";".join(sorted(headers_to_sign))


class _HeaderSigner(_PlainHeaders, S3SigV4Auth):  # type: ignore[misc]  # stubs want HTTPHeaders
    """Signs in the `Authorization` header, with a payload hash that is known already."""

    def payload(self, request: AWSRequest) -> Any:
        return request.context["payload_sha256"]


class _LeaseSigner(_PlainHeaders, S3SigV4QueryAuth):  # type: ignore[misc]  # as above
    """Signs in the query, as of the lease's beginning and until its end."""

    def __init__(self, credentials: ReadOnlyCredentials, region: str, lease: Lease) -> None:
        super().__init__(credentials, _SERVICE, region, expires=lease.expires_s)
        self._timestamp = lease.read_at.astimezone(UTC).strftime(SIGV4_TIMESTAMP)

    def _modify_request_before_signing(self, request: AWSRequest) -> None:
        # `add_auth` has just put the local time there; the lease counts by the storage's.
        request.context["timestamp"] = self._timestamp
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # not in the stubs


@dataclass(frozen=True, slots=True)
class Signed:
    """A request ready to be sent once. A retry needs a new one."""

    url: str
    headers: dict[str, str]


def sign(
    method: str,
    url: str,
    headers: dict[str, str],
    *,
    credentials: ReadOnlyCredentials,
    region: str,
    payload_sha256: str = UNSIGNED_PAYLOAD,
    lease: Lease | None = None,
) -> Signed:
    """Sign a request whose path and query are percent-encoded already.

    Args:
        method: In upper case.
        url: The whole URL.
        headers: All headers that the request will carry, but for Host and Content-Length.
        credentials: Frozen ones; a session token travels along where there is one.
        region: The bucket's.
        payload_sha256: Hex, or `UNSIGNED-PAYLOAD`. A leased request never signs its body;
            its `Content-MD5` is signed.
        lease: Signs in the query, bounded in time, where given.
    """
    request = AWSRequest(method=method, url=url, headers=headers)
    request.context["payload_sha256"] = payload_sha256
    if lease is None:
        _HeaderSigner(credentials, _SERVICE, region).add_auth(request)
    else:
        _LeaseSigner(credentials, region, lease).add_auth(request)
    return Signed(str(request.url), dict(request.headers.items()))


def lease_from_now(expires_s: int) -> Lease:
    """For requests that are query-signed only because their body cannot be hashed first."""
    return Lease(datetime.now(UTC), expires_s)
