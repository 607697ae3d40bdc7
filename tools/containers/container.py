"""One container: how compose.yaml limits it, its health, and how it ends."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools.containers.report import CheckFailedError, require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tools.containers.engine import Engine

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


def service_flags(service: Mapping[str, Any]) -> list[str]:
    """A service's limits and health check in compose.yaml, as options of `docker run`."""
    flags = ["--read-only"] if service.get("read_only") else []
    flags += [f"--cap-drop={name}" for name in service.get("cap_drop", ())]
    flags += [f"--security-opt={option}" for option in service.get("security_opt", ())]
    if "hostname" in service:
        flags.append(f"--hostname={service['hostname']}")
    for name, value in service.get("environment", {}).items():
        flags += ["--env", f"{name}={value}"]
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
