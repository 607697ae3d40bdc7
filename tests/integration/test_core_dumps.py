"""A started worker, gateway or console leaves no core dump (SPEC 13)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.harness.console import ConsoleDeployment, write_passwords
from tools.harness.process import console, gateway, worker
from tools.harness.worker_under_test import fresh_amqp_url

if TYPE_CHECKING:
    from tools.servers import S3Server, Servers

pytestmark = pytest.mark.servers


def _core_limits(pid: int) -> list[str]:
    """The soft and the hard limit of a core file's size."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Max core file size"))
    return line.removeprefix("Max core file size").split()[:2]


async def test_started_processes_have_a_core_limit_of_0(
    broker: Servers, ceph: S3Server, ceph_bucket: str, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    write_passwords(passwords, [])
    deployment = ConsoleDeployment(await fresh_amqp_url(broker), ceph, ceph_bucket)
    async with (
        worker(deployment.worker_env()) as working,
        gateway(deployment.gateway_env()) as serving,
        console(deployment.console_env(passwords)) as looking,
    ):
        for process in (working, serving, looking):
            assert _core_limits(process.process.pid) == ["0", "0"]
