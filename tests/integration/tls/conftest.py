"""A broker that requires client certificates, and what its clients need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tools.harness.process import run_command
from tools.servers import RabbitMQ, packages
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.servers.certificates import Certificate


@dataclass(frozen=True)
class Secured:
    """A broker with TLS beside its plain port, and the files of its clients."""

    rabbitmq: RabbitMQ
    authority: Authority
    stranger: Authority
    server: Certificate
    client: Certificate

    def broker_env(self, **more: str) -> dict[str, str]:
        """The settings of a client of the broker; `more` override some, without the prefix."""
        found = {
            "AMQP_URL": self.rabbitmq.tls_url,
            "AMQP_CA_FILE": str(self.authority.ca),
            "AMQP_CERT_FILE": str(self.client.certificate),
            "AMQP_KEY_FILE": str(self.client.key),
        } | more
        return {f"KEYTURN_{name}": value for name, value in found.items()}

    def storage_env(self, port: int, **more: str) -> dict[str, str]:
        """The same of a storage on this port."""
        found = {
            "S3_ENDPOINT_URL": f"https://localhost:{port}",
            "S3_CA_FILE": str(self.authority.ca),
            "S3_CERT_FILE": str(self.client.certificate),
            "S3_KEY_FILE": str(self.client.key),
        } | more
        return {f"KEYTURN_{name}": value for name, value in found.items()}


@pytest.fixture(scope="package")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder: Path = tmp_path_factory.mktemp("tls")
    authority = Authority(folder / "authority")
    # Valid for a name alone: its address is another host.
    server = authority.issue("broker", ("localhost",))
    packages.ensure(packages.needed("none", broker=True))
    rabbitmq = RabbitMQ(server)
    try:
        rabbitmq.start()
        yield Secured(
            rabbitmq,
            authority,
            Authority(folder / "stranger"),
            server,
            authority.issue("client", ()),
        )
    finally:
        rabbitmq.stop()


async def refusal(env: dict[str, str], *command: str) -> tuple[int, str]:
    """Run `keyturn`; its exit status, and all that it said."""
    ended = await run_command(env, *command)
    return ended.status, ended.output + ended.errors
