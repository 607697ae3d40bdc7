"""A reader opens objects by their user wraps, and gives away neither key nor URL (SPEC 4, 9.3)."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from keyturn.crypto import (
    Secret,
    composite_kek,
    customer_secret_id,
    from_base64,
    kek_id,
    new_customer_secret,
    user_kek,
)
from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    MalformedRequestError,
    NotFoundError,
    NoUsableWrapError,
    StorageUnavailableError,
    UnknownAlgorithmError,
)
from keyturn.gateway import CiphertextLink
from keyturn.open import Reader, open_object
from keyturn.open.unwrap import user_dek
from keyturn.tls import STORAGE, client_context
from tests.support.tls_proxy import server_context, tls_proxy
from tests.unit.keyturn.gateway.gateway import object_of, serving
from tests.unit.keyturn.open.storage import (
    API_KEY,
    HEADERS,
    KEK,
    KEY,
    PATH,
    PEPPER,
    PROJECT,
    link_to,
    made,
    open_link,
)
from tools.servers.certificates import Authority

OBJECT = made(40_000)
ANSWER = object_of(OBJECT.body, HEADERS)


async def test_many_objects_at_once_by_one_reader() -> None:
    async def read(reader: Reader, link: Any) -> bytes:
        async with reader.open(link, KEY) as opened:
            return await opened.read()

    async with serving(ANSWER) as storage:
        link = link_to(storage, OBJECT.metadata)
        async with Reader.connect(
            PROJECT, SecretStr(API_KEY), pepper=SecretStr(PEPPER), max_connections=2
        ) as reader:
            assert API_KEY not in repr(vars(reader))
            found = await asyncio.gather(*(read(reader, link) for _ in range(20)))
    assert set(found) == {OBJECT.plaintext}


async def test_the_storage_gets_the_signed_path_and_no_key() -> None:
    async with serving(ANSWER) as storage:
        link = link_to(storage, OBJECT.metadata)
        async with (
            Reader.connect(PROJECT, API_KEY, pepper=PEPPER) as reader,
            reader.open(link, KEY, start=20_000, length=1) as opened,
        ):
            assert await opened.read() == OBJECT.plaintext[20_000:20_001]
    assert storage.seen
    for seen in storage.seen:
        assert storage.url + seen.target == link["url"]
        assert "Authorization" not in seen.headers
        assert API_KEY not in repr(seen.headers)


async def test_a_link_is_an_object_or_the_gateways_json() -> None:
    async with serving(ANSWER) as storage:
        as_json = link_to(storage, OBJECT.metadata)
        as_object = CiphertextLink(storage.url + PATH, datetime.now(UTC), OBJECT.metadata)
        for link in (as_json, as_object):
            async with open_link(link) as opened:
                assert await opened.read() == OBJECT.plaintext


@pytest.mark.slow
async def test_a_storage_with_a_certificate_from_a_private_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = server_context(authority.issue("server", ("localhost",)))
    async with serving(ANSWER) as storage:
        with tls_proxy(int(storage.url.rpartition(":")[2]), context) as port:
            link = {"url": f"https://localhost:{port}{PATH}", "metadata": OBJECT.metadata}
            trusting = client_context(STORAGE, authority.ca)
            async with (
                Reader.connect(PROJECT, API_KEY, pepper=PEPPER, tls=trusting) as reader,
                reader.open(link, KEY) as opened,
            ):
                assert await opened.read() == OBJECT.plaintext
            with pytest.raises(StorageUnavailableError):
                async with open_link(link):
                    pass


GOOD: dict[str, Any] = {
    "project": PROJECT,
    "object_key": KEY,
    "api_key": API_KEY,
    "url": "https://s3.example.com/b/k?X-Amz-Signature=5ec4e7",
    "metadata": OBJECT.metadata,
}


@pytest.mark.parametrize(
    "bad",
    [
        {"project": "No project"},
        {"object_key": "/k"},
        {"object_key": ""},
        {"api_key": "too-short"},
        {"pepper": "\ud800"},
        {"customer_secrets": [bytes(31)]},
        {"customer_secrets": ["5ec4e7" * 6]},
        {"length": 0},
        {"start": -1, "length": 1},
        {"url": "ftp://s3.example.com/5ec4e7"},
        {"url": "https://user:5ec4e7@s3.example.com/"},
        {"url": "https://s3.example.com/ 5ec4e7"},
        {"url": None},
        {"metadata": None},
        {"metadata": {"enc-algo": 1}},
    ],
)
async def test_what_is_not_valid_is_refused_before_anything_is_sent(bad: dict[str, Any]) -> None:
    given = {**GOOD, **bad}
    link = {"url": given.pop("url"), "metadata": given.pop("metadata")}
    with pytest.raises(MalformedRequestError) as raised:
        async with open_object(link, **given):
            pass
    assert "5ec4e7" not in str(raised.value)


async def test_the_connection_ends_with_the_block() -> None:
    """A caller who leaves early does not download the rest."""
    ended = asyncio.Event()

    async def huge(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(56 + 65_536 * 16_400 + 100)})
        await response.prepare(request)
        await response.write(OBJECT.body[:56])
        with suppress(ConnectionError):
            while True:
                await response.write(bytes(1 << 20))
        ended.set()
        return response

    async with serving(huge) as storage:
        async with open_link(link_to(storage, OBJECT.metadata)) as opened:
            assert opened.length == 65_536 * 16_384 + 84
        await asyncio.wait_for(ended.wait(), 10)


# The user wrap alone opens an object, for its own project and key.


EMPTY = made(0)
OTHER = made(0, key="other.pdf")


def test_the_dek_of_the_users_wrap() -> None:
    assert user_dek(EMPTY.metadata, KEK, project=PROJECT, object_key=KEY) == EMPTY.dek


@pytest.mark.parametrize(
    ("kek", "project", "key", "why"),
    [
        (user_kek(API_KEY, PROJECT), PROJECT, KEY, "another API key or pepper"),
        (user_kek("k" * 43, PROJECT, PEPPER), PROJECT, KEY, "another API key or pepper"),
        (KEK, "other", KEY, "not of this project and object key"),
        (KEK, PROJECT, "other.pdf", "not of this project and object key"),
    ],
)
def test_another_key_pepper_project_or_object_opens_no_wrap(
    kek: object, project: str, key: str, why: str
) -> None:
    with pytest.raises(NoUsableWrapError, match=why):
        user_dek(EMPTY.metadata, kek, project=project, object_key=key)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"enc-algo": None}, CorruptObjectError),
        ({"enc-dek-user": None}, CorruptObjectError),
        ({"enc-dek-user": "?"}, CorruptObjectError),
        ({"enc-kek-user": "0:0"}, CorruptObjectError),
        ({"enc-dek-user": OTHER.metadata["enc-dek-user"]}, NoUsableWrapError),
        ({"enc-kek-user": "2" + EMPTY.metadata["enc-kek-user"][1:]}, NoUsableWrapError),
        ({"enc-algo": "ROT13"}, UnknownAlgorithmError),
        ({"enc-algo": "deleted"}, NotFoundError),
        (dict.fromkeys(EMPTY.metadata), CorruptObjectError),
    ],
)
def test_metadata_of_anything_else_has_its_code(
    changes: dict[str, str | None], error: type[CodedError]
) -> None:
    metadata = {n: v for n, v in {**EMPTY.metadata, **changes}.items() if v is not None}
    with pytest.raises(error):
        user_dek(metadata, KEK, project=PROJECT, object_key=KEY)


# A project with a customer key: the user wrap also needs the secret (SPEC 2.6).


SECRETS = [new_customer_secret(), new_customer_secret()]
SECRET_ID = customer_secret_id(SECRETS[0])
LOCKED = made(0, kek=composite_kek(KEK, SECRETS[0], "user", PROJECT, SECRET_ID))


@pytest.mark.parametrize("label", [f":{SECRET_ID}", "", f":{customer_secret_id(SECRETS[1])}"])
def test_a_wrap_opens_with_the_secret_whatever_its_label_says(label: str) -> None:
    metadata = {**LOCKED.metadata, "enc-kek-user": f"1:{kek_id(KEK)}{label}"}
    names: dict[str, str] = {"project": PROJECT, "object_key": KEY}
    for given in (SECRETS, SECRETS[::-1]):
        assert user_dek(metadata, KEK, **names, customer_secrets=given) == LOCKED.dek
    for few in ([], SECRETS[1:]):
        with pytest.raises(NoUsableWrapError):
            user_dek(metadata, KEK, **names, customer_secrets=few)


def test_who_lacks_the_secret_is_told_which_one() -> None:
    metadata = {**LOCKED.metadata, "enc-kek-user": f"1:{kek_id(KEK)}:{SECRET_ID}"}
    with pytest.raises(NoUsableWrapError, match=f"customer secret {SECRET_ID}"):
        user_dek(metadata, KEK, project=PROJECT, object_key=KEY)


def test_a_secret_that_is_not_needed_does_no_harm() -> None:
    given: dict[str, Any] = {"project": PROJECT, "object_key": KEY, "customer_secrets": SECRETS}
    assert user_dek(EMPTY.metadata, KEK, **given) == EMPTY.dek


async def test_an_object_is_opened_with_given_secrets() -> None:
    stored = made(50_000, kek=composite_kek(KEK, SECRETS[0], "user", PROJECT, SECRET_ID))
    secrets = [secret.reveal() for secret in SECRETS]
    async with (
        serving(object_of(stored.body)) as storage,
        open_object(
            link_to(storage, stored.metadata),
            project=PROJECT,
            object_key=KEY,
            api_key=API_KEY,
            pepper=PEPPER,
            customer_secrets=secrets,
        ) as opened,
    ):
        assert await opened.read() == stored.plaintext


_R4 = Path(__file__).resolve().parents[5] / "shared" / "vectors" / "keyturn_r4.json"


@pytest.mark.skipif(not _R4.exists(), reason="the shared known answers are not next to the project")
def test_composite_keks_are_those_of_an_independent_implementation() -> None:
    cases = [c for c in json.loads(_R4.read_text())["composites"] if c["role"] == "user"]
    assert cases
    for case in cases:
        project = case["project"]
        stored = made(0, kek=Secret(from_base64(case["composite"])), project=project)
        kek, secret = Secret(from_base64(case["kek"])), Secret(from_base64(case["secret"]))
        names: dict[str, str] = {"project": project, "object_key": KEY}
        assert user_dek(stored.metadata, kek, **names, customer_secrets=[secret]) == stored.dek
