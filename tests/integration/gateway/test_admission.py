"""Who is let in, and what a path may name (SPEC 9.1, 13): every odd way to ask, as a table."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.integration.gateway.scene import OTHER_KEY, plain
from tools.harness.http import exchange, object_target, request

if TYPE_CHECKING:
    from tests.integration.gateway.scene import Scene
    from tools.harness.http import Response

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_KEY = "reports/q3.pdf"
_PATH = object_target("acme", _KEY)
_PERCENT_KEY = "literal%2fpercent"  # a legal key: its path says %252f
_STRANGER = "kt_" + "s" * 40

Fields = list[tuple[str, str]]


def _bearer(api_key: str) -> Fields:
    return [("Authorization", f"Bearer {api_key}")]


async def _raw(scene: Scene, method: str, target: str, fields: Fields) -> Response:
    return await exchange(
        scene.process.host,
        scene.process.port,
        request(method, target, fields),
        head_only=method == "HEAD",
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def _objects(scene: Scene) -> None:
    scene.put(_KEY, plain(100))
    scene.put(_PERCENT_KEY, plain(50, seed=1))
    # What a confused path could reach.
    for s3_key in ("acme", "acme/", "acme//x", "acme/../other/x", "secret", "acme/a/./b"):
        scene.bucket.put(s3_key, b"planted", {})


# Well-formed keys in a request for an object that exists.
_WRONG: dict[str, Fields] = {
    "another project's key": _bearer(OTHER_KEY),
    "a key of no project": _bearer(_STRANGER),
    "a key in upper case": [("Authorization", "Bearer UPPER")],
    "the key and one character": [("Authorization", "Bearer KEYx")],
}
_NONE = "no API key was sent"
_FORM = "not of the form"
_MALFORMED = "not an API key"
_KEYLESS: dict[str, tuple[Fields, str]] = {
    "no header": ([], _NONE),
    "the proxy's header": ([("Proxy-Authorization", "Bearer KEY")], _NONE),
    "a cookie": ([("Cookie", "Authorization=Bearer KEY")], _NONE),
    "an empty key": ([("Authorization", "Bearer ")], _NONE),
    "an empty header": ([("Authorization", "")], _FORM),
    "a tab after the scheme": ([("Authorization", "Bearer\tKEY")], _FORM),
    "two headers, both right": ([("Authorization", "Bearer KEY")] * 2, "more than one"),
    "two keys in one": ([("Authorization", "Bearer KEY, Bearer KEY")], _MALFORMED),
    "10 KB of it": (_bearer("k" * 10_240), _MALFORMED),
    "a key in Latin-1": (_bearer("k" * 40 + "\xe9"), _MALFORMED),
}


def _with_key(scene: Scene, fields: Fields) -> Fields:
    api_key = scene.deployment.api_key
    return [
        (name, value.replace("KEY", api_key).replace("UPPER", api_key.upper()))
        for name, value in fields
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusal(scene: Scene) -> Response:
    """The one refusal, of which all others are a copy."""
    return await _raw(scene, "GET", _PATH, _bearer(_STRANGER))


def _is_the_refusal(answer: Response, refusal: Response) -> None:
    assert answer.status == 401
    assert answer.code == "unauthorized"
    assert answer.body == refusal.body
    assert [f for f in answer.fields if f[0] != "date"] == [
        f for f in refusal.fields if f[0] != "date"
    ]
    assert answer.headers["www-authenticate"] == 'Bearer realm="keyturn"'


@pytest.mark.parametrize("who", _WRONG)
async def test_only_the_current_key_is_accepted(scene: Scene, refusal: Response, who: str) -> None:
    """Whatever is wrong with a key, it is refused in the same bytes."""
    answer = await _raw(scene, "GET", _PATH, _with_key(scene, _WRONG[who]))
    _is_the_refusal(answer, refusal)


@pytest.mark.parametrize("what", _KEYLESS)
async def test_a_request_without_an_api_key_is_refused_in_other_words(
    scene: Scene, what: str
) -> None:
    """They name what is missing, repeat nothing that was sent, and depend on no project."""
    fields, detail = _KEYLESS[what]
    sent = _with_key(scene, fields)
    answer = await _raw(scene, "GET", _PATH, sent)
    assert (answer.status, answer.code) == (401, "unauthorized")
    assert detail in answer.problem["detail"]
    assert scene.deployment.api_key.encode() not in answer.body
    assert answer.headers["www-authenticate"] == 'Bearer realm="keyturn"'
    unknown = await _raw(scene, "GET", object_target("nosuch", _KEY), sent)
    assert unknown.body == answer.body


# Project names that are invalid, or not enrolled; the caller holds the key of `acme`.
_PROJECTS = {
    "unknown": "nosuch",
    "named like the stand-in": "nobody",
    "Keyturn's own, encoded": "%2ekeyturn",
    "parent, encoded": "%2e%2e",
    "objects within": "acme%2fobjects%2fx",
    "trailing space": "acme%20",
    "NUL": "acme%00",
    "no UTF-8": "%ff",
    "all, as a folder": "_all",
    "fullwidth": "%EF%BD%81cme",
}


@pytest.mark.parametrize("what", _PROJECTS)
async def test_an_api_key_opens_no_other_project(
    scene: Scene, refusal: Response, what: str
) -> None:
    """A project that there is not, or cannot be, is refused in the words for a wrong key."""
    target = f"/v1/projects/{_PROJECTS[what]}/objects/{_KEY}"
    fields = _bearer(scene.deployment.api_key)
    got, put = await asyncio.gather(
        _raw(scene, "GET", target, fields), _raw(scene, "PUT", target, fields)
    )
    _is_the_refusal(got, refusal)
    assert (put.status, put.body) == (401, refusal.body)


# Paths of keys that SPEC 1 does not allow, as they are sent.
_KEYS = {
    "parent": "..",
    "parent, encoded": "%2e%2e",
    "parent between encoded slashes": "a%2F..%2fb",
    "self": ".",
    "empty segment": "a//b",
    "leading slash, own records": "%2f.keyturn/keyrings/acme.json",
    "trailing slash, encoded": "a%2f",
    "NUL": "a%00b",
    "carriage return": "a%0db",
    "C1 control": "a%c2%85b",
    "no UTF-8": "a%ff",
    "overlong slash": "a%c0%afb",
    "nothing": "",
    "901 bytes": "k" * 901,
}


@pytest.mark.parametrize("what", _KEYS)
async def test_invalid_object_keys_are_refused(scene: Scene, what: str) -> None:
    """404 for the API key's holder, 400 for an upload, 401 for all others: nothing is resolved."""
    target = f"/v1/projects/acme/objects/{_KEYS[what]}"
    methods = ("GET", "HEAD", "PUT")
    known = _bearer(scene.deployment.api_key)
    responses = await asyncio.gather(
        *(_raw(scene, method, target, known) for method in methods),
        *(_raw(scene, method, target, _bearer(_STRANGER)) for method in methods),
    )
    assert [answer.status for answer in responses] == [404, 404, 400] + [401] * 3
    assert (responses[0].code, responses[2].code) == ("not_found", "malformed_request")


_NOT_THERE = {
    "a key without an object": "nothing/here",
    "own records, which no project can name": ".keyturn/keyrings/acme.json",
    "900 bytes": "k" * 900,
    "a backslash": "a%5c..%5cb",
    "a key like an address": "https:%2f-evil",
}


@pytest.mark.parametrize("what", _NOT_THERE)
async def test_a_valid_key_is_read_below_its_project_only(scene: Scene, what: str) -> None:
    target = f"/v1/projects/acme/objects/{_NOT_THERE[what]}"
    answer = await _raw(scene, "GET", target, _bearer(scene.deployment.api_key))
    assert (answer.status, answer.code) == (404, "not_found")
    assert answer.problem["detail"] == "no object has this key"


@pytest.mark.parametrize(
    ("target", "size_bytes", "seed"),
    [
        (_PATH, 100, 0),
        ("/v1/projects/acme/objects/reports%2Fq3.pdf", 100, 0),
        ("/v1/projects/acme/objects/%72eports/q3%2epdf", 100, 0),
        (f"{_PATH}?versionId=1&partNumber=2", 100, 0),
        (f"http://elsewhere.example{_PATH}", 100, 0),
        ("/v1/projects/acme/objects/literal%252fpercent", 50, 1),
    ],
)
async def test_a_key_is_decoded_once(scene: Scene, target: str, size_bytes: int, seed: int) -> None:
    answer = await _raw(scene, "GET", target, _bearer(scene.deployment.api_key))
    assert (answer.status, answer.body) == (200, plain(size_bytes, seed))


@pytest.mark.parametrize(
    ("target", "statuses"),
    [
        ("//v1/projects/acme/objects/reports/q3.pdf", {404}),
        ("/v1//projects/acme/objects/reports/q3.pdf", {404}),
        ("/v1/projects//acme/objects/reports/q3.pdf", {404}),
        ("/v1/projects/acme/./objects/reports/q3.pdf", {404}),
        ("/v1/projects/other/../acme/objects/reports/q3.pdf", {404}),
        ("/x/../v1/projects/acme/objects/reports/q3.pdf", {404}),
        ("/V1/projects/acme/objects/reports/q3.pdf", {404}),
        ("/%761/projects/acme/objects/reports/q3.pdf", {401}),
        ("/v1/projects/acme/%6fbjects/reports/q3.pdf", {401}),
        ("/v1/projects/acme%2fobjects/reports/q3.pdf", {401}),
        ("/v1/projects/acme%2fother/objects/reports/q3.pdf", {404}),
        ("/v1/projects/..%2f/objects/reports/q3.pdf", {404}),
        ("/v1/projects/acme/objects/a%0ab", {404}),
        ("/v1/projects/acme/Objects", {404}),
        ("/v1/projects/acme/objects/\xe9", {400}),
        ("v1/projects/acme/objects/reports/q3.pdf", {400}),
        ("*", {400, 404}),
    ],
)
async def test_unknown_paths(scene: Scene, target: str, statuses: set[int]) -> None:
    """No other spelling of a path leads to an object."""
    answer = await _raw(scene, "GET", target, _bearer(scene.deployment.api_key))
    assert answer.status in statuses
    assert b"canary" not in answer.body


@pytest.mark.parametrize("method", ["POST", "PATCH", "TRACE", "PROPFIND"])
async def test_other_methods_are_refused(scene: Scene, method: str) -> None:
    answer = await _raw(scene, method, _PATH, _bearer(scene.deployment.api_key))
    assert answer.status == 405
    allowed = {"DELETE", "GET", "HEAD", "OPTIONS", "PUT"}
    assert set(answer.headers["allow"].replace(" ", "").split(",")) == allowed
    assert answer.problem["title"] == "Method Not Allowed"


_SMUGGLING = {
    "length and chunks": "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "chunked twice said": "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": "Content-Length : 4\r\n\r\nabcd",
    "a folded header": "X-A: b\r\n c\r\n\r\n",
    "a bare CR": "X-A: b\rX-B: c\r\n\r\n",
    "a NUL": "X-A: b\0c\r\n\r\n",
    "a length below zero": "Content-Length: -1\r\n\r\n",
}


@pytest.mark.parametrize("what", _SMUGGLING)
async def test_ambiguous_requests_are_refused(scene: Scene, what: str) -> None:
    head = f"PUT {_PATH} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {_STRANGER}\r\n"
    raw = (head + _SMUGGLING[what]).encode("latin-1")
    answer = await exchange(scene.process.host, scene.process.port, raw)
    assert answer.status in (400, 401)


async def test_refusals_take_equally_long(scene: Scene) -> None:
    """A wrong key of a project that there is, and of ones that there are not or cannot be.

    Each unknown project is requested once, so that none is known to be unknown.
    """

    async def took(target: str) -> float:
        began = time.perf_counter()
        answer = await _raw(scene, "GET", target, _bearer(_STRANGER))
        assert answer.status == 401
        return time.perf_counter() - began

    rounds = [
        await asyncio.gather(
            took(_PATH),
            took(object_target(f"nosuch-{number}", _KEY)),
            took(object_target(f"NOSUCH-{number}", _KEY)),
        )
        for number in range(20)
    ]
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    assert max(medians) < 1.2 * min(medians), medians


async def test_an_unauthorized_request_reads_no_object(scene: Scene) -> None:
    """An object that is corrupt, absent or deleted is refused like one that is there."""
    made = scene.bucket.made("acme", "broken", plain(10))
    scene.replace(made, body=b"x" * 10)
    scene.bucket.put("acme/gone", b"", {"enc-algo": "deleted", "enc-dek-admin": "eA=="})
    responses = [
        await scene.client.request("acme", key, token=_STRANGER)
        for key in ("broken", "gone", "absent", _KEY)
    ]
    assert {answer.body for answer in responses} == {responses[0].body}
    by_holder = [await scene.client.request("acme", key) for key in ("broken", "gone", "absent")]
    assert [answer.status for answer in by_holder] == [502, 404, 404]
