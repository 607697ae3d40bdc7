"""Enroll, upload and read with TLS on every connection; and change a running worker's certificates.

The broker requires client certificates, and so does a proxy in front of Ceph. Ceph's own TLS is
what the worker and the gateway use.
"""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import pytest

from keyturn.gateway import Client
from keyturn.messages import UploadStored
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings, S3Settings
from keyturn.tls import GATEWAY, client_context
from tests.integration.tls.conftest import refusal
from tests.support.tls_proxy import server_context, tls_proxy
from tools.harness.deployment import Deployment
from tools.harness.process import gateway, worker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.tls.conftest import Secured
    from tools.servers import S3Server
    from tools.servers.certificates import Certificate

pytestmark = [pytest.mark.servers, pytest.mark.slow]

_SMALL: Final = b"small"
_STAGED: Final = bytes(9 * 2**20)  # two parts


def _own_storage(ceph: S3Server) -> dict[str, str]:
    if ceph.ca is None:
        pytest.skip("the given storage has no address for TLS")
    return {
        "KEYTURN_S3_ENDPOINT_URL": ceph.tls_endpoint_url,
        "KEYTURN_S3_CA_FILE": str(ceph.ca),
    }


async def test_with_tls_on_every_way(
    secured: Secured, ceph: S3Server, ceph_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(secured.rabbitmq.tls_url, ceph, ceph_bucket)
    own_storage, broker = _own_storage(ceph), secured.broker_env()
    served = secured.authority.issue("gateway")
    plain = urlsplit(ceph.endpoint_url).port
    assert plain is not None
    tls = {"GATEWAY_TLS_CERT": str(served.certificate), "GATEWAY_TLS_KEY": str(served.key)}
    required = server_context(secured.server, clients=secured.authority.ca)
    async with (
        worker(deployment.worker_env() | broker | own_storage),
        gateway(deployment.gateway_env(**tls) | broker | own_storage) as process,
        AsyncExitStack() as stack,
    ):
        port = stack.enter_context(tls_proxy(plain, required))
        env = deployment.publisher_env() | broker | secured.storage_env(port)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        async with Publisher.open(PublisherSettings.read(), s3=S3Settings.read()) as publisher:
            await publisher.wait(await publisher.enroll("acme", api_key=deployment.api_key))
            for key, body in (("small", _SMALL), ("staged", _STAGED)):
                event = await publisher.wait(await publisher.upload("acme", key, body))
                assert isinstance(event, UploadStored)
        assert process.scheme == "https"
        url = f"https://localhost:{process.port}"
        trusting = client_context(GATEWAY, secured.authority.ca)
        async with Client.connect(url, deployment.api_key, tls=trusting) as client:
            async with client.open("acme", "staged") as opened:
                assert await opened.read() == _STAGED
            assert (await client.link("acme", "small")).url.startswith(url)
        command = {
            "KEYTURN_GATEWAY_URL": url,
            "KEYTURN_API_KEY": deployment.api_key,
            "KEYTURN_GATEWAY_CA_FILE": str(secured.authority.ca),
        }
        assert await refusal(command, "download", "acme", "small", "-o", "-") == (0, "small")
        status, output = await refusal(
            command | {"KEYTURN_GATEWAY_CA_FILE": str(secured.stranger.ca)}, "ls", "acme"
        )
        assert status == 1
        assert "unknown authority: check KEYTURN_GATEWAY_CA_FILE" in output
        status, output = await refusal(env | broker, "dead", "list")
        assert (status, output) == (0, output)
        assert await process.terminate() == 0


async def test_a_worker_goes_on_after_certificates_have_changed(
    secured: Secured,
    ceph: S3Server,
    ceph_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The broker's expires: the worker says so, and tries again until the broker has a valid one.

    The worker's own are renewed meanwhile, and it uses the new ones without a restart.
    """
    deployment = Deployment(secured.rabbitmq.tls_url, ceph, ceph_bucket)
    rabbitmq, server = secured.rabbitmq, secured.server
    plain = urlsplit(ceph.endpoint_url).port
    assert plain is not None
    for path in (server.certificate, server.key):
        shutil.copy(path, tmp_path)

    def show(certificate: Path, key: Path) -> None:
        shutil.copy(certificate, server.certificate)
        shutil.copy(key, server.key)
        rabbitmq.read_certificates_again()

    def write(name: str, pair: Certificate) -> dict[str, str]:
        files = (tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        shutil.copy(pair.certificate, files[0])
        shutil.copy(pair.key, files[1])
        return dict(zip((f"{name}_CERT_FILE", f"{name}_KEY_FILE"), map(str, files), strict=True))

    for name, value in (deployment.publisher_env() | secured.broker_env()).items():
        monkeypatch.setenv(name, value)
    broker = secured.broker_env(**write("AMQP", secured.client))
    clients = secured.authority.ca
    with ExitStack() as proxies:
        port = proxies.enter_context(tls_proxy(plain, server_context(server, clients=clients)))
        storage = secured.storage_env(port, **write("S3", secured.client))
        async with worker(deployment.worker_env() | broker | storage) as running:
            expired = secured.authority.issue("expired-broker", ("localhost",), from_h=-2, to_h=-1)
            show(expired.certificate, expired.key)
            try:
                rabbitmq.control("--silent", "close_all_connections", "of a test")
                line = "the broker cannot be reached (its certificate has expired)"
                await running.logged(line)
                await running.logged(line, after=len(running.lines))
                write("AMQP", secured.authority.issue("renewed", ()))
            finally:
                show(tmp_path / server.certificate.name, tmp_path / server.key.name)
            # The storage now requires a certificate that the worker did not start with.
            write("S3", secured.stranger.issue("renewed", ()))
            proxies.close()
            required = server_context(server, clients=secured.stranger.ca)
            proxies.enter_context(tls_proxy(plain, required, port=port))
            async with Publisher.open(PublisherSettings.read()) as publisher:
                await publisher.wait(await publisher.enroll("later", api_key=deployment.api_key))
            for name in ("AMQP", "S3"):
                await running.logged(f"certificate renewed: KEYTURN_{name}_CERT_FILE")
            subjects = rabbitmq.control("--silent", "list_connections", "peer_cert_subject")
            assert "CN=renewed" in subjects
            assert await running.terminate() == 0
