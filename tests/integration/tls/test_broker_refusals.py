"""A broker whose TLS will not do is refused by every process in one line (SPEC 11).

RabbitMQ itself, which requires client certificates. An expired certificate is shown by a proxy in
front of it, so that the broker can stay as it is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import pytest

from keyturn.errors import BrokerTlsError
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings
from tests.integration.tls.conftest import refusal
from tests.support.tls_proxy import server_context, tls_proxy
from tools.harness.console import ConsoleDeployment

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from tests.integration.tls.conftest import Secured
    from tools.servers import S3Server

pytestmark = [pytest.mark.servers, pytest.mark.slow]

CASES: Final = {
    "wrong host": "its certificate is for another host than the one in KEYTURN_AMQP_URL",
    "expired": "its certificate has expired",
    "unknown issuer": "its certificate is from an unknown authority: check KEYTURN_AMQP_CA_FILE",
    "no client certificate": (
        "it requires a client certificate: set KEYTURN_AMQP_CERT_FILE and KEYTURN_AMQP_KEY_FILE"
    ),
    "foreign client certificate": (
        "it refused the client certificate of KEYTURN_AMQP_CERT_FILE: unknown authority"
    ),
    "TLS on the plain port": "it does not speak TLS on that port: check KEYTURN_AMQP_URL",
    "plain on the TLS port": (
        "it speaks TLS on that port: KEYTURN_AMQP_URL must begin with amqps://"
    ),
}


def _environments(secured: Secured, expired_port: int) -> dict[str, dict[str, str]]:
    rabbitmq = secured.rabbitmq
    secure, plain = urlsplit(rabbitmq.tls_url), urlsplit(rabbitmq.url)
    user = secure.netloc.rpartition("@")[0]
    foreign = secured.stranger.issue("client", ())

    def at(scheme: str, host: str, port: int | None) -> str:
        return f"{scheme}://{user}@{host}:{port}/%2F"

    without = {"AMQP_CA_FILE": "", "AMQP_CERT_FILE": "", "AMQP_KEY_FILE": ""}
    return {
        "wrong host": secured.broker_env(AMQP_URL=at("amqps", "127.0.0.1", secure.port)),
        "expired": secured.broker_env(AMQP_URL=at("amqps", "localhost", expired_port)),
        "unknown issuer": secured.broker_env(AMQP_CA_FILE=str(secured.stranger.ca)),
        "no client certificate": secured.broker_env(AMQP_CERT_FILE="", AMQP_KEY_FILE=""),
        "foreign client certificate": secured.broker_env(
            AMQP_CERT_FILE=str(foreign.certificate), AMQP_KEY_FILE=str(foreign.key)
        ),
        "TLS on the plain port": secured.broker_env(AMQP_URL=at("amqps", "localhost", plain.port)),
        "plain on the TLS port": secured.broker_env(
            AMQP_URL=at("amqp", "localhost", secure.port), **without
        ),
    }


async def _all(
    secured: Secured,
    run: Callable[[dict[str, str]], list[str]],
    base: dict[str, str],
    cases: Collection[str] = tuple(CASES),
) -> None:
    """The cases, two at a time, and what each says."""
    plain_port = urlsplit(secured.rabbitmq.url).port
    assert plain_port is not None
    expired = secured.authority.issue("expired", ("localhost",), from_h=-2, to_h=-1)
    password = urlsplit(secured.rabbitmq.url).password or ""
    turns = asyncio.Semaphore(2)
    with tls_proxy(plain_port, server_context(expired)) as expired_port:

        async def one(case: str, env: dict[str, str]) -> None:
            async with turns:
                status, output = await refusal(base | env, *run(env))
            *_, line = output.splitlines()
            assert (case, status, CASES[case] in line) == (case, 1, True), output
            assert line.startswith("keyturn: the broker cannot be reached ("), line
            assert "Traceback" not in output
            assert password not in output

        async with asyncio.TaskGroup() as tasks:
            for case, env in _environments(secured, expired_port).items():
                if case in cases:
                    tasks.create_task(one(case, env))


async def test_by_a_worker(secured: Secured, ceph: S3Server, ceph_bucket: str) -> None:
    deployment = ConsoleDeployment(secured.rabbitmq.url, ceph, ceph_bucket)
    cases = ("expired", "unknown issuer", "no client certificate", "plain on the TLS port")
    await _all(secured, lambda _: ["worker", "upload"], deployment.worker_env(), cases)


async def test_by_a_gateway(secured: Secured, ceph: S3Server, ceph_bucket: str) -> None:
    deployment = ConsoleDeployment(secured.rabbitmq.url, ceph, ceph_bucket)
    # It connects as a publisher does: these are what it could take for a broker that is away.
    cases = ("wrong host", "no client certificate", "plain on the TLS port")
    await _all(secured, lambda _: ["gateway"], deployment.gateway_env(), cases)


async def test_by_a_console_and_by_commands(
    secured: Secured, ceph: S3Server, tmp_path: Path
) -> None:
    deployment = ConsoleDeployment(secured.rabbitmq.url, ceph, "no-bucket")
    (tmp_path / "passwords").write_text("")
    base = deployment.console_env(tmp_path / "passwords")
    console = {"amqps"}  # the first case of each scheme is the console's, the rest a command's

    def run(env: dict[str, str]) -> list[str]:
        scheme = urlsplit(env["KEYTURN_AMQP_URL"]).scheme
        if scheme in console:
            console.discard(scheme)
            return ["console"]
        return ["dead", "list"]

    await _all(secured, run, base)


async def test_by_a_publisher(
    secured: Secured, ceph: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = ConsoleDeployment(secured.rabbitmq.url, ceph, "no-bucket")
    plain_port = urlsplit(secured.rabbitmq.url).port
    assert plain_port is not None
    expired = secured.authority.issue("expired", ("localhost",), from_h=-2, to_h=-1)
    with tls_proxy(plain_port, server_context(expired)) as expired_port:
        for case, env in _environments(secured, expired_port).items():
            with monkeypatch.context() as patch:
                for name, value in (deployment.publisher_env() | env).items():
                    patch.setenv(name, value)
                settings = PublisherSettings.read()
            with pytest.raises(BrokerTlsError) as refused:
                async with Publisher.open(settings):
                    pass
            assert str(refused.value) == f"the broker cannot be reached ({CASES[case]})"
