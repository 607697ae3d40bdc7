"""CORS: off by default, and else on every response (SPEC 9.3)."""

from __future__ import annotations

import pytest

from keyturn_workers.gateway.problems import MEDIA_TYPE
from tests.unit.keyturn_workers.gateway.bench import NEW_API_KEY
from tests.unit.keyturn_workers.gateway.serving import PATH, Serving

_ORIGIN = "https://app.example.com"
_OTHER = "https://other.example.com"
_PREFLIGHT = {"origin": _ORIGIN, "access-control-request-method": "PUT"}
_ALLOW_ORIGIN = "access-control-allow-origin"


def _cors_headers(headers: dict[str, str]) -> set[str]:
    return {name for name in headers if name.startswith("access-control")}


async def test_without_origins_there_is_no_cors() -> None:
    serving = Serving()
    serving.bench.plant_sealed()
    for method, headers in (("GET", {"origin": _ORIGIN}), ("OPTIONS", _PREFLIGHT)):
        got = await serving.ask(method, headers=headers)
        assert not _cors_headers(got.headers)
        assert "vary" not in got.headers


@pytest.mark.parametrize(
    ("method", "target", "key", "status"),
    [
        ("GET", PATH, True, 200),
        ("HEAD", PATH, True, 200),
        ("PUT", PATH, True, 409),
        ("GET", PATH, False, 401),
        ("GET", f"{PATH}/missing", True, 404),
        ("GET", "/no/such/path", True, 404),
        ("POST", PATH, True, 405),
        ("OPTIONS", PATH, False, 204),
        ("GET", "/healthz", False, 200),
    ],
)
async def test_every_response_can_be_read_by_a_page_of_an_allowed_origin(
    method: str, target: str, status: int, *, key: bool
) -> None:
    serving = Serving(cors_origins=(_ORIGIN,))
    serving.bench.plant_sealed()
    more = {} if key else {"key": NEW_API_KEY}
    got = await serving.ask(method, target, headers={"origin": _ORIGIN}, **more)
    assert got.status == status
    assert got.headers[_ALLOW_ORIGIN] == _ORIGIN
    assert got.headers["access-control-expose-headers"] == "*"
    assert got.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in got.headers


async def test_an_unexpected_error_and_a_full_gateway_can_be_read_too() -> None:
    serving = Serving(cors_origins=(_ORIGIN,), concurrency=1)
    serving.bench.storage.fail_next("read", RuntimeError("unexpected"))
    got = await serving.ask(headers={"origin": _ORIGIN})
    assert (got.status, got.headers[_ALLOW_ORIGIN]) == (500, _ORIGIN)
    with serving.limit.hold("other"):
        got = await serving.ask(headers={"origin": _ORIGIN})
    assert (got.status, got.headers[_ALLOW_ORIGIN]) == (503, _ORIGIN)


@pytest.mark.parametrize("origin", [_OTHER, "null", _ORIGIN.upper(), f"{_ORIGIN}.evil", None])
async def test_other_origins_read_nothing(origin: str | None) -> None:
    """The response varies by the origin all the same: a cache must not serve it to others."""
    serving = Serving(cors_origins=(_ORIGIN,))
    serving.bench.plant_sealed()
    got = await serving.ask(headers={} if origin is None else {"origin": origin})
    assert got.status == 200
    assert (_ALLOW_ORIGIN in got.headers, got.headers["vary"]) == (False, "Origin")


async def test_any_origin() -> None:
    serving = Serving(cors_origins=("*",))
    serving.bench.plant_sealed()
    for origin in (_ORIGIN, "null"):
        got = await serving.ask(headers={"origin": origin, "cookie": "a=b"})
        assert got.headers[_ALLOW_ORIGIN] == "*"
        assert "access-control-allow-credentials" not in got.headers


async def test_a_preflight_needs_no_api_key_and_reads_nothing() -> None:
    serving = Serving(cors_origins=(_ORIGIN,))
    requested = "authorization,if-none-match,prefer,range,x-keyturn-meta-author"
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        asked = {
            "access-control-request-method": method,
            "access-control-request-headers": requested,
        }
        got = await serving.ask("OPTIONS", key=None, headers={"origin": _ORIGIN, **asked})
        assert got.status == 200
        assert got.headers[_ALLOW_ORIGIN] == _ORIGIN
        assert method in got.headers["access-control-allow-methods"].split(", ")
        assert got.headers["access-control-allow-headers"] == requested  # a `*` lacks the first
        assert int(got.headers["access-control-max-age"]) > 0
    assert not serving.bench.storage.calls


@pytest.mark.parametrize("change", [{"origin": _OTHER}, {"access-control-request-method": "PATCH"}])
async def test_a_refused_preflight_is_a_problem_document(change: dict[str, str]) -> None:
    serving = Serving(cors_origins=(_ORIGIN,))
    got = await serving.ask("OPTIONS", key=None, headers={**_PREFLIGHT, **change})
    assert (got.status, got.headers["content-type"]) == (400, MEDIA_TYPE)
    assert got.document()["detail"] == "CORS does not allow this origin or method"
    assert not _cors_headers(got.headers)
    assert "Origin" in got.headers["vary"]


async def test_an_ordinary_options_request_is_no_preflight() -> None:
    serving = Serving(cors_origins=(_ORIGIN,))
    got = await serving.ask("OPTIONS", key=None, headers={"origin": _ORIGIN})
    assert (got.status, got.headers[_ALLOW_ORIGIN]) == (204, _ORIGIN)
    assert "PUT" in got.headers["allow"]
