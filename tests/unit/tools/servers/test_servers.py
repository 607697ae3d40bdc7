"""The pure parts of the private servers, and the reaper that ends them; no server is started."""

from __future__ import annotations

import base64
import fcntl
import io
import os
import shutil
import struct
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tools.servers import OpenBao, S3Server, Servers, emulators, packages
from tools.servers.ceph import AES_128, AES_256, CephPrograms, KeyType, cephx_key, keyring_text
from tools.servers.emulators import (
    PROJECTS,
    Emulator,
    installed_version,
    localstack,
    locked_python,
    ministack,
)
from tools.servers.moto_server import read_body
from tools.servers.other_release import OtherRelease
from tools.servers.packages import MissingPackagesError, missing_packages, needed
from tools.servers.process import (
    ServerError,
    ServerProcess,
    free_port,
    memory_folder,
    remove_scratch,
    scratch_folder,
)
from tools.servers.rabbitmq import definitions

if TYPE_CHECKING:
    from collections.abc import Callable


# Detaches a grandchild as Erlang does with epmd, prints its id, and waits.
_DETACHING = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"],
                         start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(300)
"""


def _start(folder: Path, program: str) -> ServerProcess:
    return ServerProcess(
        [sys.executable, "-c", program],
        env=dict(os.environ),
        scratch=folder,
        log=folder / "log",
        grace_s=5,
    )


def _pids(folder: Path) -> list[int]:
    words = (folder / "log").read_text().split()
    return [int(word) for word in words] if len(words) == 2 else []


def test_ending_a_reaper_ends_what_its_server_detached(tmp_path: Path) -> None:
    process = _start(tmp_path, _DETACHING)
    process.wait_until(lambda: bool(_pids(tmp_path)), what="the program")
    pids = _pids(tmp_path)
    assert all(psutil.pid_exists(pid) for pid in pids)
    process.end()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert tmp_path.exists()


def test_a_server_that_exits_while_starting_is_reported_with_its_log(tmp_path: Path) -> None:
    process = _start(tmp_path, "print('no such disk'); raise SystemExit(3)")
    with pytest.raises(ServerError, match="no such disk"):
        process.wait_until(lambda: False, what="the program")
    process.end()


@pytest.mark.slow
def test_a_killed_owner_leaves_nothing(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    owner = psutil.Popen([sys.executable, "-c", _OWNER, str(scratch), _DETACHING])
    deadline = time.monotonic() + 20
    while not (scratch / "log").exists() or not _pids(scratch):
        assert time.monotonic() < deadline
        owner.poll()
    found = [psutil.Process(pid) for pid in _pids(scratch)]
    owner.kill()
    owner.wait()
    _, alive = psutil.wait_procs(found, timeout=20)
    assert not alive
    while scratch.exists():
        assert time.monotonic() < deadline


_OWNER = """
import os, pathlib, sys, time
from tools.servers.process import ServerProcess
folder = pathlib.Path(sys.argv[1])
process = ServerProcess([sys.executable, "-c", sys.argv[2]], env=dict(os.environ),
                         scratch=folder, log=folder / "log", grace_s=5)
time.sleep(300)
"""


def test_definitions_give_the_user_every_vhost() -> None:
    made = definitions("kim", ["a", "b"])
    assert made["vhosts"] == [{"name": "a"}, {"name": "b"}]
    assert made["permissions"] == [
        {"user": "kim", "vhost": name, "configure": ".*", "write": ".*", "read": ".*"}
        for name in ("a", "b")
    ]


@pytest.mark.parametrize(("key_type", "size_bytes"), [(AES_128, 16), (AES_256, 32)])
def test_cephx_key_has_cephs_layout(key_type: KeyType, size_bytes: int) -> None:
    raw = base64.b64decode(cephx_key(key_type))
    kind, _seconds, _nanoseconds, length = struct.unpack("<HIIH", raw[:12])
    assert (kind, length, len(raw)) == (key_type.number, size_bytes, 12 + size_bytes)


def test_ceph_of_another_release_runs_its_own_programs_and_plugins(tmp_path: Path) -> None:
    release = OtherRelease("forky", ("radosgw",), cache=tmp_path)
    programs = CephPrograms(AES_256, release)
    with pytest.raises(ServerError, match="rados-classes"):
        programs.rados_classes()
    classes = release.root / "usr/lib/x86_64-linux-gnu/rados-classes"
    classes.mkdir(parents=True)
    assert programs.rados_classes() == Path("/usr/lib/x86_64-linux-gnu/rados-classes")
    own = CephPrograms().command(tmp_path, "ceph-mon", "-f")
    assert own == ["ceph-mon", "-c", f"{tmp_path}/ceph.conf", "-f"]
    command = programs.command(tmp_path, "ceph-mon", "-f")
    assert command == release.command(tmp_path, *own)


def test_keyring_has_an_entry_and_a_key_of_its_own_for_each_daemon() -> None:
    lines = keyring_text(AES_128).splitlines()
    assert [line for line in lines if line.startswith("[")] == [
        "[mon.]",
        "[client.admin]",
        "[osd.0]",
    ]
    assert len({line for line in lines if line.startswith("key = ")}) == 3


def test_the_secret_key_does_not_show_in_a_repr() -> None:
    server = S3Server.private(1, "ceph")
    assert server.secret_access_key not in repr(server)


def test_a_given_server_is_read_from_the_environment() -> None:
    server = S3Server.private(9000, "given")
    assert S3Server.from_environment(server.environment("b")) == server
    assert S3Server.from_environment({"KEYTURN_S3_BUCKET": "b"}) is None


def test_nothing_is_started_where_all_addresses_are_given() -> None:
    given = {"KEYTURN_AMQP_URL": "amqp://broker/", "KEYTURN_S3_ENDPOINT_URL": "http://s3"}
    with Servers("ceph", environ=given) as servers:
        assert servers.amqp_url == "amqp://broker/"
        assert servers.s3.endpoint_url == "http://s3"
        assert servers.rabbitmq is None


def test_a_free_port_is_below_the_ephemeral_range() -> None:
    assert 20_000 <= free_port() <= 32_000


def test_packages_are_installed_by_one_process_at_a_time() -> None:
    """Three processes of a suite on a fresh machine: apt would refuse the second and the third."""
    file = Path(tempfile.gettempdir(), "keyturn-packages.lock")
    with packages._alone(), file.open("a") as second, pytest.raises(BlockingIOError):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_openbao_has_a_uri_for_each_version_of_a_key_and_hands_out_tokens_in_files() -> None:
    server = OpenBao()
    try:
        assert server.uri("m1", version=2) == f"vault:{server.url}/transit/m1?version=2"
        file = Path(server.environment("s.token")["KEYTURN_VAULT_TOKEN_FILE"])
        assert file.read_text() == "s.token"
        assert file.stat().st_mode & 0o077 == 0
    finally:
        server.close()
    assert not file.exists()


def test_missing_packages_are_named_once() -> None:
    assert missing_packages({"no-such-a": "p", "no-such-b": "p", "sh": "dash"}) == ["p"]
    assert needed("none", broker=False) == {}
    assert "radosgw" in needed("ceph", broker=True)


def test_an_installed_program_is_found_by_its_path() -> None:
    assert packages.path_of("sh", "dash").is_file()


@pytest.mark.parametrize("size_bytes", [0, 1, 2**20, 17 * 2**20])
def test_read_body_reads_only_the_announced_length(size_bytes: int) -> None:
    source = io.BytesIO(b"x" * size_bytes + b"next request")
    environ = {"wsgi.input": source, "CONTENT_LENGTH": str(size_bytes)}
    with read_body(environ) as body:
        assert body.read() == b"x" * size_bytes
    assert source.read() == b"next request"


def test_read_body_refuses_a_body_cut_short() -> None:
    with pytest.raises(ConnectionError):
        read_body({"wsgi.input": io.BytesIO(b"xx"), "CONTENT_LENGTH": "3"})


def test_scratch_folders_are_in_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYTURN_TEST_SCRATCH", str(tmp_path))
    assert scratch_folder("some").parent == tmp_path
    monkeypatch.setenv("KEYTURN_TEST_SCRATCH", "")
    folder = scratch_folder("some")
    assert folder.parent == Path(tempfile.gettempdir())
    remove_scratch(folder)


def test_memory_holds_scratch_folders_only_where_there_is_enough(tmp_path: Path) -> None:
    figures = tmp_path / "meminfo"
    figures.write_text("MemTotal: 9000000 kB\nMemAvailable: 1000000 kB\n")
    assert memory_folder(tmp_path, figures) is None
    assert memory_folder(tmp_path / "missing", figures) is None
    assert memory_folder(tmp_path, tmp_path / "missing") is None
    free = shutil.disk_usage(tmp_path).free
    figures.write_text("MemTotal: 99000000 kB\nMemAvailable: 90000000 kB\n")
    assert memory_folder(tmp_path, figures) == (tmp_path if free >= 8 * 2**30 else None)


# LocalStack and MiniStack: their settings, and their locked environments.


@pytest.mark.parametrize("make", [localstack, ministack])
def test_an_emulator_stays_on_loopback_and_in_its_folder(
    make: Callable[[], Emulator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYTURN_TEST_SCRATCH", str(tmp_path))
    emulator = make()
    (folder,) = tmp_path.iterdir()
    settings = emulator.environment
    paths = {value.removeprefix("unix://") for value in settings.values() if "/" in value}
    paths.remove(settings["PATH"])
    assert all(path == str(folder) or path.startswith(f"{folder}/") for path in paths)
    assert settings["DOCKER_HOST"].startswith("unix:///")
    port = emulator.server.endpoint_url.rpartition(":")[2]
    where = settings.get("GATEWAY_LISTEN") or f"{settings['BIND_HOST']}:{settings['GATEWAY_PORT']}"
    assert where == f"127.0.0.1:{port}"
    emulator.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "package"), [("localstack", "localstack-core"), ("ministack", "ministack")]
)
def test_each_environment_is_locked_at_the_version_that_it_names(name: str, package: str) -> None:
    project = tomllib.loads((PROJECTS / name / "pyproject.toml").read_text())["project"]
    lock = tomllib.loads((PROJECTS / name / "uv.lock").read_text())
    (version,) = [each["version"] for each in lock["package"] if each["name"] == package]
    named = {each.partition("[")[0].partition("==")[0]: each for each in project["dependencies"]}
    assert named[package].endswith(f"=={version}")


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for uv; environments are created below the folder."""
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(emulators, "CACHE", tmp_path / "cache")
    return program


def test_an_environment_is_made_as_its_lock_says(uv: Path, tmp_path: Path) -> None:
    uv.write_text('#!/bin/sh\nmkdir -p "$UV_PROJECT_ENVIRONMENT"; echo "$@" >"$0.call"\n')
    assert locked_python("some") == tmp_path / "cache" / "some" / "bin" / "python"
    assert (tmp_path / "cache" / "some").is_dir()
    called = uv.with_name("uv.call").read_text().split()
    assert called == ["sync", "--locked", "--quiet", "--project", str(PROJECTS / "some")]


def test_an_environment_that_cannot_be_made_is_reported(uv: Path) -> None:
    uv.write_text("#!/bin/sh\necho 'No interpreter found for Python 3.13' >&2; exit 2\n")
    with pytest.raises(MissingPackagesError, match=r"of some failed:\nNo interpreter found"):
        locked_python("some")


@pytest.mark.usefixtures("uv")
def test_the_version_is_that_of_the_environment(tmp_path: Path) -> None:
    python = tmp_path / "cache" / "some" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$3 7.5"\n')
    python.chmod(0o755)
    assert installed_version("some", "package") == "package 7.5"
    python.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ServerError, match="Python of some failed"):
        installed_version("some", "package")
