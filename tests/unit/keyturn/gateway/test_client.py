"""A client checks names before it sends anything, and returns what the gateway states (SPEC 9)."""

from __future__ import annotations

import io
import json
import os
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from aiohttp import web
from pydantic import SecretStr

from keyturn.errors import (
    AlreadyExistsError,
    MalformedRequestError,
    NotFoundError,
    RangeNotSatisfiableError,
)
from keyturn.gateway import (
    CiphertextLink,
    Client,
    DeleteManyReceipt,
    DeleteReceipt,
    GenerationKeys,
    Link,
    ListedObject,
    ListedPrefix,
    ProjectKeys,
    RejectedKey,
    UnencryptedGatewayWarning,
    UnexpectedResponseError,
    UploadPendingError,
    UploadReceipt,
    WrappedSecret,
)
from keyturn.gateway.transport import is_unencrypted
from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    API_KEY,
    CALLS,
    EXPIRES_AT,
    NEW_API_KEY,
    TOKEN,
    UPLOADED,
    always,
    ask,
    ciphertext_link_document,
    connected,
    json_always,
    json_answer,
    link_document,
    object_of,
    own_frames,
    page_of,
    problem,
    read,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keyturn.publisher.staging import Body


BODY = os.urandom(1000)


@pytest.mark.parametrize("key", ["", "short but secret", "x" * 513, "x" * 40 + "\r\nX-Evil: 1"])
async def test_an_api_key_of_the_wrong_form_is_refused_and_not_shown(key: str) -> None:
    for given in (key, SecretStr(key)):
        with pytest.raises(MalformedRequestError, match="32 to 512 characters") as raised:
            async with Client.connect("http://127.0.0.1:1", given):
                pass
        assert key == "" or key not in str(raised.value)


async def test_no_api_key_is_a_type_error_that_names_it() -> None:
    """What an environment variable that is not set gives, is not a wrong key."""
    unset: Any = os.environ.get("KEYTURN_NO_SUCH_KEY")
    values: list[Any] = [unset, b"k" * 40, 7]
    for given in values:
        with pytest.raises(
            TypeError, match=f"^api_key must be a string, not {type(given).__name__}$"
        ):
            async with Client.connect("http://127.0.0.1:1", given):
                pass
    async with Client.connect("http://127.0.0.1:1", API_KEY) as client:
        with pytest.raises(TypeError, match="api_key"):
            client.with_api_key(unset)
        with pytest.raises(TypeError, match="new_api_key"):
            await client.rotate("acme", unset)


async def test_a_client_does_not_print_its_key() -> None:
    async with Client.connect("http://127.0.0.1:1", API_KEY) as client:
        shown = [repr(client), str(client), repr(vars(client)), repr(vars(client._transport))]
    assert not [text for text in shown if API_KEY in text]


@pytest.mark.parametrize(
    ("url", "unencrypted"),
    [
        ("https://files.example.com", False),
        ("https://192.0.2.7:8443/keyturn", False),
        ("http://127.0.0.1:8080", False),
        ("http://127.9.9.9", False),
        ("http://[::1]:8080", False),
        ("http://localhost:8080", False),
        ("http://LOCALHOST.", False),
        ("http://gateway.localhost", False),
        ("http://files.example.com", True),
        ("http://localhost.example.com", True),
        ("http://notlocalhost", True),
        ("http://gateway:8080", True),
        ("http://192.168.1.7", True),
        ("http://0.0.0.0:8080", True),
        ("http://[2001:db8::1]", True),
    ],
)
async def test_plain_http_to_another_machine_is_warned_of(url: str, *, unencrypted: bool) -> None:
    assert is_unencrypted(url) is unencrypted
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with Client.connect(url, API_KEY) as client:
            client.with_api_key(NEW_API_KEY)
    assert [warning.category for warning in caught] == [UnencryptedGatewayWarning] * unencrypted
    for warning in caught:
        assert warning.filename == __file__  # the caller's line, not one of ours
        assert "https://" in str(warning.message)
        assert API_KEY not in str(warning.message)


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 3 * 2**20 + 1])
async def test_a_whole_object_comes_in_pieces(size: int) -> None:
    body = os.urandom(size)
    async with (
        connected(object_of(body)) as (gateway, client),
        client.open("acme", "k") as opened,
    ):
        assert (opened.size_bytes, opened.length) == (size, size)
        pieces = [piece async for piece in opened.chunks()]
        assert b"".join(pieces) == body
        assert all(pieces)
        assert await opened.read() == b""
    (seen,) = gateway.seen
    assert (seen.method, seen.target) == ("GET", "/v1/projects/acme/objects/k")
    assert seen.headers["Authorization"] == f"Bearer {API_KEY}"
    assert "Range" not in seen.headers
    assert seen.headers["Accept-Encoding"] == "identity"


async def test_get_and_head_describe_an_object_alike() -> None:
    async with connected(object_of(BODY)) as (gateway, client):
        info = await client.stat("acme", "k")
        async with client.open("acme", "k") as opened:
            assert opened.info == info
            assert opened.content_type == "text/plain"
            assert opened.metadata == {"author": "kim", "title": "éé"}
            assert opened.etag == '"c0ffee"'
            assert opened.last_modified == datetime(2026, 11, 24, 10, tzinfo=UTC)
    assert info.size_bytes == len(BODY)
    assert gateway.methods == ["HEAD", "GET"]


@pytest.mark.parametrize(
    ("start", "length", "header"),
    [
        (0, 1, "bytes=0-0"),
        (0, 1000, "bytes=0-999"),
        (0, 5000, "bytes=0-4999"),
        (1, None, "bytes=1-"),
        (999, None, "bytes=999-"),
        (100, 50, "bytes=100-149"),
        (990, 50, "bytes=990-1039"),
        (-1, None, "bytes=-1"),
        (-1000, None, "bytes=-1000"),
        (-2000, None, "bytes=-2000"),
    ],
)
async def test_a_range_is_read_as_requested(start: int, length: int | None, header: str) -> None:
    expected = BODY[start:] if length is None else BODY[start : start + length]
    async with (
        connected(object_of(BODY)) as (gateway, client),
        client.open("acme", "k", start=start, length=length) as opened,
    ):
        assert opened.size_bytes == len(BODY)
        assert opened.length == len(expected)
        assert await opened.read() == expected
    assert gateway.seen[0].headers["Range"] == header


async def test_a_range_behind_the_end_is_refused_as_the_gateway_does() -> None:
    async with serving(object_of(BODY)) as gateway:
        with pytest.raises(RangeNotSatisfiableError):
            await read(gateway.url, 1000)
    async with serving(object_of(b"")) as gateway:
        with pytest.raises(RangeNotSatisfiableError):
            await read(gateway.url, 0, 1)


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("a b", "a%20b"),
        ("100%", "100%25"),
        ("%2e%2e/x", "%252e%252e/x"),
        ("a#b?c&d=e", "a%23b%3Fc%26d%3De"),
        ("é/日本.txt", "%C3%A9/%E6%97%A5%E6%9C%AC.txt"),
        ("a+b;c:d@e", "a%2Bb%3Bc%3Ad%40e"),
        ("~-_.x/..y", "~-_.x/..y"),
        ("back\\slash", "back%5Cslash"),
    ],
)
async def test_every_key_arrives_as_it_is(key: str, sent: str) -> None:
    async with serving(object_of(BODY)) as gateway:
        assert await read(gateway.url, key=key) == (len(BODY), BODY)
    assert gateway.seen[0].target == f"/v1/projects/acme/objects/{sent}"
    assert unquote(gateway.seen[0].target).endswith(f"/objects/{key}")


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../x", "a/./b", "a\nb", "k" * 901])
async def test_a_key_that_is_none_is_not_sent(key: str) -> None:
    async with connected(object_of(BODY)) as (gateway, client):
        for how in ("open", "stat", "upload", "delete", "link", "ciphertext_link"):
            with pytest.raises(MalformedRequestError, match="a key"):
                await ask(client, how, key=key)
    assert gateway.seen == []


@pytest.mark.parametrize("project", ["", "Acme", "a/b", "..", ".keyturn", "acme\r\nX: y"])
async def test_a_project_that_is_none_is_not_sent(project: str) -> None:
    async with connected(object_of(BODY)) as (gateway, client):
        for how in CALLS:
            with pytest.raises(MalformedRequestError, match="a project id"):
                await ask(client, how, project=project)
    assert gateway.seen == []


_REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    *(("open", "a range", {"start": a, "length": b}) for a, b in [(0, 0), (5, -1), (-5, 3)]),
    ("upload", "wait_s", {"wait": True, "wait_s": 0}),
    ("upload", "content_type", {"content_type": "a\r\nX-Evil: 1"}),
    *(
        ("upload", "metadata", {"metadata": metadata})
        for metadata in ({"enc-algo": "x"}, {"a": "b\nc"}, {"A b": "c"}, {"a": "b" * 2000})
    ),
    ("rotate", "32 to 512", {"new_api_key": "short but secret"}),
    *(("rotation", "UUID", {"rotation_id": i}) for i in ("", "..", AN_ID.upper(), f"{AN_ID}/x")),
    *(("list", "delimiter", {"delimiter": delimiter}) for delimiter in ("x", "//")),
    *(("list", "page_size", {"page_size": size}) for size in (0, 1001)),
    *(("list", "prefix", {"prefix": prefix}) for prefix in ("\ud800", "é" * 451, "a\n")),
    *(("list", "after", {"after": after}) for after in ("é" * 513, "\ud800")),
    *(("link", "1 to 604800 s", {"expires_s": s}) for s in (0, -1, 604_801, True, 1.5)),
    *(("ciphertext_link", "1 to 900 s", {"expires_s": s}) for s in (0, -1, 901, True, 1.5)),
]


@pytest.mark.parametrize(("how", "named", "more"), _REFUSED)
async def test_what_cannot_be_asked_for_is_not_sent(
    how: str, named: str, more: dict[str, Any]
) -> None:
    async with connected(always(500)) as (gateway, client):
        with pytest.raises(MalformedRequestError, match=named) as raised:
            await ask(client, how, **more)
    assert gateway.seen == []
    assert "secret" not in str(raised.value)


async def test_one_client_reads_for_several_projects_on_the_same_connections() -> None:
    other_key = "another-project's-key-is-no-such".replace("'", "-")
    async with connected(object_of(BODY)) as (gateway, client):
        await client.stat("acme", "k")
        await client.with_api_key(other_key).stat("other", "k")
        await client.stat("acme", "k")
    sent = [seen.headers["Authorization"].removeprefix("Bearer ") for seen in gateway.seen]
    assert sent == [API_KEY, other_key, API_KEY]


async def test_an_object_that_is_left_early_holds_no_connection() -> None:
    body = os.urandom(8 * 2**20)
    async with connected(object_of(body), max_connections=1) as (_, client):
        for _ in range(3):
            async with client.open("acme", "k") as opened:
                async for _ in opened.chunks():
                    break
        async with client.open("acme", "k") as opened:
            assert await opened.read() == body


async def test_nothing_there_is_not_found_by_head_too() -> None:
    async with connected(always(404)) as (_, client):
        with pytest.raises(NotFoundError):
            await client.stat("acme", "k")


async def _stream(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 3 * 2**20 + 1])
async def test_every_kind_of_body_arrives_as_it_is(size: int, tmp_path: Path) -> None:
    body = os.urandom(size)
    path = tmp_path / "body"
    path.write_bytes(body)
    bodies: list[Body] = [
        body,
        bytearray(body),
        memoryview(body),
        path,
        io.BytesIO(body),
        _stream(body, b""),
    ]
    async with connected(UPLOADED) as (gateway, client):
        for kind in bodies:
            assert await client.upload("acme", "a b/%23#?&=é", kind) == UploadReceipt(
                AN_ID, stored=True
            )
    assert len(gateway.seen) == len(bodies)
    for number, seen in enumerate(gateway.seen):
        assert seen.method == "PUT"
        assert seen.target == "/v1/projects/acme/objects/a%20b/%2523%23%3F%26%3D%C3%A9"
        assert seen.body == body
        known = seen.headers.get("Content-Length")
        assert known == (str(size) if number < 3 else None)
        assert seen.headers["Authorization"] == f"Bearer {API_KEY}"
        assert seen.headers["Prefer"] == "wait=50"
        assert "Content-Type" not in seen.headers


async def test_an_upload_that_does_not_wait_says_only_that_it_is_accepted() -> None:
    async with connected(json_always(202, {"upload_id": AN_ID})) as (gateway, client):
        receipt = await client.upload("acme", "k", b"body", wait=False)
    assert receipt == UploadReceipt(AN_ID, stored=False)
    assert "Prefer" not in gateway.seen[0].headers


async def test_an_upload_without_an_outcome_in_time_is_an_error_with_its_id() -> None:
    async with connected(json_always(202, {"upload_id": AN_ID})) as (_, client):
        with pytest.raises(UploadPendingError, match="may still be stored, or refused") as raised:
            await client.upload("acme", "k", b"body")
    assert raised.value.upload_id == AN_ID
    assert AN_ID in str(raised.value)


async def test_what_belongs_to_an_upload_is_sent_with_it() -> None:
    async with connected(json_always(201, {"upload_id": AN_ID})) as (gateway, client):
        done = await client.upload(
            "acme",
            "k",
            b"body",
            content_type="text/plain; charset=utf-8",
            metadata={"author": "kim", "title": "éé"},
            wait_s=30,
        )
    assert done == UploadReceipt(AN_ID, stored=True)
    headers = gateway.seen[0].headers
    assert headers["Prefer"] == "wait=30"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["X-Keyturn-Meta-Author"] == "kim"
    assert headers["X-Keyturn-Meta-Title"] == "=?utf-8?b?w6nDqQ==?="


async def test_a_refusal_while_waiting_is_raised() -> None:
    async with connected(problem(409, "already_exists", "the key is taken")) as (_, client):
        with pytest.raises(AlreadyExistsError, match="the key is taken"):
            await client.upload("acme", "k", b"body", wait_s=5)


@pytest.mark.parametrize(
    "document", [{}, {"upload_id": "x"}, {"upload_id": 7}, {"upload_id": AN_ID.upper()}, [], None]
)
async def test_an_answer_without_an_id_is_none(document: object) -> None:
    async with connected(json_always(202, document)) as (_, client):
        with pytest.raises(UnexpectedResponseError, match="no upload_id"):
            await client.upload("acme", "k", b"body")
        with pytest.raises(UnexpectedResponseError, match="no rotation_id"):
            await client.rotate("acme", NEW_API_KEY)
        with pytest.raises(UnexpectedResponseError, match="no request_id"):
            await client.delete("acme", "k")


async def test_a_rotation_is_requested_with_the_current_key_and_sends_the_new_one() -> None:
    async with connected(json_always(202, {"rotation_id": AN_ID})) as (gateway, client):
        assert await client.rotate("acme", NEW_API_KEY) == AN_ID
    (seen,) = gateway.seen
    assert (seen.method, seen.target) == ("POST", "/v1/projects/acme/rotations")
    assert seen.headers["Authorization"] == f"Bearer {API_KEY}"
    assert seen.headers["Content-Type"] == "application/json"
    assert seen.body == b'{"api_key":"%s"}' % NEW_API_KEY.encode()


async def test_a_rotation_is_followed_with_the_new_key() -> None:
    expected = {
        "rotation_id": AN_ID,
        "project": "acme",
        "state": "completed",
        "generation": 2,
        "counts": {"objects": 3, "rewrapped": 3},
    }
    async with connected(json_always(200, expected)) as (gateway, client):
        assert await client.with_api_key(NEW_API_KEY).rotation("acme", AN_ID) == expected
    (seen,) = gateway.seen
    assert (seen.method, seen.target) == ("GET", f"/v1/projects/acme/rotations/{AN_ID}")
    assert seen.headers["Authorization"] == f"Bearer {NEW_API_KEY}"


@pytest.mark.parametrize(
    "document", [{}, {"rotation_id": AN_ID}, {"rotation_id": "x", "state": "completed"}, []]
)
async def test_an_answer_about_no_rotation_is_none(document: object) -> None:
    async with connected(json_always(200, document)) as (_, client):
        with pytest.raises(UnexpectedResponseError, match="another rotation"):
            await client.rotation("acme", AN_ID)


_WRAPPED: dict[str, Any] = {
    "store": "kms-eu",
    "key": "arn:aws:kms:eu-central-1:111122223333:key/a",
    "secret_id": "5f0c1a7be2d94386",
    "wrapped": "YQ==",
    "context": {"keyturn:project": "acme"},
}


async def test_the_keys_say_what_the_customers_kms_needs() -> None:
    vault = {**_WRAPPED, "wrapped": "vault:v1:YQ==", "context": "YWNtZQ=="}
    document = {
        "dek_floor": 0,
        "generations": [
            {"generation": 3, "dek_since": 0},
            {"generation": 4, "dek_since": 0, "customer_key": _WRAPPED},
            {"generation": 5, "dek_since": 0, "customer_key": vault},
        ],
    }
    async with connected(json_always(200, document)) as (gateway, client):
        assert await client.keys("acme") == ProjectKeys(
            dek_floor=0,
            generations=(
                GenerationKeys(generation=3, dek_since=0),
                GenerationKeys(generation=4, dek_since=0, customer_key=WrappedSecret(**_WRAPPED)),
                GenerationKeys(generation=5, dek_since=0, customer_key=WrappedSecret(**vault)),
            ),
        )
    (seen,) = gateway.seen
    assert (seen.method, seen.target) == ("GET", "/v1/projects/acme/keys")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"dek_floor": 0, "generations": []},
        {"dek_floor": -1, "generations": [{"generation": 1, "dek_since": 0}]},
        {"dek_floor": 0, "generations": {"generation": 1}},
        {"dek_floor": 0, "generations": [{"generation": "1", "dek_since": 0}]},
        *(
            {
                "dek_floor": 0,
                "generations": [{"generation": 1, "dek_since": 0, "customer_key": key}],
            }
            for key in (
                7,
                {},
                {**_WRAPPED, "context": 7},
                {**_WRAPPED, "context": None},
                {**_WRAPPED, "context": {"keyturn:project": 7}},
                {**_WRAPPED, "wrapped": None},
            )
        ),
    ],
)
async def test_an_answer_that_describes_no_keys_is_none(document: object) -> None:
    async with connected(json_always(200, document)) as (_, client):
        with pytest.raises(UnexpectedResponseError, match="does not describe the keys"):
            await client.keys("acme")


async def test_a_listing_is_read_page_by_page_as_it_is_iterated() -> None:
    keys = ["a", "b", "z", "é/日本"]
    pages = {
        None: page_of(keys[:2], next_after="b"),
        "b": page_of([], next_after="bé"),
        "bé": page_of(keys[2:]),
    }

    async def answer(request: web.Request) -> web.StreamResponse:
        return json_answer(200, pages[request.query.get("after")])

    async with connected(answer) as (gateway, client):
        listing = client.list("acme", page_size=2)
        assert gateway.seen == []
        first = await anext(listing)
        assert first == ListedObject("a", 5, datetime(2026, 11, 24, 10, tzinfo=UTC))
        await anext(listing)
        assert len(gateway.seen) == 1
        assert [entry.key async for entry in listing] == keys[2:]
    targets = [seen.target.removeprefix("/v1/projects/acme/objects") for seen in gateway.seen]
    assert targets == ["?limit=2", "?after=b&limit=2", "?after=b%C3%A9&limit=2"]
    assert {seen.headers["Authorization"] for seen in gateway.seen} == {f"Bearer {API_KEY}"}


async def test_one_level_is_listed_with_its_prefixes_in_order() -> None:
    async with connected(json_always(200, page_of(["a/b", "a/d"], ["a/b b/", "a/c/"]))) as (
        gateway,
        client,
    ):
        listing = client.list("acme", prefix="a/", delimiter="/", after="a/&")
        listed = [entry async for entry in listing]
    assert [getattr(entry, "key", None) for entry in listed] == ["a/b", None, None, "a/d"]
    assert listed[1:3] == [ListedPrefix("a/b b/"), ListedPrefix("a/c/")]
    (seen,) = gateway.seen
    assert seen.target.endswith("/objects?prefix=a%2F&delimiter=%2F&after=a%2F%26&limit=1000")


async def test_a_listing_of_the_longest_keys_fits() -> None:
    keys = [f"{number:04}" + '"' * 896 for number in range(1000)]
    async with connected(json_always(200, page_of(keys))) as (_, client):
        assert [entry.key async for entry in client.list("acme")] == keys


async def test_a_listing_without_an_end_is_not_read_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyturn.gateway.client.PAGE_MAX_BYTES", 2**20)
    sent = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        with suppress(ConnectionError):
            while sent < 2**28:
                await response.write(b" " * 2**16)
                sent += 2**16
        return response

    async with connected(answer) as (_, client):
        with pytest.raises(UnexpectedResponseError, match="is not a listing"):
            await anext(client.list("acme"))
    assert sent < 2**25


async def test_a_page_that_repeats_itself_ends_the_listing() -> None:
    """A gateway, or a proxy's cache, that always responds with the first page."""
    async with connected(json_always(200, page_of(["a", "b"], next_after="b"))) as (
        gateway,
        client,
    ):
        listing = client.list("acme")
        assert [(await anext(listing)).key, (await anext(listing)).key] == ["a", "b"]
        with pytest.raises(UnexpectedResponseError, match="not in order") as raised:
            await anext(listing)
    assert raised.value.status == 200
    assert len(gateway.seen) == 2


_REJECTED = {"key": "b", "code": "locked_object", "detail": "a lock"}


async def test_many_deletions_are_on_their_way_or_each_has_its_outcome() -> None:
    answers = iter(
        [
            json_answer(202, {"request_id": AN_ID, "rejected": []}),
            json_answer(200, {"request_id": AN_ID, "deleted": ["a"], "rejected": [_REJECTED]}),
        ]
    )

    async def answer(_: web.Request) -> web.StreamResponse:
        return next(answers)

    async with connected(answer) as (gateway, client):
        assert await client.delete_many("acme", ["a", "b"]) == DeleteManyReceipt(
            AN_ID, is_final=False, deleted=(), rejected=()
        )
        assert await client.delete_many("acme", ["a", "b"], wait_s=40) == DeleteManyReceipt(
            AN_ID, is_final=True, deleted=("a",), rejected=(RejectedKey(**_REJECTED),)
        )
    assert [seen.headers.get("Prefer") for seen in gateway.seen] == [None, "wait=40"]
    for seen in gateway.seen:
        assert (seen.method, seen.target) == ("POST", "/v1/projects/acme/deletes")
        assert json.loads(seen.body or b"") == {"keys": ["a", "b"]}


@pytest.mark.parametrize("keys", [[], ["a", "a"], ["a", "../b"], [str(n) for n in range(1001)]])
async def test_keys_that_no_delete_may_have_are_not_sent(keys: list[str]) -> None:
    async with connected(object_of(BODY)) as (gateway, client):
        with pytest.raises(MalformedRequestError, match="key"):
            await client.delete_many("acme", keys)
    assert gateway.seen == []


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (200, {"deleted": ["a"], "rejected": []}),
        (200, {"deleted": ["a", "c"], "rejected": []}),
        (200, {"deleted": ["a", "a"], "rejected": []}),
        (200, {"deleted": ["a", "b"]}),
        (200, {"deleted": "ab", "rejected": []}),
        (200, {"deleted": [["a"], ["b"]], "rejected": []}),
        (200, {"deleted": ["a"], "rejected": [{"key": "b"}]}),
        (200, {"deleted": ["a"], "rejected": ["b"]}),
        (200, {"deleted": ["a"], "rejected": [_REJECTED | {"code": 1}]}),
        (202, {}),
    ],
)
async def test_a_response_that_leaves_out_or_adds_a_key_is_none(
    status: int, document: dict[str, Any]
) -> None:
    """A proxy's, perhaps: no key counts as deleted for it."""
    answer = json_always(status, {"request_id": AN_ID, **document})
    async with connected(answer) as (_, client):
        with pytest.raises(UnexpectedResponseError, match="does not name the keys"):
            await client.delete_many("acme", ["a", "b"])


async def test_the_outcomes_of_a_thousand_long_keys_are_read() -> None:
    keys = [f"{number:03}" + "k" * 897 for number in range(1000)]
    document = {"request_id": AN_ID, "deleted": keys, "rejected": []}
    async with connected(json_always(200, document)) as (_, client):
        assert (await client.delete_many("acme", keys, wait_s=1)).deleted == tuple(keys)


async def test_a_deletion_is_on_its_way_or_done() -> None:
    statuses = iter([202, 204])

    async def answer(_: web.Request) -> web.StreamResponse:
        status = next(statuses)
        if status == 204:
            return web.Response(status=204)
        return json_answer(status, {"request_id": AN_ID})

    async with connected(answer) as (gateway, client):
        assert await client.delete("acme", "a b") == DeleteReceipt(AN_ID, deleted=False)
        assert await client.delete("acme", "a b", wait_s=40) == DeleteReceipt(None, deleted=True)
        with pytest.raises(MalformedRequestError, match="wait_s"):
            await client.delete("acme", "a b", wait_s=0)
    assert [seen.headers.get("Prefer") for seen in gateway.seen] == [None, "wait=40"]
    for seen in gateway.seen:
        assert (seen.method, seen.target) == ("DELETE", "/v1/projects/acme/objects/a%20b")
        assert seen.headers["Authorization"] == f"Bearer {API_KEY}"


async def test_a_link_is_requested_and_not_shown() -> None:
    async with connected(json_always(201, link_document("a b/é", inline=True))) as (
        gateway,
        client,
    ):
        link = await client.link("acme", "a b/é", expires_s=60, inline=True)
    assert link == Link(link_document("a b/é", inline=True)["url"], EXPIRES_AT)
    assert repr(link) == f"Link(expires_at={EXPIRES_AT!r})"
    (seen,) = gateway.seen
    assert (seen.method, seen.headers["Content-Type"]) == ("POST", "application/json")
    assert seen.target == "/v1/projects/acme/objects/a%20b/%C3%A9/links"
    assert json.loads(seen.body or b"") == {"expires_s": 60, "inline": True}


async def test_a_link_to_ciphertext_comes_with_the_metadata_that_opens_it() -> None:
    async with connected(json_always(201, ciphertext_link_document())) as (gateway, client):
        link = await client.ciphertext_link("acme", "k")
    document = ciphertext_link_document()
    assert link == CiphertextLink(document["url"], EXPIRES_AT, document["metadata"])
    assert repr(link) == f"CiphertextLink(expires_at={EXPIRES_AT!r})"
    assert json.loads(gateway.seen[0].body or b"") == {"expires_s": 900, "kind": "ciphertext"}


async def test_a_link_of_another_form_is_in_no_error() -> None:
    """Not even in the variables of a frame, which reporters of errors show."""
    document = {**ciphertext_link_document(), **link_document("another")}
    async with connected(json_always(201, document)) as (_, client):
        for how in ("link", "ciphertext_link"):
            document["metadata"] = {}
            with pytest.raises(UnexpectedResponseError, match="no such link") as raised:
                await ask(client, how)
            frames = list(own_frames(raised.value))
            assert frames
            assert not [text for text in (repr(raised.value), *frames) if TOKEN in text]
