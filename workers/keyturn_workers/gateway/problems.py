"""Errors over HTTP: RFC 9457 problem documents with the codes of SPEC 12 (SPEC 9.6).

Errors of HTTP itself (405, 412, 503 for too many requests) have no code. Every 401 has the same
text, unless no well-formed API key was sent. A response never contains a secret, a plaintext or
the text of a foreign exception.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import orjson
from starlette.responses import Response

from keyturn.errors import (
    CodedError,
    CustomerKeyRefusedError,
    CustomerKeyUnavailableError,
    KmsUnavailableError,
    UnauthorizedError,
    UnknownMasterKeyError,
)
from keyturn_workers.gateway.auth import NoApiKeyError

MEDIA_TYPE: Final = "application/problem+json"
UNAUTHORIZED: Final = "not the project's current API key, or no such project"
NO_MASTER_KEY: Final = "a master key is not available to this gateway now"
CUSTOMER_KEY_REFUSED: Final = "the store of the project's customer key refuses to decrypt with it"
NO_CUSTOMER_KEY: Final = "the project's customer key is not available to this gateway now"
_STATUS: Final[Mapping[str, int]] = {
    "malformed_request": 400,
    "bad_seal": 400,
    "staged_body_missing": 400,
    "unknown_source": 400,
    "unknown_intake_key": 400,
    "unauthorized": 401,
    "not_permitted": 403,
    "bad_signature": 403,
    "customer_key_refused": 403,
    "request_expired": 403,
    "not_found": 404,
    "source_missing": 404,
    "unknown_project": 404,
    "project_erased": 404,
    "already_exists": 409,
    "already_enrolled": 409,
    "deleted_key": 409,
    "generation_mismatch": 409,
    "kek_reused": 409,
    "locked_object": 409,
    "archived_object": 409,
    "source_changed": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "too_many_requests": 429,
    "corrupt_object": 502,
    "no_usable_wrap": 502,
    "unknown_algorithm": 502,
    "wraps_disagree": 502,
}
_DEFAULT_STATUS: Final = 503
_RETRY_AFTER_S: Final = 1
_RETRYABLE: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def status_for_code(code: str) -> int:
    """Return the HTTP status of a code of SPEC 12."""
    return _STATUS.get(code, _DEFAULT_STATUS)


def problem_from_error(error: CodedError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response for an error of Keyturn."""
    detail = error.detail
    if isinstance(error, UnauthorizedError) and not isinstance(error, NoApiKeyError):
        detail = UNAUTHORIZED
    elif isinstance(error, KmsUnavailableError | UnknownMasterKeyError):
        detail = NO_MASTER_KEY  # where the operator's keys are held is no customer's business
    elif isinstance(error, CustomerKeyRefusedError):
        detail = CUSTOMER_KEY_REFUSED  # the holder of a link must not learn which key it is
    elif isinstance(error, CustomerKeyUnavailableError):
        detail = NO_CUSTOMER_KEY
    return problem(status_for_code(error.code), detail, code=error.code, headers=headers)


def problem(
    status: int,
    detail: str = "",
    *,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, object] | None = None,
) -> Response:
    """Return a problem document as a response; `more` are further members.

    `detail` is one line for a person; `code` is one of SPEC 12.
    """
    document: dict[str, object] = {"title": HTTPStatus(status).phrase, "status": status}
    if code is not None:
        document["code"] = code
    if detail:
        document["detail"] = detail
    all_headers = {
        "cache-control": "no-store",
        # The request's URL may be a link: a browser must not send it on.
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        **(headers or {}),
    }
    if status == HTTPStatus.UNAUTHORIZED:
        all_headers["www-authenticate"] = 'Bearer realm="keyturn"'
    if status in _RETRYABLE:
        all_headers["retry-after"] = str(_RETRY_AFTER_S)
    return Response(orjson.dumps(document | dict(more or {})), status, all_headers, MEDIA_TYPE)
