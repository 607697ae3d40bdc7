"""Errors over HTTP: statuses of SPEC 12, RFC 9457 documents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import (
    CodedError,
    KmsUnavailableError,
    UnauthorizedError,
    UnknownMasterKeyError,
    all_errors,
)
from keyturn_workers.gateway.auth import NoApiKeyError
from keyturn_workers.gateway.problems import (
    MEDIA_TYPE,
    problem,
    problem_from_error,
    status_for_code,
)

if TYPE_CHECKING:
    from starlette.responses import Response

# By hand from SPEC 12.
STATUSES = {
    "malformed_request": 400,
    "bad_seal": 400,
    "staged_body_missing": 400,
    "unknown_intake_key": 400,
    "unknown_source": 400,
    "unauthorized": 401,
    "not_permitted": 403,
    "customer_key_refused": 403,
    "bad_signature": 403,
    "request_expired": 403,
    "not_found": 404,
    "unknown_project": 404,
    "project_erased": 404,
    "source_missing": 404,
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
    "keyring_rolled_back": 503,
    "customer_key_unavailable": 503,
    "unknown_master_key": 503,
    "storage_unavailable": 503,
    "foreign_object": 503,
    "hidden_wrap": 503,
    "lease_mismatch": 503,
    "kms_unavailable": 503,
    "marks_unavailable": 503,
    "source_unavailable": 503,
}


def _document(response: Response) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(bytes(response.body))
    return document


def test_the_table_has_every_code() -> None:
    assert set(STATUSES) == set(all_errors())


@pytest.mark.parametrize("code", STATUSES)
def test_every_code_has_its_status(code: str) -> None:
    assert status_for_code(code) == STATUSES[code]
    response = problem_from_error(all_errors()[code]("said in one line"))
    assert response.status_code == STATUSES[code]
    assert response.headers["content-type"] == MEDIA_TYPE == "application/problem+json"
    document = _document(response)
    assert (document["code"], document["status"]) == (code, STATUSES[code])
    assert document["title"]
    has_own = {"unauthorized", "kms_unavailable", "unknown_master_key"}
    if code not in has_own | {"customer_key_refused", "customer_key_unavailable"}:
        assert document["detail"] == "said in one line"


def test_an_unknown_code_is_a_503() -> None:
    assert status_for_code("something_new") == 503


@pytest.mark.parametrize("error", [UnauthorizedError(), UnauthorizedError("no such project")])
def test_every_refused_key_gets_the_same_bytes_and_a_challenge(error: CodedError) -> None:
    response, plain = problem_from_error(error), problem_from_error(UnauthorizedError())
    assert response.body == plain.body
    assert response.raw_headers == plain.raw_headers
    assert response.headers["www-authenticate"] == 'Bearer realm="keyturn"'


def test_a_401_without_an_api_key_says_so() -> None:
    response = problem_from_error(NoApiKeyError("no API key was sent"))
    assert _document(response) == {
        "title": "Unauthorized",
        "status": 401,
        "code": "unauthorized",
        "detail": "no API key was sent",
    }
    assert response.headers["www-authenticate"] == 'Bearer realm="keyturn"'


def test_a_retryable_response_has_retry_after() -> None:
    for status in (400, 401, 404, 409, 429, 502, 503):
        assert ("retry-after" in problem(status).headers) == (status in (429, 503))


def test_no_problem_is_cached_or_sniffed() -> None:
    headers = problem(404, headers={"x-more": "1"}).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-more"] == "1"


def test_an_error_of_http_itself_has_no_code() -> None:
    assert _document(problem(405)) == {"title": "Method Not Allowed", "status": 405}


def test_further_members_are_added() -> None:
    document = _document(problem(503, "why", more={"upload_id": "x"}))
    assert document == {
        "title": "Service Unavailable",
        "status": 503,
        "detail": "why",
        "upload_id": "x",
    }


@pytest.mark.parametrize("error", [KmsUnavailableError, UnknownMasterKeyError])
def test_a_customer_does_not_learn_where_the_operators_keys_are_held(
    error: type[CodedError],
) -> None:
    response = problem_from_error(error("vault:https://vault.example.com/transit/m2 is sealed"))
    assert "vault" not in bytes(response.body).decode()
    assert _document(response)["code"] == error.code
    assert int(response.headers["retry-after"]) >= 1
