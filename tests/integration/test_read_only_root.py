"""The image's content as it runs in a container: as `nobody`, on a read-only root.

The wheel and its locked dependencies are installed as the Dockerfile does, into an environment
of their own and not editable. Every process then runs as user 10001, without any capability, in
a mount namespace in which every mount is read-only (`tests/support/read_only.sh`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import new_api_key
from keyturn.errors import UnauthorizedError
from keyturn.gateway import Client
from keyturn.messages import ProjectEnrolled, RotationAccepted, RotationCompleted, UploadStored
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings, S3Settings
from tools.harness.console import Account, ConsoleDeployment, write_passwords
from tools.harness.console_client import console_client
from tools.harness.process import console, gateway, worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_ROOT = Path(__file__).parents[2]
_SCRIPT = _ROOT / "tests" / "support" / "read_only.sh"
_UID = "10001"
_INTERPRETER = Path("/usr/bin/python3")
_PROJECT = "acme"
_PERSON = Account("kim", "view")
# Above the inline limit, and more than one part.
_LARGE = os.urandom(2**20) * 9
_SMALL = b"a small body"
_QUICK = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5"}


def _namespaced(*command: str) -> tuple[str, ...]:
    unshare = ("unshare", "--mount", "--propagation", "private")
    return (*unshare, "sh", str(_SCRIPT), _UID, *command)


def _why_not() -> str | None:
    """Why this machine cannot run it, where it cannot."""
    if os.geteuid() != 0:
        return "mount namespaces need root here"
    if missing := [name for name in ("unshare", "setpriv", "mount") if shutil.which(name) is None]:
        return f"missing: {', '.join(missing)}"
    if not _INTERPRETER.exists():
        return "no Python outside of root's home"
    tried = subprocess.run(_namespaced("/bin/true"), capture_output=True, text=True, check=False)
    return f"no read-only root here: {tried.stderr.strip()}" if tried.returncode else None


@pytest.fixture(scope="module")
def keyturn() -> Iterator[tuple[str, ...]]:
    """The command that runs the installed `keyturn` under a container's limits."""
    if (reason := _why_not()) is not None:
        pytest.skip(reason)
    own = _ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.is_file() else None)
    if uv is None:
        pytest.skip("no uv here: `make setup` brings one")
    # Not below pytest's own folder, which is closed to other users.
    folder = Path("/var/tmp") / f"keyturn-image-{os.getpid()}"  # noqa: S108  # created here, by root
    folder.mkdir(mode=0o755)
    try:
        # Built again: uv would take a wheel that it made of an earlier state of these files.
        subprocess.run(
            [
                *(uv, "sync", "--locked", "--package", "keyturn-workers", "--extra", "pkcs11"),
                *("--extra", "console", "--no-default-groups"),
                *("--reinstall-package", "keyturn", "--reinstall-package", "keyturn-workers"),
                *("--no-editable", "--quiet", "--python", str(_INTERPRETER)),
            ],
            cwd=_ROOT,
            env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder / "venv")},
            check=True,
        )
        yield _namespaced(str(folder / "venv" / "bin" / "keyturn"))
    finally:
        shutil.rmtree(folder)


def test_the_limits_hold(keyturn: tuple[str, ...]) -> None:
    """As that user nothing can be written or gained, and the code is the installed one."""
    python = str(Path(keyturn[-1]).parent / "python")
    program = """
import os, sys, keyturn, keyturn_workers
print(os.getuid(), os.getgid(), os.getgroups())
status = open("/proc/self/status").read().split()
print([status[status.index(x) + 1].strip("0") for x in ("CapEff:", "CapBnd:", "NoNewPrivs:")])
print({os.path.dirname(os.path.dirname(m.__file__)) for m in (keyturn, keyturn_workers)})
for folder in ("/", "/tmp", "/var/tmp", "/dev/shm", os.path.dirname(keyturn_workers.__file__)):
    try:
        open(folder + "/x", "w")
    except OSError as exc:
        print(exc.errno)
"""
    done = subprocess.run(
        [*keyturn[:-1], python, "-c", program],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    who, gained, where, *refused = done.stdout.splitlines()
    assert who == f"{_UID} {_UID} []"
    assert gained == "['', '', '1']"
    assert "site-packages" in where
    assert str(_ROOT) not in where
    assert len(refused) == 5


async def test_everything_works_on_a_read_only_root(
    keyturn: tuple[str, ...],
    vhost_url: str,
    ceph: S3Server,
    ceph_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each role in a separate process: enroll, store, rotate, read, look; and all end well."""
    deployment = ConsoleDeployment(vhost_url, ceph, ceph_bucket)
    # Beside the installed environment, where that user may read.
    passwords = Path(keyturn[-1]).parents[2] / "passwords"
    write_passwords(passwords, [_PERSON])
    new_key = new_api_key()
    for name, value in deployment.publisher_env().items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:
        env = deployment.worker_env(HEALTH_PORT="0", **_QUICK)
        processes = [
            await stack.enter_async_context(worker(env, role, program=keyturn))
            for role in ("upload", "control", "sweep")
        ]
        serving = await stack.enter_async_context(
            gateway(deployment.gateway_env(KEYRING_CACHE_S="0.5"), program=keyturn)
        )
        looking = await stack.enter_async_context(
            console(deployment.console_env(passwords), program=keyturn)
        )
        publisher = await stack.enter_async_context(
            Publisher.open(PublisherSettings.read(), s3=S3Settings.read())
        )
        enrolled = await publisher.enroll(_PROJECT, api_key=deployment.api_key)
        assert isinstance(await publisher.wait(enrolled), ProjectEnrolled)
        for key, body in (("small", _SMALL), ("large", _LARGE)):
            stored = await publisher.wait(await publisher.upload(_PROJECT, key, body))
            assert isinstance(stored, UploadStored)
        rotation = await publisher.rotate(_PROJECT, api_key=new_key)
        assert isinstance(await publisher.wait(rotation), RotationAccepted)
        completed = await publisher.wait_completed(rotation, timeout_s=120)
        assert isinstance(completed, RotationCompleted)
        assert (completed.clean, completed.objects) == (True, 2)
        async with Client.connect(serving.url, new_key) as client:
            await client.upload(_PROJECT, "sent", _LARGE, wait_s=60)
            for key, body in (("small", _SMALL), ("large", _LARGE), ("sent", _LARGE)):
                async with client.open(_PROJECT, key) as stream:
                    assert b"".join([chunk async for chunk in stream.chunks()]) == body
            with pytest.raises(UnauthorizedError):
                await client.with_api_key(deployment.api_key).stat(_PROJECT, "small")
        async with console_client(looking.url, _PERSON) as people:
            assert (await people.get("/projects")).path == "/projects"
        for process in (looking, serving, *processes):
            assert _uids(process.process.pid) == {_UID}
            assert await process.terminate() == 0


def _uids(pid: int) -> set[str]:
    (line,) = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("Uid:")
    ]
    return set(line.split()[1:])
