"""Signatures equal those of botocore's own signers, byte for byte, for any request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_workers.core.storage_values import Lease
from keyturn_workers.storage.credentials import Credentials
from keyturn_workers.storage.signing import UNSIGNED_PAYLOAD, Signer

if TYPE_CHECKING:
    from keyturn_workers.storage.signing import SignedRequest

pytestmark = pytest.mark.slow

_UNRESERVED = "-_.~"
_EXAMPLE = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None)
_EXAMPLE_TIME = datetime(2013, 5, 24, tzinfo=UTC)
_BASE_URLS = [
    "http://127.0.0.1:9000/bucket/",
    "http://[::1]:9000/bucket/",
    "http://storage.example:80/bucket/",
    "https://storage.example:443/bucket/",
    "https://Storage.Example/",
    "https://bucket.s3.eu-central-1.amazonaws.com/",
    "https://gateway.example:8443/prefix/bucket/",
]
_token = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_names = st.text(alphabet=_token.lower() + "!#$%&'*+-.^_`|~", min_size=1, max_size=20)
# All that UTF-8 can hold: no lone surrogates.
_texts = st.text(st.characters(codec="utf-8"), max_size=40)
# Of what a header can hold: no line ends, but spaces wherever, and bytes beyond ASCII.
_values = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=40
) | st.sampled_from(
    ["", " ", "  two  spaces\t and a tab ", "a,b", "=?UTF-8?B?w6Q=?=", "\N{NO-BREAK SPACE}x"]
)
_known = st.sampled_from(
    [
        "cache-control",
        "content-disposition",
        "content-md5",
        "content-type",
        "if-match",
        "if-none-match",
        "range",
        "x-amz-copy-source",
        "x-amz-copy-source-if-match",
        "x-amz-metadata-directive",
        "expect",
        "user-agent",
        "transfer-encoding",
        "x-amzn-trace-id",
    ]
)
# Set by the signer or the HTTP client.
_ours = frozenset(
    {
        *("host", "date", "authorization", "content-length"),
        *("x-amz-content-sha256", "x-amz-date", "x-amz-security-token"),
    }
)
_headers = st.dictionaries(
    _known | _names.map("x-amz-meta-".__add__) | _names.filter(lambda n: n not in _ours),
    _values,
    max_size=16,
)
_queries = st.dictionaries(_texts.filter(bool), _texts, max_size=4)
_credentials = st.builds(
    Credentials,
    st.text(alphabet=_token, min_size=1, max_size=20) | _texts.filter(bool),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    st.none() | st.text(alphabet=_token + "/+=", min_size=1, max_size=60),
)
_times = st.datetimes(
    min_value=datetime(2000, 1, 1),  # noqa: DTZ001  # Hypothesis adds the zone
    max_value=datetime(2099, 1, 1),  # noqa: DTZ001  # as above
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=9)), timezone(-timedelta(hours=7))]),
)


def _theirs(ours: Credentials) -> ReadOnlyCredentials:
    return ReadOnlyCredentials(ours.access_key, ours.secret_key, ours.token)


@dataclass(frozen=True)
class Case:
    """One request to be signed."""

    base_url: str
    region: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    credentials: Credentials

    @property
    def url(self) -> str:
        url = self.base_url + self.path
        return f"{url}?{self.query}" if self.query else url

    def signed(
        self, *, payload: str = UNSIGNED_PAYLOAD, lease: Lease | None = None
    ) -> SignedRequest:
        return Signer(self.base_url, self.region).sign(
            self.method,
            self.path,
            dict(self.headers),
            query=self.query,
            credentials=self.credentials,
            payload_sha256=payload,
            lease=lease,
        )

    def request(self) -> AWSRequest:
        return AWSRequest(method=self.method, url=self.url, headers=dict(self.headers))


def _query(pairs: dict[str, str]) -> str:
    return "&".join(
        f"{quote(name, safe=_UNRESERVED)}={quote(value, safe=_UNRESERVED)}"
        for name, value in pairs.items()
    )


_cases = st.builds(
    Case,
    base_url=st.sampled_from(_BASE_URLS),
    region=st.sampled_from(["us-east-1", "eu-central-1", "default"]),
    method=st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE"]),
    path=(_texts | st.sampled_from(["a/../b", "./x", "//x//", "%41", "a b+c", "?#&="])).map(
        lambda key: quote(key, safe="/-_.~")
    ),
    query=st.just("") | st.sampled_from(["uploads=", "a=x&a1=y&a-b=z"]) | _queries.map(_query),
    headers=_headers,
    credentials=_credentials,
)


def _at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: moment.astimezone(UTC))
    monkeypatch.setattr("keyturn_workers.storage.signing.time.time", moment.timestamp)


@given(
    case=_cases,
    moment=_times,
    payload=st.just(UNSIGNED_PAYLOAD) | st.from_regex(r"\A[0-9a-f]{64}\Z"),
)
@settings(max_examples=1000, deadline=None)
def test_signed_in_the_header_as_botocore_does(case: Case, moment: datetime, payload: str) -> None:
    request = case.request()
    theirs = S3SigV4Auth(_theirs(case.credentials), "s3", case.region)
    with pytest.MonkeyPatch.context() as patch:
        _at(patch, moment)
        # Here the caller decides whether the payload is signed.
        patch.setattr(theirs, "payload", lambda _: payload)
        theirs.add_auth(request)
        ours = case.signed(payload=payload)
    assert ours.url == request.url
    assert ours.headers == {name.lower(): value for name, value in request.headers.items()}


@given(case=_cases, read_at=_times, expires_s=st.integers(1, 604_800))
@settings(max_examples=1000, deadline=None)
def test_signed_in_the_query_as_botocore_does(
    case: Case, read_at: datetime, expires_s: int
) -> None:
    request = case.request()
    with pytest.MonkeyPatch.context() as patch:
        _at(patch, read_at)
        S3SigV4QueryAuth(_theirs(case.credentials), "s3", case.region, expires_s).add_auth(request)
        # The lease's own time counts, not the local time.
        _at(patch, read_at + timedelta(days=1))
        ours = case.signed(lease=Lease(read_at, expires_s))
    assert ours.url == request.url
    assert ours.headers == case.headers


def test_a_content_type_is_signed_whatever_it_is() -> None:
    """Botocore drops this one as its own default: a copy would lose it."""
    kind = "application/x-www-form-urlencoded; charset=utf-8"
    case = Case(_BASE_URLS[0], "us-east-1", "PUT", "k", "", {"content-type": kind}, _EXAMPLE)
    ours = case.signed(lease=Lease(_EXAMPLE_TIME, 60))
    assert ours.headers == {"content-type": kind}
    unsigned, _, signature = ours.url.partition("&X-Amz-Signature=")
    assert parse_qs(urlsplit(unsigned).query)["X-Amz-SignedHeaders"] == ["content-type;host"]
    theirs = S3SigV4QueryAuth(_theirs(_EXAMPLE), "s3", "us-east-1")
    request = AWSRequest(method="PUT", url=unsigned, headers=dict(ours.headers))
    request.context["timestamp"] = "20130524T000000Z"
    text = theirs.string_to_sign(request, theirs.canonical_request(request))
    assert signature == theirs.signature(text, request)


def test_the_examples_of_aws_are_signed_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Amazon S3 API Reference: a ranged read signed in its header, and a presigned one."""
    _at(monkeypatch, _EXAMPLE_TIME)
    signer = Signer("https://examplebucket.s3.amazonaws.com/", "us-east-1")
    ranged = signer.sign(
        "GET",
        "test.txt",
        {"range": "bytes=0-9"},
        credentials=_EXAMPLE,
        payload_sha256=sha256(b"").hexdigest(),
    )
    assert ranged.headers["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
    lease = Lease(_EXAMPLE_TIME, 86400)
    presigned = signer.sign("GET", "test.txt", {}, credentials=_EXAMPLE, lease=lease)
    assert presigned.url.endswith(
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


def test_a_new_day_and_renewed_credentials_get_a_new_signing_key() -> None:
    """A long-lived signer signs like a new one."""
    signer = Signer(_BASE_URLS[0], "us-east-1")
    renewed = Credentials("AKID", "another secret", "token")
    for credentials in (_EXAMPLE, renewed, _EXAMPLE):
        for day in (0, 1, 2, 0):
            lease = Lease(_EXAMPLE_TIME + timedelta(days=day), 60)
            fresh = Signer(_BASE_URLS[0], "us-east-1")
            of_one, of_other = (
                each.sign("GET", "k", {}, credentials=credentials, lease=lease)
                for each in (signer, fresh)
            )
            assert of_one == of_other


def test_a_signer_shows_no_secret() -> None:
    """Neither the secret key nor the signing key is in any text."""
    signer = Signer(_BASE_URLS[0], "us-east-1")
    signer.sign("GET", "k", {}, credentials=_EXAMPLE, lease=Lease(_EXAMPLE_TIME, 60))
    key = signer._signing_key(_EXAMPLE.access_key, _EXAMPLE.secret_key, "20130524")
    shown = f"{signer!r} {vars(signer)!r} {key!r}"
    assert str(_EXAMPLE.secret_key) not in shown
    assert repr(key.key) not in shown
