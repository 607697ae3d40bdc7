"""compose.yaml as it is, scaled to several workers, two of them killed: `make compose-test`.

Nothing is made before: as docs/howto/deploy.md says, the first run makes the settings. What sends
and reads runs on the host, through the published ports, with the settings of a publisher.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from dotenv import dotenv_values

from keyturn.crypto import new_api_key
from keyturn.errors import UnauthorizedError
from keyturn.gateway import Client
from keyturn.messages import ProjectEnrolled, RotationAccepted, RotationCompleted
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings, S3Settings
from tools.containers.container import (
    PROJECT,
    CheckFailedError,
    Container,
    Report,
    burst,
    read_back,
    require,
    send,
)
from tools.containers.engine import CannotRunError
from tools.containers.images import IMAGE
from tools.harness.console import Account
from tools.harness.console_client import console_client

if TYPE_CHECKING:
    from pathlib import Path

    from tools.containers.container import TestObject
    from tools.containers.engine import Engine

SCALE: Final = {"upload": 4, "sweep": 2}
PORTS: Final = {"broker": 5672, "storage": 8000, "gateway": 8080, "console": 8090}
_UP_TIMEOUT_S: Final = 180
_DOWN_TIMEOUT_S: Final = 180.0
_ROTATION_TIMEOUT_S: Final = 120.0
_HEALTHY_AGAIN_S: Final = 60.0
_FIRST: Final = 1000
_SECOND: Final = 300
_OPERATOR: Final = Account("kim", "operate")
_LINK: Final = re.compile(r"http://127\.0\.0\.1:8090(/sign-in/link\?token=\S+)")
_SETTINGS: Final = ("workers", "gateway", "console", "publisher", "storage", "broker")
# A rotation takes seconds: its proof begins two leases after it.
_OVERRIDES: Final = "services:\n" + "".join(
    f"  {name}: {{environment: {{KEYTURN_LEASE_S: '5'}}}}\n"
    for name in ("upload", "control", "sweep", "ingest")
)
_COUNTERS: Final = {
    "upload": 'keyturn_requests_served_total{type="upload.stored"}',
    "sweep": "keyturn_sweep_objects_total",
}
_METRICS_PROGRAM: Final = (
    "import urllib.request as r; "
    'print(r.urlopen("http://127.0.0.1:9000/metrics", timeout=5).read().decode())'
)


def counted(metrics: str, name: str) -> int:
    """The sum of a counter's series whose names begin like this, in Prometheus' text format."""
    lines = [line for line in metrics.splitlines() if line.startswith(name)]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


def taken_ports() -> list[int]:
    """Which of compose.yaml's published ports are in use here."""
    taken = []
    for port in PORTS.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(port)
    return taken


class ComposeTest:
    """One run, as a project of its own.

    Args:
        engine: Where it runs.
        project: The copy of the sources; the settings are written beside compose.yaml.
        report: Where its checks are printed.
    """

    def __init__(self, engine: Engine, project: Path, report: Report) -> None:
        self._engine = engine
        self._project = project
        self._report = report
        self._name = f"keyturn-test-{secrets.token_hex(4)}"
        self._keys = ("", "")
        self._sent: list[TestObject] = []

    def run(self) -> None:
        """Run all checks.

        Raises:
            CannotRunError: there is no `docker compose`, or a port is in use.
            CheckFailedError: one failed.
            DockerError: a command failed.
        """
        if not self._engine.has_compose():
            raise CannotRunError("there is no `docker compose`")
        if taken := taken_ports():
            raise CannotRunError(f"in use on 127.0.0.1: {', '.join(map(str, taken))}")
        (self._project / "short-leases.yaml").write_text(_OVERRIDES)
        try:
            self._up()
            asyncio.run(self._use())
            self._operate()
            self._up_again()
            asyncio.run(self._read(*self._keys, self._sent))
            asyncio.run(self._sign_in())
            self._down()
        finally:
            self._compose_attempt("down", "--volumes", "--timeout", "1")

    def _up(self) -> None:
        with self._report.check("`docker compose up` in a clone: all is healthy") as seen:
            self._start()
            rows = [row for row in self._rows() if row["Service"] != "first-run"]
            healthy = [row for row in rows if row["Health"] == "healthy"]
            services = sorted({row["Service"] for row in rows})
            expected = len(services) + sum(SCALE.values()) - len(SCALE)
            require(len(healthy) == len(rows) == expected, f"{len(healthy)} of {expected}: {rows}")
            for name, count in SCALE.items():
                require(len(self._containers(name)) == count, f"{name}: not {count} replicas")
            seen.append(f"{len(healthy)} containers of {len(services)} services")
        with self._report.check("each of ours has its limits") as seen:
            roles = ("upload", "control", "sweep", "ingest", "gateway", "console")
            ours = [one for name in roles for one in self._containers(name)]
            for container in ours:
                container.check_limits()
            seen.append(f"{len(ours)} containers")

    def _start(self) -> None:
        scale = [part for name, count in SCALE.items() for part in ("--scale", f"{name}={count}")]
        # Without --wait, which fails once a service has ended, as the first run does.
        self._compose("up", "--detach", "--no-build", *scale, timeout_s=_UP_TIMEOUT_S)
        for row in self._rows():
            if row["Service"] != "first-run":
                Container(self._engine, row["Name"]).wait_healthy()

    def _up_again(self) -> None:
        with self._report.check("a second `docker compose up` changes nothing"):
            ids, settings = self._ids(), self._settings()
            self._start()
            require(self._ids() == ids, f"{ids} became {self._ids()}")
            require(self._settings() == settings, "the settings changed")
        with self._report.check("`down` and `up` keep keys, objects and broker users"):
            self._compose("down", timeout_s=_DOWN_TIMEOUT_S)
            self._start()
            require(self._settings() == settings, "the settings changed")

    def _ids(self) -> dict[str, str]:
        return {row["Name"]: row["ID"] for row in self._rows() if row["Service"] != "first-run"}

    def _settings(self) -> str:
        """The digests of all files that the first run made."""
        volumes = [f"--volume={self._name}_{name}:/settings/{name}:ro" for name in _SETTINGS]
        return self._engine.run(
            *("run", "--rm", "--user=0:0", *volumes, "--entrypoint=sh", IMAGE, "-c"),
            "find /settings -type f -exec sha256sum {} + | sort",
        )

    def _link(self) -> str:
        """The path and query of the newest link that the console printed."""
        links: list[str] = _LINK.findall(self._compose("logs", "--no-log-prefix", "console"))
        return links[-1]

    async def _sign_in(self) -> None:
        url = f"http://127.0.0.1:{PORTS['console']}"
        with self._report.check("the printed link signs in at the console, once"):
            link = self._link()
            async with console_client(url) as first, console_client(url) as second:
                page = await first.get(link)
                require((page.status, page.path) == (200, "/"), f"{page.status} {page.path}")
                projects = await first.get("/projects")
                require(PROJECT in projects.text, "the project is not shown")
                used = await second.get(link)
                require(used.status == 403, f"the link was used again: {used.status}")
        with self._report.check("`add-user` adds a person, and ends the link") as seen:
            adding = self._command("run", "--rm", "-T", "add-user", _OPERATOR.name)
            password = f"{_OPERATOR.password}\n"
            self._engine.run(*adding, "--role", _OPERATOR.role, stdin=password)
            self._compose("restart", "console", timeout_s=_UP_TIMEOUT_S)
            (container,) = self._containers("console")
            container.wait_healthy()
            require(self._link() == link, "a new link was printed")
            async with console_client(url, _OPERATOR) as person:
                page = await person.get("/projects")
                require(page.path == "/projects" and PROJECT in page.text, f"{page.path}")
            seen.append(_OPERATOR.role)

    async def _use(self) -> None:
        reading = ("run", "--rm", "-T", "--entrypoint=cat", "keyturn", "/keys/host.env")
        file = self._project / "publisher.env"
        file.write_text(self._compose(*reading))
        for name, value in dotenv_values(file).items():
            os.environ[name] = str(value)
        settings, s3 = PublisherSettings.read(), S3Settings.read()
        first, second = burst("first", _FIRST), burst("second", _SECOND)
        old, new = new_api_key(), new_api_key()
        async with Publisher.open(settings, s3=s3) as publisher:
            with self._report.check("a project is enrolled through the published ports"):
                enrolled = await publisher.wait(await publisher.enroll(PROJECT, api_key=old))
                require(isinstance(enrolled, ProjectEnrolled), str(enrolled))
            await self._burst(publisher, first)
            await self._rotate(publisher, new, second)
        self._keys, self._sent = (old, new), [*first, *second]
        await self._read(old, new, self._sent)

    async def _burst(self, publisher: Publisher, objects: list[TestObject]) -> None:
        with self._report.check(f"a burst of {len(objects)} uploads, over all workers") as seen:
            started = time.monotonic()
            await send(publisher, objects)
            seen.append(f"{len(objects) / (time.monotonic() - started):.0f} a second")
            counts = self._counts("upload")
            seen.append(" + ".join(map(str, counts)))
            require(min(counts) > 0, f"a worker had none: {counts}")
            require(sum(counts) >= len(objects), f"{counts} are less than {len(objects)}")

    async def _rotate(self, publisher: Publisher, new: str, more: list[TestObject]) -> None:
        with self._report.check(
            f"a rotation and {len(more)} uploads, with an upload and a sweep worker killed"
        ) as seen:
            workers = [self._containers(service)[0] for service in SCALE]
            pids = [int(worker.state()["Pid"]) for worker in workers]
            stored = asyncio.Semaphore(0)
            sending = asyncio.create_task(send(publisher, more, stored=stored))
            rotation = await publisher.rotate(PROJECT, api_key=new)
            accepted = await publisher.wait(rotation)
            require(isinstance(accepted, RotationAccepted), str(accepted))
            for _ in range(len(more) // 4):
                await stored.acquire()
            for pid in pids:  # as a crash would, so that the engine restarts them
                os.kill(pid, signal.SIGKILL)
            require(not sending.done(), "all uploads were stored before a worker was killed")
            ended = await publisher.wait_completed(rotation, timeout_s=_ROTATION_TIMEOUT_S)
            if not isinstance(ended, RotationCompleted) or not ended.clean:
                raise CheckFailedError(str(ended))
            await sending
            seen.append(f"{ended.objects} objects are under the new key")
            for worker in workers:
                restarts = self._wait_restarted(worker)
                seen.append(f"{worker.name.removeprefix(self._name + '-')} {restarts}")

    def _wait_restarted(self, container: Container) -> str:
        deadline = time.monotonic() + _HEALTHY_AGAIN_S
        while not (count := container.inspect()["RestartCount"]):
            require(time.monotonic() < deadline, f"{container.name} was not restarted")
            time.sleep(0.2)
        container.wait_healthy(timeout_s=_HEALTHY_AGAIN_S)
        require(count == 1, f"{container.name} was restarted {count} times")
        return "restarted and healthy again"

    async def _read(self, old: str, new: str, objects: list[TestObject]) -> None:
        with self._report.check("every object is read through the gateway as it was sent") as seen:
            url = f"http://127.0.0.1:{PORTS['gateway']}"
            async with Client.connect(url, new) as client:
                count = await read_back(client, objects)
                seen.append(f"{count} of {len(objects)}")
                try:
                    await client.with_api_key(old).stat(PROJECT, objects[0].key)
                except UnauthorizedError:
                    return
            raise AssertionError("the old API key still opens an object")

    def _operate(self) -> None:
        with self._report.check("commands run by `docker compose run`, of operator and publisher"):
            output = self._compose("run", "--rm", "--no-deps", "-T", "control", "status")
            require(PROJECT in output, output)
            publisher = ("run", "--rm", "-T", "keyturn")
            save = ("--generate", "--save-to", "/keys/globex.key")
            self._compose(*publisher, "enroll", "globex", *save)
            self._compose(*publisher, "upload", "globex", "Dockerfile")
            api_key = ("--api-key-file", "/keys/globex.key")
            output = self._compose(*publisher, "ls", "globex", *api_key)
            require("Dockerfile" in output, output)

    def _down(self) -> None:
        ours = [row["Name"] for row in self._rows()]
        with self._report.check("`docker compose stop` ends every process with status 0") as seen:
            started = time.monotonic()
            self._compose("stop", timeout_s=_DOWN_TIMEOUT_S)
            seen.append(f"{time.monotonic() - started:.1f} s")
            codes = {name: Container(self._engine, name).state()["ExitCode"] for name in ours}
            require(not any(codes.values()), f"exit codes: {codes}")
        with self._report.check("`docker compose down --volumes` leaves nothing"):
            self._compose("down", "--volumes", timeout_s=_DOWN_TIMEOUT_S)
            label = f"label=com.docker.compose.project={self._name}"
            for kind in ("container", "network", "volume"):
                every = ("--all",) if kind == "container" else ()
                left = self._engine.run(kind, "ls", "--quiet", *every, "--filter", label)
                require(not left.strip(), f"{kind}s are left: {left}")

    def _counts(self, service: str) -> list[int]:
        return [
            counted(container.python(_METRICS_PROGRAM), _COUNTERS[service])
            for container in self._containers(service)
        ]

    def _rows(self) -> list[dict[str, Any]]:
        output = self._compose("ps", "--all", "--format", "json")
        return [json.loads(line) for line in output.splitlines() if line.strip()]

    def _containers(self, service: str) -> list[Container]:
        names = sorted(row["Name"] for row in self._rows() if row["Service"] == service)
        return [Container(self._engine, name) for name in names]

    def _compose(self, *arguments: str, timeout_s: float = 60.0) -> str:
        return self._engine.run(*self._command(*arguments), timeout_s=timeout_s)

    def _compose_attempt(self, *arguments: str) -> None:
        self._engine.attempt(*self._command(*arguments))

    def _command(self, *arguments: str) -> tuple[str, ...]:
        folder, file = str(self._project), str(self._project / "compose.yaml")
        more = str(self._project / "short-leases.yaml")
        given = ("--project-directory", folder, "-f", file, "-f", more)
        return ("compose", "-p", self._name, *given, *arguments)
