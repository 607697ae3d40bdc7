"""One container, the objects that pass through it, and the report of the checks."""

from __future__ import annotations

import asyncio
import json
import random
import shlex
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keyturn.messages import UploadStored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keyturn.gateway import Client
    from keyturn.publisher import Publisher
    from tools.containers.engine import Engine

PROJECT: Final = "acme"
_AT_ONCE: Final = 64
_WAIT_S: Final = 120.0
_KIB: Final = 1024
# Above the inline limit of 256 KiB, and above one part of an upload in parts.
STAGED_BYTES: Final = 300 * _KIB
LARGE_BYTES: Final = 9 * _KIB * _KIB

_POLL_S: Final = 0.3
_HEALTHY_TIMEOUT_S: Final = 120.0
UID: Final = 10001
_LOG_LINES: Final = "40"

# Runs inside: who the process is, what it may do, and where it can write.
_LIMITS_PROGRAM: Final = """
import json, os
lines = (line.split(":", 1) for line in open("/proc/1/status"))
status = {name: value.split() for name, value in lines}
mounts = [line.split() for line in open("/proc/1/mounts")]
root = [fields[3].split(",") for fields in mounts if fields[1] == "/"][-1]
writable = []
for folder in ("/", "/app", "/etc", "/home", "/opt", "/root", "/run", "/tmp", "/usr", "/var/tmp"):
    try:
        open(os.path.join(folder, "keyturn-test"), "w")
    except OSError:
        continue
    writable.append(folder)
print(json.dumps({"status": status, "root": root, "writable": writable}))
"""


def service_limits(service: Mapping[str, Any]) -> list[str]:
    """What a service may do in its container, as options of `docker run`."""
    flags = ["--read-only"] if service.get("read_only") else []
    flags += [f"--user={service['user']}"] if "user" in service else []
    for option in ("cap_drop", "cap_add", "security_opt", "tmpfs"):
        flags += [f"--{option.replace('_', '-')}={value}" for value in service.get(option, ())]
    return flags


def service_flags(service: Mapping[str, Any]) -> list[str]:
    """A service's limits and health check in compose.yaml, as options of `docker run`."""
    flags = service_limits(service)
    if "hostname" in service:
        flags.append(f"--hostname={service['hostname']}")
    for name, value in service.get("environment", {}).items():
        flags += ["--env", f"{name}={value}"]
    if "healthcheck" not in service:
        return flags
    kind, *test = service["healthcheck"]["test"]
    if kind != "CMD":
        raise ValueError("only health checks of the form CMD are known")
    # Asked more often than in a deployment while it starts, so that the test does not wait.
    flags += ["--health-cmd", shlex.join(test), "--health-start-interval=1s"]
    flags += ["--health-interval=10s", "--health-start-period=120s"]
    return [*flags, f"--health-timeout={service['healthcheck']['timeout']}"]


@dataclass(frozen=True)
class Container:
    """A container of this run, by its name or id."""

    engine: Engine
    name: str

    def inspect(self) -> dict[str, Any]:
        """All that the engine knows of it."""
        (found,) = json.loads(self.engine.run("container", "inspect", self.name))
        return dict(found)

    def state(self) -> dict[str, Any]:
        """Whether it runs, its health, its exit code."""
        return dict(self.inspect()["State"])

    def logs(self) -> str:
        """The end of its log."""
        done = self.engine.attempt("logs", "--tail", _LOG_LINES, self.name)
        return done.stdout + done.stderr

    def wait_healthy(self, *, timeout_s: float = _HEALTHY_TIMEOUT_S) -> None:
        """Wait until its health check passes.

        Raises:
            CheckFailedError: it ended, or was not healthy in time.
        """
        deadline = time.monotonic() + timeout_s
        while (state := self.state())["Health"]["Status"] != "healthy":
            if state["Status"] == "exited":
                raise CheckFailedError(
                    f"{self.name} ended with {state['ExitCode']}:\n{self.logs()}"
                )
            if time.monotonic() > deadline:
                raise CheckFailedError(f"{self.name} is not healthy:\n{self.logs()}")
            time.sleep(_POLL_S)

    def python(self, program: str) -> str:
        """Run a Python program in it, and return its output."""
        return self.engine.run("exec", self.name, "python3", "-c", program)

    def address(self, port: int) -> str:
        """Where a port of it is published, as `host:port`."""
        return self.engine.run("port", self.name, f"{port}/tcp").splitlines()[0].strip()

    def check_limits(self) -> None:
        """Check its user, its capabilities and its root, as its own process sees them.

        Raises:
            CheckFailedError: one of them is wider.
        """
        problems = wider_limits(json.loads(self.python(_LIMITS_PROGRAM)))
        require(not problems, f"{self.name}: {'; '.join(problems)}")
        mounts = [mount["Destination"] for mount in self.inspect()["Mounts"]]
        changed = changed_files(self.engine.run("container", "diff", self.name), mounts)
        require(not changed, f"{self.name} changed {', '.join(changed)}")

    def stop(self, *, grace_s: int) -> float:
        """Send SIGTERM; returns the seconds until it ended.

        Raises:
            CheckFailedError: it had to be killed, or its exit status is not 0.
        """
        started = time.monotonic()
        self.engine.run("stop", "--time", str(grace_s), self.name, timeout_s=grace_s + 30)
        seconds = time.monotonic() - started
        code = self.state()["ExitCode"]
        require(code == 0, f"{self.name} ended with {code} after SIGTERM:\n{self.logs()}")
        return seconds


def changed_files(diff: str, mounts: Sequence[str]) -> list[str]:
    """What a container changed, of `docker container diff`; mount points were made for it."""
    made = {str(path) for mount in mounts for path in (Path(mount), *Path(mount).parents)}
    paths = [line.partition(" ")[2] for line in diff.splitlines()]
    return [path for path in paths if path not in made]


def wider_limits(seen: Mapping[str, Any]) -> list[str]:
    """What is wider than compose.yaml promises, of what `_LIMITS_PROGRAM` printed."""
    status = seen["status"]
    problems = [
        f"{name} is {' '.join(status[name])}"
        for name in ("Uid", "Gid")
        if status[name] != [str(UID)] * 4
    ]
    if set(status["Groups"]) - {str(UID)}:
        problems.append(f"further groups {' '.join(status['Groups'])}")
    problems += [
        f"{name} is {status[name][0]}"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        if int(status[name][0], 16) != 0
    ]
    if status["NoNewPrivs"] != ["1"]:
        problems.append("new privileges can be gained")
    if "ro" not in seen["root"]:
        problems.append("the root is writable")
    return problems + [f"{folder} is writable" for folder in seen["writable"]]


@dataclass(frozen=True)
class TestObject:
    """A key, and a body that follows from it."""

    key: str
    size_bytes: int

    def body(self) -> bytes:
        """The same bytes at each call."""
        return random.Random(self.key).randbytes(self.size_bytes)  # noqa: S311  # no secret


def burst(name: str, count: int) -> list[TestObject]:
    """Many small objects, a few that are staged, one that is stored in parts, and an empty one."""
    sizes = [LARGE_BYTES, 0] + [STAGED_BYTES] * (count // 40)
    sizes += [_KIB + 37 * number % (8 * _KIB) for number in range(count - len(sizes))]
    return [TestObject(f"{name}/{number:04}", size) for number, size in enumerate(sizes)]


def shorten_leases(folder: Path) -> None:
    """Have a rotation take seconds: its proof begins two leases after it."""
    with (folder / "keyturn.env").open("a") as file:
        file.write("KEYTURN_LEASE_S=5\n")


async def send(
    publisher: Publisher,
    objects: Sequence[TestObject],
    *,
    stored: asyncio.Semaphore | None = None,
) -> None:
    """Upload all, many at once, and wait until each is stored; `stored` counts them.

    Raises:
        CheckFailedError: one was refused, or its event has another size.
    """
    slots = asyncio.Semaphore(_AT_ONCE)

    async def send_one(one: TestObject) -> None:
        async with slots:
            request = await publisher.upload(PROJECT, one.key, one.body())
        event = await publisher.wait(request, timeout_s=_WAIT_S)
        if not isinstance(event, UploadStored) or event.size != one.size_bytes:
            raise CheckFailedError(f"{one.key}: {event}")
        if stored is not None:
            stored.release()

    async with asyncio.TaskGroup() as group:
        for one in objects:
            group.create_task(send_one(one))


async def read_back(client: Client, objects: Sequence[TestObject]) -> int:
    """Download all, and return how many are what was sent: all of them.

    Raises:
        CheckFailedError: one differs.
    """
    slots = asyncio.Semaphore(_AT_ONCE // 4)

    async def read_one(one: TestObject) -> None:
        async with slots, client.open(PROJECT, one.key) as stream:
            body = b"".join([chunk async for chunk in stream.chunks()])
        if body != one.body():
            raise CheckFailedError(f"{one.key}: {len(body)} bytes that differ from those sent")

    async with asyncio.TaskGroup() as group:
        for one in objects:
            group.create_task(read_one(one))
    return len(objects)


class CheckFailedError(Exception):
    """What must hold does not; the text says what was seen."""


class Report:
    """Prints each check as it ends; `passed` and `failed` are their numbers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = time.monotonic()
        self.passed = 0
        self.failed = 0

    @contextmanager
    def check(self, what: str) -> Iterator[list[str]]:
        """Check something in a block; what the block appends is printed beside it."""
        started = time.monotonic()
        details: list[str] = []
        try:
            yield details
        except Exception:
            self.failed += 1
            print(f"FAILED  {what}", flush=True)
            raise
        self.passed += 1
        seconds = time.monotonic() - started
        more = f": {', '.join(details)}" if details else ""
        print(f"ok {seconds:5.1f} s  {what}{more}", flush=True)

    def close(self) -> None:
        """Print the totals."""
        seconds = time.monotonic() - self._started
        print(f"{self._name} took {seconds:.0f} s", flush=True)
        print(f"{self._name}: {self.passed} passed, {self.failed} failed", flush=True)


def require(condition: object, seen: str) -> None:
    """Fail the check with what was seen, unless the condition holds.

    Raises:
        CheckFailedError: it does not.
    """
    if not condition:
        raise CheckFailedError(seen)
