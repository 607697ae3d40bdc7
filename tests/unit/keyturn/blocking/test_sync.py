"""`keyturn.sync`: blocking clients on one event loop, from any thread, after a fork, at exit."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import TYPE_CHECKING

import pytest

import keyturn.gateway
import keyturn.publisher
import keyturn.sync
from keyturn.errors import (
    MalformedRequestError,
    NotFoundError,
    SettingsError,
    UnauthorizedError,
)
from keyturn.event_loop import event_loop
from keyturn.gateway import ListedObject, ListedPrefix
from keyturn.sync import Client
from tests.unit.keyturn.gateway.gateway import API_KEY, NEW_API_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.keyturn.blocking.memory_gateway import MemoryGateway


@pytest.fixture
def client(memory: MemoryGateway) -> Iterator[Client]:
    with Client(memory.url, API_KEY) as opened:
        yield opened


def _read(client: Client, key: str, **span: int) -> bytes:
    with client.open("acme", key, **span) as opened:
        return opened.read()


def test_every_call_has_a_blocking_namesake() -> None:
    """Those of the asynchronous clients: a new one must not be forgotten here."""
    pairs = [
        (keyturn.sync.Client, keyturn.gateway.Client, {"connect"}),
        (keyturn.sync.Publisher, keyturn.publisher.Publisher, {"open", "unverified_events"}),
    ]
    for blocking, asynchronous, other in pairs:
        names = {name for name in vars(asynchronous) if not name.startswith("_")} - other
        assert names <= set(dir(blocking))
        calls = [getattr(blocking, name) for name in names]
        assert not [call for call in calls if iscoroutinefunction(call) or isasyncgenfunction(call)]


def test_an_object_is_uploaded_read_listed_linked_and_deleted(client: Client) -> None:
    stored = client.upload("acme", "a/b.txt", b"the body", metadata={"author": "kim"})
    assert stored.stored
    client.upload("acme", "c", b"")
    assert client.stat("acme", "a/b.txt").size_bytes == 8
    with client.open("acme", "a/b.txt") as opened:
        assert (opened.length, opened.info.metadata["author"]) == (8, "kim")
        assert b"".join(opened.chunks()) == b"the body"
    assert _read(client, "a/b.txt", start=4, length=2) == b"bo"
    assert [type(entry) for entry in client.list("acme", delimiter="/")] == [
        ListedPrefix,
        ListedObject,
    ]
    assert client.link("acme", "c", expires_s=60).url.startswith("http://127.0.0.1:")
    assert client.delete("acme", "c", wait_s=1).deleted
    assert [entry.key for entry in client.list("acme")] == ["a/b.txt"]


def test_errors_are_those_of_the_asynchronous_client(memory: MemoryGateway, client: Client) -> None:
    with pytest.raises(NotFoundError), client.open("acme", "none"):
        pass
    with pytest.raises(UnauthorizedError):
        client.with_api_key(NEW_API_KEY).stat("acme", "k")
    with pytest.raises(MalformedRequestError):
        next(client.list("acme", page_size=0))
    with pytest.raises(MalformedRequestError):
        Client(memory.url, "short")
    with pytest.raises(SettingsError):
        Client("not a URL", API_KEY)


def test_several_threads_share_a_client(client: Client) -> None:
    keys = [f"k{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: client.upload("acme", key, key.encode()), keys))
        bodies = list(threads.map(lambda key: _read(client, key), keys))
    assert bodies == [key.encode() for key in keys]


def test_a_closed_client_says_so(memory: MemoryGateway) -> None:
    client = Client(memory.url, API_KEY)
    other = client.with_api_key(NEW_API_KEY)
    client.close()
    client.close()
    for closed in (client, other):
        with pytest.raises(RuntimeError, match="closed"):
            closed.stat("acme", "k")


def test_a_call_on_the_loop_itself_is_refused_and_not_waited_for_forever(client: Client) -> None:
    async def call() -> None:
        client.stat("acme", "k")

    with pytest.raises(RuntimeError, match="its own event loop"):
        event_loop().run(call())


def test_the_api_key_is_in_no_repr_and_no_pickle(client: Client) -> None:
    assert API_KEY not in repr(client) + repr(vars(client))
    with pytest.raises(TypeError, match="in each process"):
        pickle.dumps(client)


_PRELUDE = f"""
import os, sys, warnings, gc
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of each fork, from 3.12 on
from keyturn.sync import Client
from keyturn.fsspec import KeyturnFileSystem
API_KEY = {API_KEY!r}
url = sys.argv[1]
"""


def _run(memory: MemoryGateway, program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _PRELUDE + program, memory.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["sys.exit(0)", "os._exit(0)"])
def test_a_forked_child_connects_anew_and_leaves_its_parents_connections_alone(
    memory: MemoryGateway, ends: str
) -> None:
    """Also while another thread of the parent is in a call."""
    memory.objects["k"] = (b"the body", {})
    ended = _run(
        memory,
        f"""
import contextlib, socket, threading
client = Client(url, API_KEY)
files = KeyturnFileSystem(gateway=url, api_key=API_KEY)
def size():
    return client.stat("acme", "k").size_bytes + files.size("acme/k")
def connections():
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
            if copy.family == socket.AF_INET:
                yield copy
assert size() == 16
assert list(connections())
busy = threading.Thread(target=lambda: [size() for _ in range(50)])
busy.start()
for _ in range(3):
    if (pid := os.fork()) == 0:
        assert not list(connections())  # so none outlives the parent's, either
        assert size() == 16
        assert files.cat("acme/k") == b"the body"
        del client, files
        gc.collect()
        {ends}
    assert os.waitpid(pid, 0)[1] == 0
    assert size() == 16
busy.join()
print("done")
""",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.slow
def test_what_was_not_closed_is_closed_at_exit_without_a_word(memory: MemoryGateway) -> None:
    memory.objects["k"] = (b"the body", {})
    ended = _run(
        memory,
        """
client, dropped = Client(url, API_KEY), Client(url, API_KEY)
files = KeyturnFileSystem(gateway=url, api_key=API_KEY)
with client.open("acme", "k") as opened:
    assert opened.read() == files.cat("acme/k") == b"the body"
dropped.stat("acme", "k")
del dropped
gc.collect()
small, large = files.open("acme/written", "wb"), files.open("acme/written", "wb")
small.write(b"never closed")
large.write(bytes(10_000_000))
""",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "written" not in memory.objects


def test_a_dropped_client_closes_its_connections(memory: MemoryGateway) -> None:
    client = Client(memory.url, API_KEY)
    gc.collect()
    before = len(event_loop().sessions)
    del client
    gc.collect()
    assert len(event_loop().sessions) == before - 1
