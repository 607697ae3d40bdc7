"""Parts of an object (SPEC 9.2; RFC 9110, 13 and 14): any request gets a slice, or an error."""

from __future__ import annotations

import http.client
import re
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.integration.gateway.conftest import reading
from tests.integration.gateway.scene import CHUNK, HEADER, SEALED_CHUNK, Scene, plain
from tests.support.cutting_proxies import counting
from tools.harness.bucket import Bucket
from tools.harness.deployment import Deployment
from tools.harness.http import object_target
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.servers import S3Server

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 7, 33 * CHUNK)
_SIZE = 3 * CHUNK + 5


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def _objects(scene: Scene) -> None:
    for size_bytes in _SIZES:
        scene.put(f"size/{size_bytes}", plain(size_bytes))
    scene.put("x", plain(_SIZE), ContentType="text/plain", Metadata={"author": "kim"})


@pytest.fixture(scope="module")
def connection(scene: Scene) -> Iterator[http.client.HTTPConnection]:
    """One connection for many requests."""
    opened = http.client.HTTPConnection(scene.process.host, scene.process.port, timeout=30)
    yield opened
    opened.close()


def _near(size_bytes: int) -> st.SearchStrategy[int]:
    """Numbers about the borders of an object and of its chunks, and far beyond them."""
    borders = [0, CHUNK, 2 * CHUNK, 16 * CHUNK, 32 * CHUNK, size_bytes, 10**30]
    about = st.builds(
        lambda border, by: max(border + by, 0), st.sampled_from(borders), st.integers(-2, 2)
    )
    return about | st.integers(0, size_bytes + 2)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[int, int | None, int | None]:
    size_bytes = draw(st.sampled_from(_SIZES))
    first = draw(st.none() | _near(size_bytes))
    last = draw(_near(size_bytes)) if first is None else draw(st.none() | _near(size_bytes))
    return size_bytes, first, last


@given(case=_cases())
@example(case=(0, None, 1))
@example(case=(0, 0, None))
@example(case=(CHUNK, CHUNK - 1, CHUNK - 1))
@example(case=(33 * CHUNK, 0, 33 * CHUNK - 1))
@example(case=(33 * CHUNK, None, 33 * CHUNK))
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_any_range_is_a_slice(
    scene: Scene,
    connection: http.client.HTTPConnection,
    case: tuple[int, int | None, int | None],
) -> None:
    """Against the slice that Python makes of the plaintext."""
    size_bytes, first, last = case
    spec = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    headers = {"Authorization": f"Bearer {scene.deployment.api_key}", "Range": spec}
    connection.request("GET", object_target("acme", f"size/{size_bytes}"), headers=headers)
    answer = connection.getresponse()
    body, plaintext = answer.read(), plain(size_bytes)

    if first is not None and last is not None and last < first:
        assert (answer.status, body) == (200, plaintext)  # no range: it is passed over
        return
    start = max(size_bytes - (last or 0), 0) if first is None else first
    end = size_bytes if first is None or last is None else min(last + 1, size_bytes)
    if first is None and last and size_bytes == 0:
        assert (answer.status, body) == (200, b"")  # all of nothing
    elif start >= end:
        assert answer.status == 416
        assert answer.headers["content-range"] == f"bytes */{size_bytes}"
    else:
        assert (answer.status, body) == (206, plaintext[start:end])
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size_bytes}"
        assert int(answer.headers["content-length"]) == end - start


# Range headers and what of `x` they give; None is a 416. The unit tests of requests have all forms.
_RANGES: dict[str, slice | None] = {
    "bytes= 5-9 ": slice(5, 10),
    "bytes=-0": None,
    "": slice(0, _SIZE),
    "bytes=\u00b2-\u00b3": slice(0, _SIZE),
    "bytes=" + "0-0," * 500 + "1-1": slice(0, _SIZE),
}


@pytest.mark.parametrize("spec", _RANGES)
async def test_a_range_header(scene: Scene, spec: str) -> None:
    answer = await scene.client.request("acme", "x", {"Range": spec})
    expected = _RANGES[spec]
    if expected is None:
        assert (answer.status, answer.code) == (416, "range_not_satisfiable")
        assert answer.headers["content-range"] == f"bytes */{_SIZE}"
    else:
        assert answer.status == (200 if expected == slice(0, _SIZE) else 206)
        assert answer.body == plain(_SIZE)[expected]


async def test_the_headers_that_describe_an_object(scene: Scene) -> None:
    """The same by GET and HEAD, whole and in part."""
    full = await scene.client.request("acme", "x")
    head = await scene.client.request("acme", "x", method="HEAD")
    part = await scene.client.request("acme", "x", {"Range": "bytes=1-2"})
    made_of = ("content-length", "date", "content-range")
    described = [
        {n: v for n, v in a.headers.items() if n not in made_of} for a in (full, head, part)
    ]
    assert described[0] == described[1] == described[2]
    assert full.headers["content-length"] == head.headers["content-length"] == str(_SIZE)
    assert re.fullmatch(r'"[0-9a-f]{64}"', full.headers["etag"])
    assert full.headers["content-type"] == "text/plain"
    assert full.headers["x-keyturn-meta-author"] == "kim"
    assert full.headers["x-content-type-options"] == "nosniff"
    assert full.headers["accept-ranges"] == "bytes"
    assert not [name for name in full.headers if "enc-" in name]


# Conditions, with E for the ETag and D for its date, and the answer's status. The unit tests of
# requests have the rules.
_CONDITIONS: list[tuple[dict[str, str], int]] = [
    ({"If-None-Match": '"a", W/"b", E'}, 304),
    ({"If-None-Match": ""}, 200),
    ({"If-Modified-Since": "D"}, 304),
    ({"If-Match": '"other"'}, 412),
    ({"Range": "bytes=1-2", "If-Range": "E"}, 206),
    ({"Range": "bytes=1-2", "If-Range": '"other"'}, 200),
]


@pytest.mark.parametrize(("conditions", "status"), _CONDITIONS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_condition(
    scene: Scene, conditions: dict[str, str], status: int, method: str
) -> None:
    known = (await scene.client.request("acme", "x", method="HEAD")).headers
    headers = {
        name: known["last-modified"] if value == "D" else re.sub(r"\bE\b", known["etag"], value)
        for name, value in conditions.items()
    }
    answer = await scene.client.request("acme", "x", headers, method=method)
    if method == "HEAD" and status == 206:
        status = 200
    assert answer.status == status
    if status == 304:
        assert answer.body == b""
        kept = {"etag", "last-modified", "cache-control", "accept-ranges"}
        assert kept <= answer.headers.keys()
        assert not {"content-type", "content-range"} & answer.headers.keys()
        assert answer.headers.get("content-length", str(_SIZE)) in ("0", str(_SIZE))
    elif method == "GET" and status in (200, 206):
        assert answer.body == (plain(_SIZE) if status == 200 else plain(_SIZE)[1:3])


async def test_a_byte_of_a_large_object_costs_two_chunks(ceph: S3Server) -> None:
    """Header, last chunk and the requested one, whatever the object's size."""
    deployment = Deployment("amqp://nobody:no-such-password@127.0.0.1:1/", ceph, new_bucket(ceph))
    bucket = Bucket(deployment)
    bucket.put_keyring("acme")
    size_bytes = 64 * 1024 * 1024
    large: Any = bucket.made("acme", "large", bytes(size_bytes - 5) + b"close")
    bucket.put_made("acme", large)
    async with (
        counting(ceph.endpoint_url) as counted,
        reading(deployment, S3_ENDPOINT_URL=counted.url) as scene,
    ):
        await scene.client.request("acme", "nothing")  # the keyring, and what a start costs
        for spec, expected, chunks in (
            (f"bytes={size_bytes // 2}-{size_bytes // 2}", b"\0", 2),
            ("bytes=0-0", b"\0", 2),
            ("bytes=-1", b"e", 1),
            (f"bytes={CHUNK - 1}-{CHUNK}", b"\0\0", 3),
        ):
            costs = []
            for _ in range(3):  # what a gateway reads now and then comes on top of one of them
                before = counted.received_bytes
                answer = await scene.client.request("acme", "large", {"Range": spec})
                assert (answer.status, answer.body) == (206, expected)
                costs.append(counted.received_bytes - before)
            heads = 4 * 2048  # of the storage's answers, and a keyring
            assert min(costs) <= HEADER + chunks * SEALED_CHUNK + heads, costs
        before = counted.received_bytes
        head = await scene.client.request("acme", "large", method="HEAD")
        assert head.headers["content-length"] == str(size_bytes)
        assert counted.received_bytes - before <= HEADER + 2 * SEALED_CHUNK + 4 * 2048
