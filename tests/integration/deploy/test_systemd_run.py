"""docs/howto/systemd.md on a real systemd: its commands install, start, reload and stop the units.

systemd runs in namespaces of its own (`tests/support/booted_systemd.py`), so users, credentials,
system call filters and signals are those of a machine that it booted.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.booted_systemd import BootedSystemd, CannotBootError, booted_systemd
from tests.support.documents import code_blocks
from tools.harness.console import ConsoleDeployment
from tools.servers.process import free_port
from tools.supply.lock import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.servers import S3Server

pytestmark = [pytest.mark.servers, pytest.mark.slow]

_TEXT = (ROOT / "docs/howto/systemd.md").read_text()
_INSTALL, _SETTINGS, _PASSWORDS, _START = code_blocks(_TEXT, "sh")
_UNITS = tuple(f"{name}.service" for name in _START.split() if name.startswith("keyturn-"))
_PASSWORD = "correct horse battery"
_READY_S = 120


@pytest.fixture(scope="module")
def systemd() -> Iterator[BootedSystemd]:
    try:
        with booted_systemd() as running:
            yield running
    except CannotBootError as error:
        pytest.skip(f"systemd cannot be booted here: {error}")


def _file(path: str, content: str, *, operator: str = ">") -> str:
    """A line of a script that writes a file, or adds to it."""
    return f"cat {operator}{path} <<'KEYTURN-END'\n{content}\nKEYTURN-END"


def _names(process: str) -> set[str]:
    """What the example file of a process sets."""
    text = (ROOT / f"deploy/systemd/etc/{process}.env").read_text()
    return set(re.findall(r"^(KEYTURN_\w+)=", text, re.MULTILINE))


class Site:
    """What an operator writes below /etc/keyturn."""

    def __init__(self, keys: ConsoleDeployment) -> None:
        self._keys = keys
        names = ("upload", "control", "sweep", "gateway", "console")
        self.ports = {name: free_port() for name in names}

    def publishers(self) -> str:
        """Grants the publishers of the test."""
        return _file("/etc/keyturn/publishers.json", json.dumps(self._keys.publishers()))

    def script(self) -> str:
        """Writes settings and secrets; no publisher is granted anything yet."""
        environments = {
            "worker": self._keys.worker_env(),
            "gateway": self._keys.gateway_env(),
            "console": self._keys.console_env(Path("/unused")),
        }
        lines = [_file("/etc/keyturn/publishers.json", "{}")]
        for process, variables in environments.items():
            settings = self._settings(process)
            text = "\n".join(f"{name}={value}" for name, value in settings.items())
            # The last line of a name counts.
            lines.append(_file(f"/etc/keyturn/{process}.env", text, operator=">>"))
            for name in sorted(variables.keys() - settings.keys() - _names(process)):
                path = f"/etc/keyturn/{process}/{name.removeprefix('KEYTURN_')}"
                lines.append(_file(path, variables[name]))
        for role in ("upload", "control", "sweep"):
            port = f"KEYTURN_HEALTH_PORT={self.ports[role]}"
            lines.append(_file(f"/etc/keyturn/worker-{role}.env", port))
        return "\n".join(lines)

    def _settings(self, process: str) -> dict[str, str]:
        if process == "console":
            own = {"KEYTURN_CONSOLE_PORT": str(self.ports["console"])}
        else:
            s3 = self._keys.s3_env()
            names = ("KEYTURN_S3_ENDPOINT_URL", "KEYTURN_S3_REGION", "KEYTURN_S3_BUCKET")
            own = {name: s3[name] for name in names}
        if process == "worker":
            own["KEYTURN_ACTIVE_MASTER_KEY"] = "m1"
        if process == "gateway":
            own["KEYTURN_GATEWAY_PORT"] = str(self.ports["gateway"])
        return own | {"KEYTURN_DEPLOYMENT": self._keys.name}


async def _is_up(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def _until_up(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        if await _is_up(session, url):
            return
        await asyncio.sleep(0.2)


async def _wait_for(systemd: BootedSystemd, ports: dict[str, int]) -> None:
    async with aiohttp.ClientSession() as session:
        for name, port in ports.items():
            path = "healthz" if name == "console" else "readyz"
            try:
                async with asyncio.timeout(_READY_S):
                    await _until_up(session, f"http://127.0.0.1:{port}/{path}")
            except TimeoutError:
                raise AssertionError((name, systemd.console(), _log(systemd))) from None


def _log(systemd: BootedSystemd) -> str:
    return systemd.run("tail -n 8 /run/keyturn-*.log")


def _shown(systemd: BootedSystemd, unit: str, *names: str) -> dict[str, str]:
    text = systemd.run(f"systemctl show {unit} --property={','.join(names)}")
    return dict(line.split("=", 1) for line in text.splitlines())


async def test_the_units_run_as_the_document_says(
    systemd: BootedSystemd, vhost_url: str, moto: S3Server, moto_bucket: str
) -> None:
    site = Site(ConsoleDeployment(vhost_url, moto, moto_bucket))
    # The programs are there already: `booted_systemd` installed them.
    steps = [line for line in _INSTALL.splitlines() if "/opt/" not in line]
    systemd.run("\n".join(steps))
    systemd.run(_SETTINGS)
    systemd.run(_PASSWORDS, stdin=f"{_PASSWORD}\n")
    systemd.run(site.script())
    # There is no journal here.
    log = "[Service]\nStandardError=append:/run/%N.log"
    systemd.run(
        "mkdir -p /etc/systemd/system/service.d\n"
        + _file("/etc/systemd/system/service.d/log.conf", log)
        + "\nsystemctl daemon-reload"
    )
    systemd.run(_START)
    # Started means ready: each process has notified systemd.
    for unit in _UNITS:
        shown = _shown(systemd, unit, "Type", "SubState")
        assert shown == {"Type": "notify", "SubState": "running"}, unit
    await _wait_for(systemd, {"upload": site.ports["upload"]})
    # Gateway and console wait for their streams, which the file of publishers brings.
    systemd.run(site.publishers() + "\nsystemctl reload keyturn-worker@upload")
    await _wait_for(systemd, site.ports)
    for unit in _UNITS:
        _check_limits(systemd, unit)
    began = time.monotonic()
    systemd.run(f"systemctl stop {' '.join(_UNITS)}")
    assert time.monotonic() - began < 60
    for unit in _UNITS:
        shown = _shown(systemd, unit, "Result", "ExecMainStatus", "ActiveState")
        ended = {"Result": "success", "ExecMainStatus": "0", "ActiveState": "inactive"}
        assert shown == ended, (unit, _log(systemd))
    assert "publishers changed" in systemd.run("cat /run/keyturn-worker@upload.log")


def _check_limits(systemd: BootedSystemd, unit: str) -> None:
    """What the unit asks for is in effect, and the secrets are of this process alone."""
    pid = _shown(systemd, unit, "MainPID")["MainPID"]
    status = dict(
        line.split(":\t", 1)
        for line in systemd.run(f"cat /proc/{pid}/status").splitlines()
        if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["CapBnd"], 16) == 0
    user = re.sub(r"(@.*)?\.service$", "", unit)
    assert status["Uid"].split()[0] == systemd.run(f"id -u {user}").strip()
    files = systemd.run(f"stat -c '%a %n' /run/credentials/{unit}/*").splitlines()
    assert {line.split()[0] for line in files} <= {"400", "440"}
    assert any(line.endswith("/KEYTURN_AMQP_URL") for line in files)
    refused = systemd.run(
        f"nsenter --target {pid} --mount -- sh -c 'touch /etc/x /opt/keyturn/x 2>&1 || true'"
    )
    assert refused.count("Read-only file system") == 2
    assert _shown(systemd, unit, "MemoryMax")["MemoryMax"] != "infinity"
