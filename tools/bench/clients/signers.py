"""Other signers for plain HTTP clients: botocore's as they are, and AWS's in C."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from botocore.auth import UNSIGNED_PAYLOAD, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest

from keyturn_workers.storage.signing import Signed
from tools.bench.clients.asking import EMPTY_SHA256

if TYPE_CHECKING:
    from keyturn_workers.storage.port import Lease
    from tools.bench.clients.asking import Place, Signs


def botocore_signer(place: Place) -> Signs:
    """Botocore's two signers, which know no lease: they sign as of now."""
    credentials = place.credentials

    def signed(method: str, key: str, headers: dict[str, str], lease: Lease | None) -> Signed:
        request = AWSRequest(method=method, url=place.base_url + key, headers=headers)
        if lease is None:
            S3SigV4Auth(credentials, "s3", place.region).add_auth(request)
        else:
            S3SigV4QueryAuth(credentials, "s3", place.region, lease.expires_s).add_auth(request)
        target = str(request.url).removeprefix(place.endpoint_url)
        return Signed(place.endpoint_url, target, dict(request.headers.items()))

    return signed


def crt_signer(place: Place) -> Signs:
    """`awscrt.auth`. Credentials that are known make it sign at once, in this thread."""
    auth, http = import_module("awscrt.auth"), import_module("awscrt.http")
    provider = auth.AwsCredentialsProvider.new_static(place.access_key_id, place.secret_access_key)
    common: dict[str, Any] = {
        "algorithm": auth.AwsSigningAlgorithm.V4,
        "credentials_provider": provider,
        "region": place.region,
        "service": "s3",
        "use_double_uri_encode": False,
        "should_normalize_uri_path": False,
    }
    in_header = {
        "signature_type": auth.AwsSignatureType.HTTP_REQUEST_HEADERS,
        "signed_body_value": EMPTY_SHA256,
        "signed_body_header_type": auth.AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
    }
    in_query = {
        "signature_type": auth.AwsSignatureType.HTTP_REQUEST_QUERY_PARAMS,
        "signed_body_value": UNSIGNED_PAYLOAD,
        "signed_body_header_type": auth.AwsSignedBodyHeaderType.NONE,
    }

    def signed(method: str, key: str, headers: dict[str, str], lease: Lease | None) -> Signed:
        path = f"/{place.bucket}/{key}"
        fields = http.HttpHeaders([*headers.items(), ("host", place.host)])
        request = http.HttpRequest(method, path, fields)
        if lease is None:
            config = auth.AwsSigningConfig(**common, **in_header)
        else:
            config = auth.AwsSigningConfig(
                **common, **in_query, date=lease.read_at, expiration_in_seconds=lease.expires_s
            )
        auth.aws_sign_request(request, config).result()
        said = {name: value for name, value in request.headers if name != "host"}
        return Signed(place.endpoint_url, request.path, said)

    return signed
