"""A project with a customer key at the gateway: what needs its store, and when (SPEC 2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import Secret, associated_data, customer_secret_id, encryption_context
from keyturn.errors import CustomerKeyUnavailableError
from keyturn_workers.core.customer_keys import CustomerKey, KeyName
from keyturn_workers.core.keyring import retire_old_keys, rotate
from keyturn_workers.gateway.problems import CUSTOMER_KEY_REFUSED, NO_CUSTOMER_KEY
from tests.unit.keyturn_workers.factories import AT, ORIGIN
from tests.unit.keyturn_workers.gateway.bench import (
    API_KEY,
    DEPLOYMENT,
    KEY,
    NEW_API_KEY,
    Bench,
    kek_of,
    ring_of,
)
from tests.unit.keyturn_workers.gateway.serving import BEARER, DELETES, PATH, Serving, ask
from tools.harness.customer_keys import HeldCustomerKeys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn_workers.core.customer_keys import CustomerSecrets
    from keyturn_workers.core.keyring import Keyring
    from tests.unit.keyturn_workers.gateway.serving import Connection

KEYS: Final = "/v1/projects/acme/keys"
A: Final = KeyName("kms-eu", "arn:aws:kms:eu-central-1:111122223333:key/a")
B: Final = KeyName("bao", "acme")
SECRET_A: Final = Secret(b"a" * 32)
SECRET_B: Final = Secret(b"b" * 32)
KEY_A: Final = CustomerKey.of(A, SECRET_A, "YQ==")
KEY_B: Final = CustomerKey.of(B, SECRET_B, "vault:v1:Yg==")


def turned(before: Keyring, **more: Any) -> Keyring:
    number = before.current.generation + 1
    rotation_id = f"2f6c9a0e-1111-4111-8111-11111111{number:04}"
    return rotate(before, rotation_id=rotation_id, requested_at=AT, at=AT, origin=ORIGIN, **more)


PLAIN: Final = ring_of()
WITH_A: Final = turned(PLAIN, customer_key=KEY_A)
WITH_B: Final = turned(WITH_A, customer_key=KEY_B)


class WatchedKeys(HeldCustomerKeys):
    """Notes how many places of the gateway are held while a store is asked."""

    def __init__(self) -> None:
        super().__init__(SECRET_A, SECRET_B)
        self.serving: Serving | None = None
        self.held: list[int] = []

    def _ask(self, customer_key: CustomerKey) -> Secret:
        assert self.serving is not None
        self.held.append(self.serving.limit.in_use + self.serving.bench.storage.open_streams)
        return super()._ask(customer_key)


def served(ring: Keyring, **more: Any) -> tuple[Serving, WatchedKeys]:
    keys = WatchedKeys()
    serving = Serving(Bench(ring=ring, cache_s=60, customer_keys=keys), **more)
    keys.serving = serving
    return serving, keys


READS: Final[list[tuple[str, str, dict[str, str], bytes]]] = [
    ("GET", PATH, {}, b""),
    ("GET", PATH, {"range": "bytes=1-2"}, b""),
    ("HEAD", PATH, {}, b""),
    ("POST", f"{PATH}/links", {}, b'{"kind": "ciphertext"}'),
]


@pytest.mark.parametrize(("method", "target", "headers", "body"), READS)
async def test_a_read_asks_for_the_secret_before_it_takes_a_place(
    method: str, target: str, headers: dict[str, str], body: bytes
) -> None:
    serving, keys = served(WITH_A)
    serving.bench.plant_sealed(b"hello")
    response = await ask(serving.app, method, target, headers=BEARER | headers, body=body)
    assert response.status in (200, 201, 206)
    assert keys.asked == [KEY_A.secret_id]
    assert keys.held == [0]
    assert serving.limit.in_use == 0


async def test_a_former_secret_is_asked_for_only_where_the_current_one_does_not_open() -> None:
    serving, keys = served(WITH_A)
    serving.bench.plant_sealed(b"former")
    serving.bench.plant_sealed(b"x", key="current")
    serving.bench.write_keyring(WITH_B)
    response = await ask(serving.app, "GET", PATH, headers=BEARER)
    assert (response.status, response.content) == (200, b"former")
    assert keys.asked == [KEY_B.secret_id, KEY_A.secret_id]
    # The place and the connection were released before the former key's store was asked.
    assert keys.held == [0, 0]
    assert (serving.limit.in_use, serving.bench.storage.open_streams) == (0, 0)


async def test_a_former_key_that_is_refused_fails_its_objects_alone() -> None:
    serving, keys = served(WITH_A)
    serving.bench.plant_sealed(b"former")
    serving.bench.write_keyring(WITH_B)
    serving.bench.plant_sealed(b"current", key="current")
    keys.refused.add(str(A))
    former = await ask(serving.app, "GET", PATH, headers=BEARER)
    assert (former.status, former.document()["code"]) == (403, "customer_key_refused")
    current = await ask(serving.app, "GET", PATH.replace(KEY, "current"), headers=BEARER)
    assert (current.status, current.content) == (200, b"current")


async def test_an_object_of_a_newer_keyring_is_opened_with_that_ones_secret() -> None:
    serving, keys = served(WITH_A)
    serving.bench.plant_sealed(b"old", key="old")
    old = await ask(serving.app, "GET", PATH.replace(KEY, "old"), headers=BEARER)
    assert old.status == 200
    serving.bench.write_keyring(WITH_B)  # the gateway has the earlier one in its cache
    serving.bench.plant_sealed(b"new")
    response = await ask(serving.app, "GET", PATH, headers=BEARER)
    assert (response.status, response.content) == (200, b"new")
    assert keys.asked[-1] == KEY_B.secret_id
    assert set(keys.held) == {0}


async def _refused(serving: Serving) -> list[Connection]:
    put = await ask(serving.app, "PUT", PATH.replace(KEY, "new"), headers=BEARER, body=b"body")
    reads = [
        await ask(serving.app, method, target, headers=BEARER | headers, body=body)
        for method, target, headers, body in READS
    ]
    return [put, *reads]


@pytest.mark.parametrize(
    ("state", "status", "code", "detail"),
    [
        ("refused", 403, "customer_key_refused", CUSTOMER_KEY_REFUSED),
        ("away", 503, "customer_key_unavailable", NO_CUSTOMER_KEY),
    ],
)
async def test_reads_and_writes_fail_with_the_keys_code(
    state: str, status: int, code: str, detail: str
) -> None:
    serving, keys = served(WITH_A)
    serving.bench.plant_sealed(b"hello")
    getattr(keys, state).add(str(A))
    for response in await _refused(serving):
        assert response.status == status
        assert ("retry-after" in response.headers) is (status == 503)
        if response.content:  # not to HEAD
            document = response.document()
            assert (document["code"], document["detail"]) == (code, detail)
    assert serving.publisher.uploads == []


async def test_a_body_is_not_read_before_the_secret_is_there() -> None:
    serving, keys = served(WITH_A)
    keys.away.add(str(A))
    headers = BEARER | {"expect": "100-continue", "content-length": "4"}
    connection = await ask(serving.app, "PUT", PATH, headers=headers, body=b"body")
    assert (connection.status, connection.body) == (503, [b"body"])


async def test_an_upload_asks_for_the_secret_and_is_published() -> None:
    serving, keys = served(WITH_A)
    response = await ask(serving.app, "PUT", PATH, headers=BEARER, body=b"body")
    assert response.status == 202
    assert [upload.body for upload in serving.publisher.uploads] == [b"body"]
    assert (keys.asked, keys.held) == ([KEY_A.secret_id], [0])


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/v1/projects/acme/objects", b"", 200),
        ("POST", f"{PATH}/links", b"", 201),
        ("POST", f"{PATH}/links", b'{"method": "PUT", "max_bytes": 9}', 201),
        ("DELETE", PATH, b"", 202),
        ("POST", DELETES, b'{"keys": ["%s"]}' % KEY.encode(), 202),
        ("GET", KEYS, b"", 200),
    ],
)
async def test_what_needs_no_store(method: str, target: str, body: bytes, status: int) -> None:
    serving, keys = served(WITH_A)
    serving.bench.plant_sealed(b"hello")
    keys.refused.add(str(A))
    headers = BEARER | {"host": "files.example.com"}
    response = await ask(serving.app, method, target, headers=headers, body=body)
    assert response.status == status
    assert keys.asked == []


async def test_another_api_key_is_refused_before_any_store_is_asked() -> None:
    serving, keys = served(WITH_A)
    keys.away.add(str(A))
    headers = {"authorization": f"Bearer {NEW_API_KEY}"}
    for method in ("GET", "PUT"):
        assert (await ask(serving.app, method, PATH, headers=headers)).status == 401
    assert keys.asked == []


async def test_a_project_at_its_share_is_refused_although_its_key_answers() -> None:
    serving, keys = served(WITH_A, concurrency=2, project_share=0.5)
    serving.bench.plant_sealed(b"hello")
    with serving.limit.hold("acme"):
        response = await ask(serving.app, "GET", PATH, headers=BEARER)
    assert response.status == 429
    assert keys.held == [1]  # that of the test
    assert (await ask(serving.app, "GET", PATH, headers=BEARER)).status == 200


class NeverGiven(HeldCustomerKeys):
    async def open_with(
        self, keyring: Keyring, opening: Callable[[CustomerSecrets], Awaitable[Any]]
    ) -> Any:
        del opening
        raise CustomerKeyUnavailableError(f"{keyring.project} waits")


async def test_without_the_current_secret_the_object_is_not_even_read() -> None:
    bench = Bench(ring=WITH_A, customer_keys=NeverGiven(SECRET_A))
    bench.plant_sealed(b"hello")
    assert "waits" in await bench.open_fails(CustomerKeyUnavailableError)
    assert bench.storage.requested_bytes == 0


# --- The keys that objects need (SPEC 9.8)


def _place(secret: Secret) -> tuple[str, str, str]:
    return (DEPLOYMENT, "acme", customer_secret_id(secret))


ENTRY_A: Final = {
    "store": A.store,
    "key": A.key,
    "secret_id": KEY_A.secret_id,
    "wrapped": "YQ==",
    "context": encryption_context(*_place(SECRET_A)),
}
ENTRY_B: Final = {
    "store": B.store,
    "key": B.key,
    "secret_id": KEY_B.secret_id,
    "wrapped": "vault:v1:Yg==",
    "context": associated_data(*_place(SECRET_B)),
}


@pytest.mark.parametrize(
    ("ring", "generations"),
    [
        (PLAIN, [(1, None)]),
        (WITH_B, [(1, None), (2, ENTRY_A), (3, ENTRY_B)]),
        (turned(WITH_A, kek=kek_of(NEW_API_KEY)), [(1, None), (2, ENTRY_A), (3, ENTRY_A)]),
        (retire_old_keys(WITH_B), [(3, ENTRY_B)]),
    ],
    ids=["plain", "two customer keys", "another API key", "after a clean end"],
)
async def test_the_keys_that_objects_need_are_described(
    ring: Keyring, generations: list[tuple[int, dict[str, Any] | None]]
) -> None:
    serving, _ = served(ring)
    current = API_KEY if ring.current.kek == kek_of(API_KEY) else NEW_API_KEY
    headers = {"authorization": f"Bearer {current}"}
    response = await ask(serving.app, "GET", KEYS, headers=headers)
    assert (response.status, response.headers["cache-control"]) == (200, "no-store")
    assert response.document() == {
        "dek_floor": 0,
        "generations": [
            {"generation": number, "dek_since": 0, **({"customer_key": key} if key else {})}
            for number, key in generations
        ],
    }
    for secret in (SECRET_A, SECRET_B):
        assert secret.reveal() not in response.content


async def test_the_keys_are_for_the_current_api_key_alone() -> None:
    serving, _ = served(WITH_A)
    headers = {"authorization": f"Bearer {NEW_API_KEY}"}
    assert (await ask(serving.app, "GET", KEYS, headers=headers)).status == 401
    assert (await ask(serving.app, "GET", KEYS)).status == 401
