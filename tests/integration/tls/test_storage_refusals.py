"""A storage whose TLS will not do is refused by every process in one line (SPEC 11).

Ceph, behind proxies that end TLS: its own gateway cannot require client certificates.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings, S3Settings
from tests.integration.tls.conftest import refusal
from tests.support.tls_proxy import server_context, tls_proxy
from tools.harness.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.integration.tls.conftest import Secured
    from tools.servers import S3Server

pytestmark = [pytest.mark.servers, pytest.mark.slow]

CASES: Final = {
    "wrong host": "its certificate is for another host than the one in KEYTURN_S3_ENDPOINT_URL",
    "expired": "its certificate has expired",
    "unknown issuer": "its certificate is from an unknown authority: check KEYTURN_S3_CA_FILE",
    "no client certificate": (
        "it requires a client certificate: set KEYTURN_S3_CERT_FILE and KEYTURN_S3_KEY_FILE"
    ),
    "plain on the TLS port": (
        "it speaks TLS on that port: KEYTURN_S3_ENDPOINT_URL must begin with https://"
    ),
    "TLS on the plain port": "it does not speak TLS on that port: check KEYTURN_S3_ENDPOINT_URL",
}
_PLAIN: Final = "plain on the TLS port"
_BODY: Final = bytes(300 * 1024)  # above the inline limit


@contextmanager
def _environments(secured: Secured, ceph: S3Server) -> Iterator[dict[str, dict[str, str]]]:
    plain = urlsplit(ceph.endpoint_url).port
    assert plain is not None
    authority, clients = secured.authority, secured.authority.ca
    with ExitStack() as stack:

        def port(hosts: tuple[str, ...], *, from_h: float = -1, to_h: float = 1) -> int:
            name = f"storage-{hosts[0]}-{to_h}"
            made = authority.issue(name, hosts, from_h=from_h, to_h=to_h)
            return stack.enter_context(tls_proxy(plain, server_context(made, clients=clients)))

        good = port(("localhost",))
        yield {
            "wrong host": secured.storage_env(port(("other.example",))),
            "expired": secured.storage_env(port(("localhost",), from_h=-2, to_h=-1)),
            "unknown issuer": secured.storage_env(good, S3_CA_FILE=str(secured.stranger.ca)),
            "no client certificate": secured.storage_env(good, S3_CERT_FILE="", S3_KEY_FILE=""),
            "TLS on the plain port": secured.storage_env(plain),
            _PLAIN: {"KEYTURN_S3_ENDPOINT_URL": f"http://localhost:{good}"},
        }


async def _all(
    secured: Secured,
    ceph: S3Server,
    base: dict[str, str],
    *command: str,
    cases: Collection[str] = tuple(CASES),
) -> None:
    turns = asyncio.Semaphore(2)
    with _environments(secured, ceph) as environments:

        async def one(case: str, env: dict[str, str]) -> None:
            async with turns:
                status, output = await refusal(base | env, *command)
            *_, line = output.splitlines()
            assert (case, status, CASES[case] in line) == (case, 1, True), output
            assert line.startswith("keyturn: storage_unavailable: "), line
            assert "Traceback" not in output

        async with asyncio.TaskGroup() as tasks:
            for case, env in environments.items():
                if case in cases:
                    tasks.create_task(one(case, env))


async def test_by_a_worker(secured: Secured, ceph: S3Server, ceph_bucket: str) -> None:
    deployment = Deployment(secured.rabbitmq.url, ceph, ceph_bucket)
    cases = ("unknown issuer", "TLS on the plain port", _PLAIN)
    await _all(secured, ceph, deployment.worker_env(), "worker", "upload", cases=cases)


async def test_by_a_gateway(secured: Secured, ceph: S3Server, ceph_bucket: str) -> None:
    deployment = Deployment(secured.rabbitmq.url, ceph, ceph_bucket)
    cases = ("expired", "no client certificate", _PLAIN)
    await _all(secured, ceph, deployment.gateway_env(), "gateway", cases=cases)


async def test_by_a_command(secured: Secured, ceph: S3Server, ceph_bucket: str) -> None:
    """A listing goes through botocore, which alone would not look at the host."""
    deployment = Deployment(secured.rabbitmq.url, ceph, ceph_bucket)
    await _all(secured, ceph, deployment.s3_env(), "ls", "acme", "--as-operator")


async def test_by_a_publisher_that_stages(
    secured: Secured, ceph: S3Server, ceph_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(secured.rabbitmq.url, ceph, ceph_bucket)
    with _environments(secured, ceph) as environments:
        for case in ("wrong host", "no client certificate"):
            env = environments[case]
            with monkeypatch.context() as patch:
                for name, value in (deployment.publisher_env() | env).items():
                    patch.setenv(name, value)
                settings, s3 = PublisherSettings.read(), S3Settings.read()
            async with Publisher.open(settings, s3=s3, connect=False) as publisher:
                with pytest.raises(StorageUnavailableError) as refused:
                    await publisher.upload("acme", "k", _BODY)
            assert refused.value.detail == f"staging failed ({CASES[case]})", case
