"""What AWS KMS and botocore report, as one line of our own each (SPEC 2.2, 12). Pure.

The text never repeats AWS's own: the one of a wrong signature shows the signed request with its
session token.
"""

from dataclasses import dataclass
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    ConnectionError,  # noqa: A004  # botocore's own, no OSError
    CredentialRetrievalError,
    HTTPClientError,
    InvalidConfigError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from keyturn.errors import SettingsError

_EXPIRED: Final = "the AWS credentials are expired"
_UNKNOWN: Final = "AWS does not accept the credentials: unknown access key or token"
_SIGNATURE: Final = (
    "AWS does not accept the signature: wrong secret access key, or this machine's clock"
)
_CREDENTIALS: Final = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "IncompleteSignature": _SIGNATURE,
    "IncompleteSignatureException": _SIGNATURE,
    "InvalidClientTokenId": _UNKNOWN,
    "InvalidSignatureException": _SIGNATURE,
    "MissingAuthenticationToken": _UNKNOWN,
    "MissingAuthenticationTokenException": _UNKNOWN,
    "NotAuthorized": _UNKNOWN,
    "OptInRequired": _UNKNOWN,
    "RequestExpired": _SIGNATURE,
    "RequestTimeTooSkewed": _SIGNATURE,
    "SignatureDoesNotMatch": _SIGNATURE,
    "UnrecognizedClientException": _UNKNOWN,
}
_ACCESS_DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException"})
_THROTTLED: Final = frozenset(
    {
        "LimitExceededException",
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_DISABLED: Final = "the key is disabled in AWS KMS"
_INVALID_STATE: Final = "KMSInvalidStateException"
_STATES: Final = {
    "NotFoundException": "the key does not exist in this account and Region of AWS KMS",
    "DisabledException": _DISABLED,
    "InvalidKeyUsageException": "the key in AWS KMS is not of HMAC_256 and GENERATE_VERIFY_MAC",
}
_FAILED: Final = frozenset(
    {
        "DependencyTimeoutException",
        "InternalFailure",
        "KMSInternalException",
        "KeyUnavailableException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
    }
)
_UNCERTAIN: Final = _THROTTLED | _FAILED
_NO_CREDENTIALS: Final = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    ProfileNotFound,
    ConfigNotFound,
    ConfigParseError,
    InvalidConfigError,
    SSOError,
)


@dataclass(frozen=True, slots=True)
class AwsFailure:
    """Why a call failed.

    Attributes:
        text: One line, without secrets.
        refused: AWS answered, and gives no access: use of the key must stop.
        backs_off: A repetition ends the same way until an operator has done something.
        credentials: The credentials themselves are missing, expired or wrong: get new ones.
    """

    text: str
    refused: bool = False
    backs_off: bool = False
    credentials: bool = False


def describe_failure(exc: Exception, operation: str) -> AwsFailure:
    """Say why an operation of AWS KMS failed.

    Args:
        exc: What aiobotocore raised; `TimeoutError` for no answer in time; `SettingsError` if
            the credentials would come from a server that is not allowed.
        operation: As IAM names it, such as `GenerateMac`.
    """
    if isinstance(exc, ClientError):
        return _refusal(exc, operation)
    if isinstance(exc, SettingsError):
        return _credentials(str(exc), refused=False)
    if isinstance(exc, _NO_CREDENTIALS):
        # Where they come from may be out of reach: that revokes no access.
        return _credentials(f"no AWS credentials ({type(exc).__name__})", refused=False)
    # EndpointConnectionError and the timeouts of connecting and reading are among these.
    if isinstance(exc, (ConnectionError, HTTPClientError, OSError)):
        return AwsFailure(f"AWS KMS cannot be reached ({type(exc).__name__})")
    if isinstance(exc, BotoCoreError):
        return AwsFailure(f"the call to AWS KMS failed ({type(exc).__name__})")
    # The parser raises whatever the bytes of an answer lead it to.
    return AwsFailure(f"AWS KMS returned an unreadable response ({type(exc).__name__})")


def _credentials(text: str, *, refused: bool = True) -> AwsFailure:
    return AwsFailure(text, refused=refused, backs_off=True, credentials=True)


def _refusal(exc: ClientError, operation: str) -> AwsFailure:
    error = exc.response.get("Error", {})
    # JSON that is not an error of KMS can have anything in these places.
    code, message = str(error.get("Code", "")), str(error.get("Message", ""))
    if exc.operation_name != operation:  # the security token service
        return _credentials(
            "AWS returned no temporary credentials for the role", refused=code not in _UNCERTAIN
        )
    if code in _CREDENTIALS:
        return _credentials(_CREDENTIALS[code])
    if code in _ACCESS_DENIED:
        return AwsFailure(
            f"AWS KMS denied access: these credentials are not allowed kms:{operation} on this key",
            refused=True,
            backs_off=True,
        )
    state = _invalid_state(message) if code == _INVALID_STATE else _STATES.get(code)
    if state is not None:
        return AwsFailure(state, refused=True)
    return AwsFailure(_unavailable(code, exc))


def _unavailable(code: str, exc: ClientError) -> str:
    if code in _THROTTLED:
        return "AWS KMS is throttling: too many requests for this account and Region"
    if code in _FAILED:
        return "AWS KMS cannot use the key at the moment"
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return f"AWS KMS refused the request (status {status if isinstance(status, int) else '?'})"


def _invalid_state(message: str) -> str:
    """AWS has one code for these and names the state in the text."""
    lowered = message.lower()
    if "deletion" in lowered:
        return "the key is scheduled for deletion in AWS KMS"
    if "import" in lowered:
        return "the key in AWS KMS has no key material: its import is pending, or it expired"
    if "disabled" in lowered:
        return _DISABLED
    return "the key's state in AWS KMS does not allow its use"
