"""Which setting to correct after an error of the storage (SPEC 12)."""

from typing import Final

# The settings that a storage's error code is about.
_OF_SETTINGS: Final = {
    "SignatureDoesNotMatch": "check KEYTURN_S3_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the storage does not know KEYTURN_S3_ACCESS_KEY_ID",
    "InvalidToken": "check the credentials: the storage refuses their session token",
    "ExpiredToken": "the session token of the credentials has expired",
    "AccessDenied": "the credentials in KEYTURN_S3_ACCESS_KEY_ID may not do that",
    "403": "check KEYTURN_S3_ACCESS_KEY_ID and KEYTURN_S3_SECRET_ACCESS_KEY, and what they may do",
    "NoSuchBucket": "the bucket in KEYTURN_S3_BUCKET does not exist",
    "InvalidBucketName": "check KEYTURN_S3_BUCKET",
    "AuthorizationHeaderMalformed": "check KEYTURN_S3_REGION",
    "PermanentRedirect": "the bucket is elsewhere: check KEYTURN_S3_REGION and _ENDPOINT_URL",
}


def with_setting(detail: str) -> str:
    """Return the detail of a storage's error, followed by the setting to correct, if one is known.

    Args:
        detail: The operation and the storage's code, such as `list: NoSuchBucket`.
    """
    hint = _OF_SETTINGS.get(detail.rpartition(": ")[2])
    return detail if hint is None else f"{detail} ({hint})"
