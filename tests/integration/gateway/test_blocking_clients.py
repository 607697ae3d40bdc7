"""Blocking clients, files by URL and a storage for Django, on real servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from django.core.files.base import ContentFile  # type: ignore[import-untyped]

from keyturn.django import KeyturnStorage
from keyturn.errors import DeletedKeyError
from keyturn.fsspec import KeyturnFileSystem
from keyturn.sync import Client, Publisher
from tests.integration.gateway.scene import plain
from tests.unit.keyturn.blocking import django_project

if TYPE_CHECKING:
    from tests.integration.gateway.scene import Live

pytestmark = pytest.mark.servers

WORKER_ENV = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
GATEWAY_ENV = {"KEYRING_CACHE_S": "0.5"}


def test_a_service_without_an_event_loop_publishes_and_reads(live: Live) -> None:
    deployment = live.scene.deployment
    bodies = {f"sync/{number}": plain(30_000, number) for number in range(12)}
    with (
        Publisher(deployment.publisher_settings()) as publisher,
        Client(live.scene.process.url, deployment.api_key) as client,
        ThreadPoolExecutor(4) as threads,
    ):

        def store(key: str) -> str:
            return publisher.wait(publisher.upload("acme", key, bodies[key])).type

        def read(key: str) -> bytes:
            with client.open("acme", key) as opened:
                return b"".join(opened.chunks())

        assert set(threads.map(store, bodies)) == {"upload.stored"}
        assert list(threads.map(read, bodies)) == list(bodies.values())
        assert {entry.key for entry in client.list("acme", prefix="sync/")} == set(bodies)
        assert client.delete("acme", "sync/0", wait_s=30).deleted
        with pytest.raises(DeletedKeyError):
            client.upload("acme", "sync/0", b"")


_FORKING = """
import os, sys, warnings
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of each fork, from 3.12 on
from keyturn import PublisherSettings
from keyturn.sync import Publisher

publisher = Publisher(PublisherSettings.read())

def store(key):
    assert publisher.wait(publisher.upload("acme", key, key.encode())).type == "upload.stored"

store("forked/parent")
for number in range(2):
    if (pid := os.fork()) == 0:
        store(f"forked/child-{number}")
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    store(f"forked/parent-{number}")
"""


def test_a_publisher_and_its_forked_children_have_connections_of_their_own(live: Live) -> None:
    environment = {**os.environ, **live.scene.deployment.publisher_env()}
    ended = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", _FORKING],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    with Client(live.scene.process.url, live.scene.deployment.api_key) as client:
        stored = [entry.key for entry in client.list("acme", prefix="forked/")]
    assert stored == sorted(
        f"forked/{who}" for who in ("parent", "child-0", "parent-0", "child-1", "parent-1")
    )


def test_files_by_url_are_stored_read_in_ranges_and_deleted(live: Live) -> None:
    files = KeyturnFileSystem(gateway=live.scene.process.url, api_key=live.scene.deployment.api_key)
    body = plain(12_000_000)
    with files.open("acme/files/a/large", "wb") as file:  # streams: it is longer than a block
        for start in range(0, len(body), 1_000_000):
            file.write(body[start : start + 1_000_000])
    files.pipe_file("acme/files/small", body[:10], content_type="text/plain")
    with files.open("acme/files/a/large", "rb") as file:
        file.seek(-1_000_000, 2)
        assert file.read() == body[-1_000_000:]
    assert files.cat(files.find("acme/files")) == {
        "acme/files/a/large": body,
        "acme/files/small": body[:10],
    }
    assert files.info("acme/files/small")["content_type"] == "text/plain"
    with pytest.raises(TypeError), files.open("acme/files/none", "wb") as file:
        file.writelines([body, "not bytes"])
    assert files.find("acme/files") == ["acme/files/a/large", "acme/files/small"]
    files.rm("acme/files", recursive=True)
    assert files.find("acme/files") == []
    with pytest.raises(FileExistsError):
        files.pipe_file("acme/files/small", b"")


def test_a_django_storage_gives_links_and_uses_no_name_twice(live: Live) -> None:
    django_project.set_up()
    url, api_key = live.scene.process.url, live.scene.deployment.api_key
    storage = KeyturnStorage(project="acme", location="media", gateway=url, api_key=api_key)
    body = plain(20_000)
    name = storage.save("q3.txt", ContentFile(body))
    link = storage.url(name)
    live.scene.given["a link of Django"] = link.partition("token=")[2].encode()
    with urlopen(link) as answer:  # noqa: S310  # of the gateway under test
        assert answer.read() == body
    storage.delete(name)
    with Client(url, api_key) as client:
        client.delete("acme", "media/q3.txt", wait_s=30)  # a second one, to wait for it
    assert not storage.exists(name)
    again = storage.save("q3.txt", ContentFile(body[:5]))
    assert re.fullmatch(r"q3_\w{7}\.txt", again)
    with storage.open(again) as file:
        assert file.read() == body[:5]
