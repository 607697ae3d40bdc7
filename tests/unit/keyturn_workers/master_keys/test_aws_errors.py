"""Each failure of AWS KMS is one line of ours, which says what to do and repeats nothing."""

from __future__ import annotations

import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ProfileNotFound,
    ReadTimeoutError,
)

from keyturn.errors import SettingsError
from keyturn_workers.master_keys.aws_errors import AwsFailure, describe_failure

SECRET = "x-amz-security-token:IQoJb3JpZ2luX2VjE"


def _error(code: str, message: str = SECRET, operation: str = "GenerateMac") -> ClientError:
    document = {"Error": {"Code": code, "Message": message},
                "ResponseMetadata": {"HTTPStatusCode": 400}}  # fmt: skip
    return ClientError(document, operation)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("AccessDeniedException", "these credentials are not allowed kms:GenerateMac on this key"),
        ("DisabledException", "is disabled"),
        ("NotFoundException", "does not exist"),
        ("InvalidKeyUsageException", "not of HMAC_256"),
        ("ThrottlingException", "throttling"),
        ("LimitExceededException", "throttling"),
        ("ExpiredTokenException", "credentials are expired"),
        ("UnrecognizedClientException", "unknown access key"),
        ("InvalidClientTokenId", "unknown access key"),
        ("InvalidSignatureException", "wrong secret access key, or this machine's clock"),
        ("KeyUnavailableException", "cannot use the key at the moment"),
        ("KMSInternalException", "cannot use the key at the moment"),
        ("KMSInvalidStateException", "does not allow its use"),
        ("Something", "refused the request (status 400)"),
    ],
)
def test_a_refusal_is_one_line_that_repeats_nothing(code: str, text: str) -> None:
    failure = describe_failure(_error(code), "GenerateMac")
    assert text in failure.text
    assert SECRET not in failure.text
    assert failure.text.isprintable()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (f"{SECRET} is pending deletion.", "scheduled for deletion"),
        (f"{SECRET} is pending import.", "no key material"),
        (f"{SECRET} is Disabled.", "is disabled"),
    ],
)
def test_the_state_of_a_key_is_named(message: str, text: str) -> None:
    failure = describe_failure(_error("KMSInvalidStateException", message), "GenerateMac")
    assert text in failure.text
    assert SECRET not in failure.text
    assert failure.refused


@pytest.mark.parametrize(
    ("exc", "refused", "backs_off", "credentials"),
    [
        (_error("ExpiredTokenException"), True, True, True),
        (_error("UnrecognizedClientException"), True, True, True),
        (_error("InvalidSignatureException"), True, True, True),
        # The role that a web identity asks for.
        (_error("AccessDenied", operation="AssumeRoleWithWebIdentity"), True, True, True),
        (_error("Throttling", operation="AssumeRoleWithWebIdentity"), False, True, True),
        # Where they come from may be away.
        (NoCredentialsError(), False, True, True),
        (ProfileNotFound(profile="x"), False, True, True),
        # The credentials are good, and new ones would not help.
        (_error("AccessDeniedException"), True, True, False),
        (_error("DisabledException"), True, False, False),
        (_error("NotFoundException"), True, False, False),
        (_error("KMSInvalidStateException", "is pending deletion"), True, False, False),
        # Nothing was refused.
        (_error("ThrottlingException"), False, False, False),
        (_error("KeyUnavailableException"), False, False, False),
        (_error("Something"), False, False, False),
        (EndpointConnectionError(endpoint_url="https://x"), False, False, False),
        (ReadTimeoutError(endpoint_url="https://x"), False, False, False),
        (ConnectionResetError(), False, False, False),
        (ParamValidationError(report="x"), False, False, False),
        (ValueError("x"), False, False, False),
    ],
)
def test_what_ends_access_what_backs_off_and_what_needs_new_credentials(
    exc: Exception, refused: bool, backs_off: bool, credentials: bool
) -> None:
    failure = describe_failure(exc, "GenerateMac")
    assert (failure.refused, failure.backs_off, failure.credentials) == (
        refused,
        backs_off,
        credentials,
    )


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (EndpointConnectionError(endpoint_url=SECRET), "cannot be reached (EndpointConnection"),
        (OSError(SECRET), "cannot be reached (OSError)"),
        (ParamValidationError(report=SECRET), "the call to AWS KMS failed (ParamValidationError)"),
        (ValueError(SECRET), "an unreadable response (ValueError)"),
    ],
)
def test_other_failures_name_their_kind_alone(exc: Exception, text: str) -> None:
    failure = describe_failure(exc, "GenerateMac")
    assert text in failure.text
    assert SECRET not in failure.text


def test_an_error_of_the_wrong_shape_is_a_refusal() -> None:
    strange = ClientError({"Error": {"Code": ["a"], "Message": 3}}, "GenerateMac")  # type: ignore[typeddict-item]
    assert describe_failure(strange, "GenerateMac") == AwsFailure(
        "AWS KMS refused the request (status ?)"
    )


def test_credentials_that_are_not_to_be_taken_are_named() -> None:
    """The session refuses their source: no access was revoked, but an operator must act."""
    failure = describe_failure(SettingsError("AWS_X: not from there"), "GenerateMac")
    assert failure == AwsFailure("AWS_X: not from there", backs_off=True, credentials=True)
