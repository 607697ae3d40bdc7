"""What the command line's tests run on: a deployment on moto and a broker, its environment."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from keyturn_workers.cli.app import app
from tools.harness.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typer.testing import Result

    from tools.servers import S3Server

_NO_BROKER = "amqp://nobody@127.0.0.1:1/"


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("KEYTURN_"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@dataclass(frozen=True)
class Cli:
    """Runs commands in the environment of one deployment."""

    deployment: Deployment
    env: dict[str, str]

    def run(self, *arguments: str, stdin: bytes | None = None, **env: str) -> Result:
        more = {f"KEYTURN_{name}": value for name, value in env.items()}
        return CliRunner().invoke(app, list(arguments), input=stdin, env={**self.env, **more})

    async def arun(self, *arguments: str, stdin: bytes | None = None, **env: str) -> Result:
        """The same within a running event loop."""
        return await asyncio.to_thread(self.run, *arguments, stdin=stdin, **env)


def cli_for(deployment: Deployment) -> Cli:
    return Cli(deployment, {**deployment.worker_env(), **deployment.publisher_env()})


@pytest.fixture(params=["moto", "ceph"])
def bucket_cli(request: pytest.FixtureRequest, new_bucket: Callable[[S3Server], str]) -> Cli:
    """Commands that need the bucket alone, on either server."""
    server: S3Server = request.getfixturevalue(request.param)
    return cli_for(Deployment(_NO_BROKER, server, new_bucket(server)))


@pytest.fixture
def operator_cli(bucket_cli: Cli, vhost_url: str) -> Cli:
    """The same with a broker: what an operator opens is recorded first (SPEC 15.3)."""
    return cli_for(replace(bucket_cli.deployment, amqp_url=vhost_url))


@pytest.fixture
def cli(vhost_url: str, moto: S3Server, moto_bucket: str) -> Cli:
    """Commands that need the broker too."""
    return cli_for(Deployment(vhost_url, moto, moto_bucket))


def document(result: Result) -> Any:
    """The JSON that a command printed."""
    return json.loads(result.stdout)
