"""The whole application: routes, errors, CORS and metrics (SPEC 9.3, 9.6)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.gateway.description import DOCS_HEADERS, openapi_json
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.problems import MEDIA_TYPE
from keyturn_workers.gateway.request import object_path
from keyturn_workers.process.http_server import client_connection
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.gateway.bench import (
    API_KEY,
    CHUNK,
    NEW_API_KEY,
    Bench,
    kek_of,
    ring_of,
    turned_to,
)
from tests.unit.keyturn_workers.gateway.serving import (
    BEARER,
    PATH,
    ROTATIONS,
    Connection,
    Serving,
    ask,
)
from tools.harness.local_keys import build_keyring

if TYPE_CHECKING:
    from starlette.types import Scope

# --- The door that every request passes: routes, refusals, bounds, counting (SPEC 9.6, 13)


_SECRET = "a secret in an exception"  # as the name says


@pytest.mark.parametrize(
    "target",
    [
        "//",
        "/v1",
        "/v1/projects/acme",
        "/v1/projects/acme/rotations/",
        "/v1/projects/acme/rotations/a/b",
        "/v1/projects//objects/a",
        "/healthz/",
        "/HEALTHZ",
        "/docs/oauth2-redirect",
        "/.keyturn/keyrings/acme.json",
        "/v2/projects/acme/objects/a",
    ],
)
async def test_unknown_paths_are_not_found(target: str) -> None:
    serving = Serving()
    got = await serving.ask(target=target)
    assert (got.status, got.headers["content-type"]) == (404, MEDIA_TYPE)
    assert got.document()["code"] == "not_found"
    assert not serving.bench.storage.calls


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", PATH, {"GET", "HEAD", "PUT", "DELETE", "OPTIONS"}),
        ("GET", ROTATIONS, {"POST", "OPTIONS"}),
        ("DELETE", f"{ROTATIONS}/x", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/metrics", {"GET", "HEAD", "OPTIONS"}),
        ("FROB", PATH, {"GET", "HEAD", "PUT", "DELETE", "OPTIONS"}),
    ],
)
async def test_other_methods_get_a_405_with_the_allowed_ones(
    method: str, target: str, allow: set[str]
) -> None:
    got = await Serving().ask(method, target)
    assert (got.status, got.headers["content-type"]) == (405, MEDIA_TYPE)
    assert set(got.headers["allow"].split(", ")) == allow
    assert got.document() == {"title": "Method Not Allowed", "status": 405}


@pytest.mark.parametrize(
    ("target", "allow"),
    [
        (PATH, "DELETE, GET, HEAD, OPTIONS, PUT"),
        (ROTATIONS, "OPTIONS, POST"),
        ("/healthz", "GET, HEAD, OPTIONS"),
    ],
)
async def test_options_gets_the_allowed_methods_without_an_api_key(target: str, allow: str) -> None:
    serving = Serving()
    got = await serving.ask("OPTIONS", target, key=None)
    assert (got.status, got.headers, got.content) == (204, {"allow": allow}, b"")
    assert not serving.bench.storage.calls
    route = {PATH: "objects", ROTATIONS: "rotations"}.get(target, "healthz")
    counted = {"route": route, "method": "OPTIONS", "status": "204"}
    assert serving.counted("requests_total", **counted) == 1


async def test_options_of_an_unknown_path_is_not_found() -> None:
    got = await Serving().ask("OPTIONS", "/v1", key=None)
    assert (got.status, got.document()["code"]) == (404, "not_found")


async def test_public_paths_need_no_api_key() -> None:
    serving = Serving()
    alive = await serving.ask(target="/healthz", key=None)
    assert (alive.status, alive.document()) == (200, {"status": "alive"})
    ready = await serving.ask(target="/readyz", key=None)
    body = {"ready": True, "writes": True, "checks": {"storage": True}}
    assert (ready.status, ready.document()) == (200, body)
    response = await serving.ask(target="/openapi.json", key=None)
    assert (response.status, response.document()) == (200, orjson.loads(openapi_json()))
    root = await serving.ask(target="/", key=None)
    assert (root.status, root.headers["location"]) == (307, "docs")
    page = await serving.ask(target="/docs", key=None)
    assert page.status == 200
    assert {name: page.headers[name] for name in DOCS_HEADERS} == DOCS_HEADERS
    metrics = await serving.ask(target="/metrics", key=None)
    names = {f.name for f in text_string_to_metric_families(metrics.content.decode())}
    assert "keyturn_gateway_requests" in names
    assert metrics.headers["content-type"].startswith("text/plain; version=")


async def test_readyz_is_503_if_a_check_fails_or_raises() -> None:
    async def fails() -> bool:
        return False

    async def raises() -> bool:
        raise RuntimeError(_SECRET)

    serving = Serving(checks={"broker": fails, "storage": raises})
    ready = await serving.ask(target="/readyz", key=None)
    assert ready.status == 503
    checks = {"broker": False, "storage": False}
    assert ready.document() == {"ready": False, "writes": False, "checks": checks}


async def test_readyz_says_that_a_gateway_which_knows_no_marks_serves_reads_alone() -> None:
    """It is ready: the first pod of an installation must not wait for the first worker."""
    serving = Serving()
    for permits_writes in (False, True):
        serving.permits_writes = permits_writes
        ready = await serving.ask(target="/readyz", key=None)
        body = {"ready": True, "writes": permits_writes, "checks": {"storage": True}}
        assert (ready.status, ready.document()) == (200, body)


async def test_an_unexpected_error_is_a_500_without_its_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    serving = Serving()
    serving.bench.plant_sealed()
    for target, method in ((PATH, "GET"), (PATH, "PUT"), (ROTATIONS, "POST")):
        serving.bench.storage.fail_next("read", RuntimeError(_SECRET))
        got = await serving.ask(method, target, body=b'{"api_key": "' + b"n" * 40 + b'"}')
        assert (got.status, got.ended, got.aborted) == (500, True, False)
        assert got.headers["content-type"] == MEDIA_TYPE
        assert got.headers["connection"] == "close"
        assert _SECRET not in got.content.decode()
        assert got.document()["detail"] == "internal error"
        assert serving.counted(
            "requests_total", route="objects" if target == PATH else "rotations",
            method=method, status="500",
        ) == 1  # fmt: skip
    assert "unexpected failure" in capsys.readouterr().out


async def test_too_many_concurrent_requests_get_a_503_while_health_still_responds() -> None:
    serving = Serving(concurrency=2)
    serving.bench.plant_sealed(bytes(20 * CHUNK))
    slow = [Connection(), Connection()]
    for connection in slow:
        connection.takes.clear()
    asking = [asyncio.create_task(serving.ask(on=connection)) for connection in slow]
    for connection in slow:
        await connection.began.wait()
    assert serving.counted("requests_in_flight") == 2
    refused = await serving.ask()
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["content-type"] == MEDIA_TYPE
    assert "code" not in refused.document()
    for target in ("/healthz", "/readyz", "/metrics"):
        assert (await serving.ask(target=target, key=None)).status == 200
    for connection in slow:
        connection.takes.set()
    assert [(await task).status for task in asking] == [200, 200]
    assert (await serving.ask()).status == 200
    assert serving.counted("requests_in_flight") == 0


async def test_a_project_at_its_share_of_requests_leaves_the_rest_to_others() -> None:
    """256 slow downloads with one key gave every other tenant 503."""
    serving = Serving(concurrency=8, project_share=0.25)
    serving.bench.plant_sealed(bytes(20 * CHUNK))
    other = ring_of(NEW_API_KEY, "other")
    serving.bench.storage.plant(
        keyring_s3_key("other"), build_keyring(other, MASTER_KEYS), Headers({})
    )
    slow = [Connection(), Connection()]
    for connection in slow:
        connection.takes.clear()
    asking = [asyncio.create_task(serving.ask(on=connection)) for connection in slow]
    for connection in slow:
        await connection.began.wait()
    for method, target in (("GET", PATH), ("HEAD", PATH), ("PUT", PATH), ("POST", ROTATIONS)):
        refused = await serving.ask(method, target)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.headers["content-type"] == MEDIA_TYPE
        if method != "HEAD":
            assert refused.document()["code"] == "too_many_requests"
    theirs = await serving.ask(target=object_path("other", "x"), key=NEW_API_KEY)
    assert theirs.status == 404
    for connection in slow:
        connection.takes.set()
    assert [(await task).status for task in asking] == [200, 200]
    assert (await serving.ask()).status == 200


async def test_a_canceled_request_releases_its_slot() -> None:
    serving = Serving(concurrency=1)
    serving.bench.plant_sealed(bytes(20 * CHUNK))
    connection = Connection()
    connection.takes.clear()
    asking = asyncio.create_task(serving.ask(on=connection))
    await connection.began.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not connection.ended
    assert serving.bench.storage.open_streams == 0
    assert (await serving.ask()).status == 200


async def test_an_arbitrary_request_creates_no_new_label_value() -> None:
    serving = Serving()
    serving.bench.plant_sealed()
    await serving.ask()
    await serving.ask("PUT", body=b"x")
    await serving.ask(target=f"{ROTATIONS}/2f6c9a0e-1111-4111-8111-111111111111")
    await serving.ask(target="/made/up")
    await serving.ask("MADEUP")
    known = {name: serving.label_values(name) for name in ("route", "method", "code", "reason")}
    for made_up in ("xyzzy", "plugh"):
        await serving.ask(made_up.upper())
        await serving.ask(target=f"/{made_up}")
        await serving.ask(target=f"/v1/projects/{made_up}/objects/{made_up}")
        await serving.ask(target=f"{ROTATIONS}/{made_up}")
        await serving.ask(made_up, f"/{made_up}?{made_up}", headers={made_up: made_up})
    after = {name: serving.label_values(name) for name in known}
    assert after == known
    assert known["method"] == {"GET", "PUT", "other"}
    assert known["route"] == {"objects", "rotation", "none"}


async def test_no_secret_shows_in_metrics_or_logs(capsys: pytest.CaptureFixture[str]) -> None:
    serving = Serving()
    body = bytearray(serving.bench.plant_sealed(b"a secret plaintext" * CHUNK))
    metadata = dict((await serving.bench.storage.head("acme/reports/q3.pdf")).metadata)
    body[-1] ^= 1
    serving.bench.plant(metadata, bytes(body))
    await serving.ask()
    await serving.ask("HEAD")
    output = (await serving.ask(target="/metrics")).content.decode() + capsys.readouterr().out
    assert "response aborted" in output
    for secret in (API_KEY, kek_of(API_KEY).reveal().hex(), "secret plaintext"):
        assert secret not in output
    assert MASTER_KEYS["m1"].reveal().hex() not in output


async def test_the_body_of_a_get_is_ignored() -> None:
    serving = Serving()
    serving.bench.plant_sealed(bytes(20 * CHUNK))
    got = await serving.ask(body=[b"what", b"ever"])
    assert (got.status, got.ended) == (200, True)


async def test_a_query_is_ignored() -> None:
    serving = Serving()
    serving.bench.plant_sealed()
    got = await serving.ask(target=PATH + "?versionId=1&response-content-type=text/html")
    assert (got.status, got.headers["content-type"]) == (200, "application/pdf")


async def test_an_api_key_in_the_query_is_not_accepted() -> None:
    serving = Serving()
    serving.bench.plant_sealed()
    for name in ("access_token", "authorization", "api_key"):
        got = await serving.ask(target=f"{PATH}?{name}={API_KEY}", key=None)
        assert got.status == 401


async def test_two_authorization_headers_are_refused() -> None:
    serving = Serving()
    serving.bench.plant_sealed()
    twice = [*BEARER.items(), *BEARER.items()]
    assert (await ask(serving.app, "GET", PATH, headers=twice)).status == 401


def test_a_server_without_a_way_to_reset_is_a_programming_error() -> None:
    scope: Scope = {"type": "http"}
    with pytest.raises(RuntimeError, match="reset"):
        client_connection.abort(scope)


async def test_an_unauthorized_request_uses_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is delayed. Wrong keys must not crowd out right ones meanwhile."""
    delayed, sleep = asyncio.Event(), asyncio.sleep

    async def held(delay: float) -> None:
        await (delayed.wait() if delay > 0 else sleep(0))

    monkeypatch.setattr(asyncio, "sleep", held)
    serving = Serving(concurrency=2, bench=Bench(refusal_min_s=60))
    serving.bench.plant_sealed(b"plaintext")
    wrong = [asyncio.create_task(serving.ask(key="kt_" + "w" * 43)) for _ in range(10)]
    for _ in range(50):
        await sleep(0)
    assert (await serving.ask()).content == b"plaintext"
    assert not any(refusal.done() for refusal in wrong)
    delayed.set()
    assert {got.status for got in await asyncio.gather(*wrong)} == {401}


async def test_readiness_is_checked_at_most_once_a_second() -> None:
    calls = 0

    async def holds() -> bool:
        nonlocal calls
        calls += 1
        return True

    serving = Serving(checks={"storage": holds})
    for _ in range(5):
        assert (await serving.ask(target="/readyz", key=None)).status == 200
    assert calls == 1


async def test_a_keyring_below_its_objects_is_counted() -> None:
    """It stops the project until an operator acts, so metrics must show it (SPEC 5.4)."""
    serving = Serving()
    before = serving.bench.ring
    serving.bench.write_keyring(turned_to(before, NEW_API_KEY))
    serving.bench.plant_sealed(b"plaintext")
    serving.bench.write_keyring(before)
    got = await serving.ask()
    assert (got.status, got.document()["code"]) == (503, "keyring_rolled_back")
    assert serving.counted("failures_total", code="keyring_rolled_back") == 1


# --- CORS: off by default, and else on every response (SPEC 9.3)


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


# --- The gateway's metrics: labels of fixed sets, on a separate registry (SPEC 9.6, 13)


_LABELS: Final = {"route", "method", "status", "code", "reason", "le"}


def test_two_processes_share_nothing() -> None:
    one, other = GatewayMetrics(), GatewayMetrics()
    one.sent_bytes.inc(5)
    name = "keyturn_gateway_sent_bytes_total"
    assert one.registry.get_sample_value(name) == 5
    assert other.registry.get_sample_value(name) == 0


def test_failures_are_shown_before_they_happen() -> None:
    """An alert on a rise would miss the first one otherwise."""
    shown = GatewayMetrics().registry.get_sample_value
    for code in ("corrupt_object", "no_usable_wrap", "storage_unavailable", "kms_unavailable"):
        assert shown("keyturn_gateway_failures_total", {"code": code}) == 0
    # A caller's own errors are no failures.
    assert shown("keyturn_gateway_failures_total", {"code": "not_found"}) is None
    for reason in ("client_gone", "client_slow", "corrupt_object"):
        assert shown("keyturn_gateway_aborted_total", {"reason": reason}) == 0


def test_no_label_is_chosen_by_a_caller() -> None:
    """A project, a key or an id would reveal customers, and grow without a limit."""
    metrics = GatewayMetrics()
    metrics.requests.labels("objects", "GET", "200").inc()
    metrics.first_byte_s.labels("objects").observe(0.1)
    metrics.failures.labels("corrupt_object").inc()
    metrics.aborted.labels("client_gone").inc()
    families = list(text_string_to_metric_families(metrics.registry.render()[0].decode()))
    assert all(family.name.startswith("keyturn_gateway_") for family in families)
    assert {name for f in families for sample in f.samples for name in sample.labels} == _LABELS


def test_the_first_byte_is_measured_from_a_millisecond_to_half_a_minute() -> None:
    metrics = GatewayMetrics()
    for seconds in (0.0005, 31):
        metrics.first_byte_s.labels("objects").observe(seconds)

    def counted(le: str) -> float | None:
        labels = {"route": "objects", "le": le}
        name = "keyturn_gateway_first_byte_seconds_bucket"
        return metrics.registry.get_sample_value(name, labels)

    assert (counted("0.001"), counted("30.0"), counted("+Inf")) == (1, 1, 2)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version="),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1"),
    ],
)
def test_the_format_is_the_one_that_is_accepted(accept: str, content_type: str) -> None:
    body, served = GatewayMetrics().registry.render(accept)
    assert served.startswith(content_type)
    assert body.endswith(b"# EOF\n") is bool(accept)
