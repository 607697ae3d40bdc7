"""Every role from the image, under the limits of compose.yaml: `make image-test`.

Nothing of this checkout runs in it but the client that reads objects back.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from typing import TYPE_CHECKING, Any, Final

import yaml

from keyturn.errors import UnauthorizedError
from keyturn.gateway import Client
from tools.containers.container import (
    LARGE_BYTES,
    PROJECT,
    STAGED_BYTES,
    UID,
    Container,
    Report,
    TestObject,
    read_back,
    require,
    service_flags,
    service_limits,
    shorten_leases,
)
from tools.containers.images import IMAGE, STORAGE, broker_reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tools.containers.engine import Engine

_ROLES: Final = ("upload", "control", "sweep", "gateway", "console")
_BY_GATEWAY: Final = ("--gateway", "http://gateway:8080", "--api-key-file")
_GRACE_S: Final = 90
_SENT: Final = [
    TestObject("small", 1000),
    TestObject("empty", 0),
    TestObject("staged", STAGED_BYTES),
    TestObject("large", LARGE_BYTES),
]
_LAST: Final = TestObject("last", STAGED_BYTES)
# What must be refused with one line, and how it ends.
_SETTING: Final = "KEYTURN_AMQP_URL"


class ImageTest:
    """One run of the test, with a network and containers of its own.

    Args:
        engine: Where it runs.
        project: The copy of the sources, for compose.yaml.
        folder: An empty folder for settings and files.
        report: Where its checks are printed.
    """

    def __init__(self, engine: Engine, project: Path, folder: Path, report: Report) -> None:
        self._engine = engine
        self._report = report
        self._project = project
        self._services: dict[str, dict[str, Any]] = yaml.safe_load(
            (project / "compose.yaml").read_text()
        )["services"]
        self._broker_image = broker_reference((project / "compose.yaml").read_text())
        self._id = f"keyturn-test-{secrets.token_hex(4)}"
        self._settings, self._data, self._out = (
            folder / name for name in ("settings", "data", "out")
        )
        self._running: dict[str, Container] = {}

    def run(self) -> None:
        """Run all checks.

        Raises:
            CheckFailedError: one failed.
            DockerError: a command failed.
        """
        try:
            self._prepare()
            self._start_servers()
            self._start_roles()
            self._use()
            self._stop_roles()
            self._worker_all()
            self._bad_input()
        finally:
            self._remove()

    def _prepare(self) -> None:
        with self._report.check("the image: its user by number, and no secret") as seen:
            config = json.loads(self._engine.run("image", "inspect", IMAGE))[0]
            user = config["Config"]["User"]
            require(user == f"{UID}:{UID}", f"its user is {user}")
            names = [one.partition("=")[0] for one in config["Config"]["Env"]]
            require(not [name for name in names if "KEY_" in name or "SECRET" in name], str(names))
            seen += [f"{IMAGE} {_mb(self._engine, IMAGE)} MB"]
            seen += [f"{STORAGE} {_mb(self._engine, STORAGE)} MB"]
        for folder in (self._settings, self._data, self._out):
            folder.mkdir()
        for folder in (self._data, self._out):
            os.chown(folder, UID, UID)
        for one in (*_SENT, _LAST):
            (self._data / one.key).write_bytes(one.body())
        self._engine.run("network", "create", self._id)
        with self._report.check("the first run writes the settings of each process") as seen:
            given = self._services["first-run"]
            program, *arguments = given["entrypoint"]
            self._engine.run(
                *("run", "--rm", "--network", given["network_mode"]),
                *(*service_flags(given), *self._volumes("first-run")),
                *(f"--entrypoint={program}", IMAGE, *arguments),
            )
            shorten_leases(self._settings / "workers")
            seen.append(f"{len(list(self._settings.glob('*/*.env')))} files")

    def _start_servers(self) -> None:
        with self._report.check("broker and storage are healthy"):
            self._start("broker", self._broker_image)
            self._start("storage", STORAGE)
            for name in ("broker", "storage"):
                self._running[name].wait_healthy()

    def _start_roles(self) -> None:
        with self._report.check(f"{', '.join(_ROLES)} are healthy"):
            for role in _ROLES:
                published = ("--publish=127.0.0.1::8080",) if role == "gateway" else ()
                self._start(role, IMAGE, *published)
            for role in _ROLES:
                self._running[role].wait_healthy()
        with self._report.check(
            f"each runs as {UID}:{UID}, without capabilities, on a read-only root"
        ):
            for role in _ROLES:
                self._running[role].check_limits()

    def _use(self) -> None:
        with self._report.check("enroll, upload, ls and status from the image") as seen:
            self._cli("enroll", PROJECT, "--generate", "--save-to", "/out/key")
            paths = [f"/data/{one.key}" for one in _SENT]
            self._cli("upload", PROJECT, *paths)
            listed = json.loads(self._cli("ls", PROJECT, "--json", *_BY_GATEWAY, "/out/key"))
            require(len(listed) == len(_SENT), f"{len(listed)} objects are listed")
            self._cli("status", service="control")
            seen.append(f"{len(_SENT)} objects")
        with self._report.check("rotate to a new API key, until every object is under it"):
            self._cli("rotate", PROJECT, "--generate", "--save-to", "/out/new", "--watch")
        with self._report.check("downloads equal what was sent: by `keyturn download`") as seen:
            seen.append(self._downloads())
        with self._report.check("and by the Python client; the old API key is refused") as seen:
            seen.append(f"{asyncio.run(self._read_back(_SENT))} of {len(_SENT)}")
        with self._report.check("the console shows its sign-in page"):
            page = self._running["console"].python(
                "import urllib.request as r; "
                'print(r.urlopen("http://127.0.0.1:8090/sign-in", timeout=5).read().decode())'
            )
            require("Open the link" in page, "it does not name the link")

    def _downloads(self) -> str:
        for one in _SENT:
            file = self._out / f"copy-of-{one.key}"
            arguments = (*_BY_GATEWAY, "/out/new", "-o", f"/out/{file.name}")
            self._cli("download", PROJECT, one.key, *arguments)
            require(file.read_bytes() == one.body(), f"{one.key} differs")
        return f"{len(_SENT)} of {len(_SENT)}"

    async def _read_back(self, objects: Sequence[TestObject]) -> int:
        url = f"http://{self._running['gateway'].address(8080)}"
        old, new = ((self._out / name).read_text().strip() for name in ("key", "new"))
        async with Client.connect(url, new) as client:
            count = await read_back(client, objects)
            try:
                await client.with_api_key(old).stat(PROJECT, objects[0].key)
            except UnauthorizedError:
                return count
        raise AssertionError("the old API key still opens an object")

    def _stop_roles(self) -> None:
        with self._report.check("SIGTERM ends each within its grace, with status 0") as seen:
            for role in _ROLES:
                seconds = self._running.pop(role).stop(grace_s=_GRACE_S)
                seen.append(f"{role} {seconds:.1f} s")

    def _worker_all(self) -> None:
        with self._report.check("`worker all`, the image's default command") as seen:
            container = self._start("upload", IMAGE, command=())
            container.wait_healthy()
            container.check_limits()
            self._cli("upload", PROJECT, f"/data/{_LAST.key}")
            arguments = ("--as-operator", "--reason", "a test", "-o", "/out/last")
            self._cli("download", PROJECT, _LAST.key, *arguments, service="control")
            require((self._out / "last").read_bytes() == _LAST.body(), "it differs")
            seconds = self._running.pop("upload").stop(grace_s=_GRACE_S)
            seen.append(f"stopped in {seconds:.1f} s")

    def _bad_input(self) -> None:
        with self._report.check("bad input is refused with one line") as seen:
            for arguments, expected in self._refused():
                done = self._engine.attempt("run", "--rm", *arguments)
                lines = (done.stdout + done.stderr).strip().splitlines()
                require(done.returncode in (1, 2), f"{arguments}: status {done.returncode}")
                require(len(lines) == 1 and expected in lines[0], f"{arguments}: {lines}")
                seen.append(expected)

    def _refused(self) -> Iterator[tuple[list[str], str]]:
        flags = service_limits(self._services["upload"])
        yield [*flags, IMAGE], f"{_SETTING} is missing"
        quoted = self._settings / "quoted.env"
        lines = (self._settings / "workers" / "keyturn.env").read_text().splitlines()
        quoted.write_text(
            "\n".join(
                f"{_SETTING}='{line.partition('=')[2]}'" if line.startswith(_SETTING) else line
                for line in lines
            )
        )
        yield [*flags, f"--env-file={quoted}", IMAGE], f"{_SETTING} is in quotes"
        yield [*flags, IMAGE, "init", "--dir", "/etc"], "Read-only file system"

    def _start(
        self,
        service: str,
        image: str,
        *options: str,
        command: tuple[str, ...] | None = None,
    ) -> Container:
        """Start a service of compose.yaml by `docker run`, under its limits."""
        given = self._services[service]
        name = f"{self._id}-{service}"
        words = tuple(given.get("command", ())) if command is None else command
        self._engine.attempt("rm", "--force", name)
        self._engine.run(
            *("run", "--detach", "--name", name, "--network", self._id),
            *("--network-alias", service, *service_flags(given), *self._volumes(service)),
            *(*options, image, *words),
        )
        self._running[service] = Container(self._engine, name)
        return self._running[service]

    def _volumes(self, service: str) -> list[str]:
        """The volumes of a service: a folder for each with settings; others are the engine's."""
        found = []
        for volume in self._services[service].get("volumes", ()):
            source, _, target = volume.partition(":")
            if source.startswith("."):
                found.append(f"--volume={self._project / source}:{target}")
            elif source in ("objects", "queues"):
                found.append(f"--volume={target}")  # one without a name, removed with its container
            else:
                (self._settings / source).mkdir(exist_ok=True)
                found.append(f"--volume={self._settings / source}:{target}")
        return found

    def _cli(self, *arguments: str, service: str = "keyturn") -> str:
        """One command of `keyturn` in a container of its own, with a service's settings."""
        given = self._services[service]
        flags = [f"--env={name}={value}" for name, value in given["environment"].items()]
        return self._engine.run(
            *("run", "--rm", "--network", self._id, *service_limits(given), *flags),
            *self._volumes(service),
            f"--volume={self._data}:/data:ro",
            f"--volume={self._out}:/out",
            *(IMAGE, *arguments),
        )

    def _remove(self) -> None:
        for container in self._running.values():
            self._engine.attempt("rm", "--force", "--volumes", container.name)
        for service in self._services:
            self._engine.attempt("rm", "--force", "--volumes", f"{self._id}-{service}")
        self._engine.attempt("network", "rm", self._id)


def _mb(engine: Engine, image: str) -> int:
    return int(engine.run("image", "inspect", "--format", "{{.Size}}", image)) // 10**6
