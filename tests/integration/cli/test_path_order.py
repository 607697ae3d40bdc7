"""Commands on SeaweedFS, which lists by paths: no key is missing, repeated or out of order."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import new_api_key
from keyturn.identifiers import path_order
from keyturn_workers.cli.watch import object_counter
from tests.integration.cli.conftest import Cli, cli_for, document
from tools.doctor.server_kinds import make_bucket
from tools.harness.deployment import Deployment
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_NO_BROKER = "amqp://none@127.0.0.1:1/"
_PAGE = 5
# The server lists folders before their siblings: `a/…`, `a!b`, `a-1/x`, `a.txt`, `b/…`, `b-2/y`.
KEYS = sorted(
    [
        *("a!b", "a-1/x", "a-1/y", "a.txt", "b-2/y", "b.", "c"),
        *(f"{folder}/{number}" for folder in "ab" for number in range(_PAGE + 3)),
    ],
    key=path_order,
)
FOLDERS = ["a!b", "a-1/", "a.txt", "a/", "b-2/", "b.", "b/", "c"]


@pytest.fixture(scope="module")
def deployment(seaweedfs: S3Server) -> Deployment:
    bucket = make_bucket(seaweedfs, "plain")
    with closing(sync_client(seaweedfs)) as client:
        for key in KEYS:
            client.put_object(Bucket=bucket, Key=f"acme/{key}", Body=b"1")
    return Deployment(_NO_BROKER, seaweedfs, bucket)


@pytest.fixture
def cli(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Pages are short, so that a few objects fill several."""
    monkeypatch.setattr("keyturn_workers.storage.s3_listings.PAGE_KEYS", _PAGE)
    monkeypatch.setattr("keyturn_workers.cli.objects.PAGE_KEYS", _PAGE)
    return cli_for(deployment)


def test_ls(cli: Cli) -> None:
    for options, keys in (((), KEYS), (("--folders",), FOLDERS), (("--limit", "3"), KEYS[:3])):
        result = cli.run("ls", "acme", "--as-operator", *options, "--json")
        assert result.exit_code == 0, result.output
        assert [row["key"] for row in document(result)] == keys
    below = cli.run("ls", "acme", "a", "--as-operator", "--json")
    assert [row["key"] for row in document(below)] == [key for key in KEYS if key[0] == "a"]


def test_verify(cli: Cli) -> None:
    """The objects are plaintext: each one is a finding."""
    result = cli.run("verify", "acme", "--json", API_KEY=new_api_key())
    assert result.exit_code == 1, result.output
    report = document(result)
    assert [row["s3_key"] for row in report["findings"]] == [f"acme/{key}" for key in sorted(KEYS)]
    assert report["counts"]["objects"] == len(KEYS)


async def test_counts_of_status(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    result = await cli.arun("status", "acme", "--json")
    assert sum(row["objects"] for row in document(result)["objects"]) == len(KEYS)
    for name, value in cli.env.items():
        monkeypatch.setenv(name, value)
    count = object_counter("acme")
    assert count is not None
    assert await count() == len(KEYS)
