"""The units of deploy/systemd: systemd finds no mistake in them, and little that is left open."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import yaml

from keyturn.settings import SECRETS_DIR_VARIABLE
from tools.manifests.documents import KUBERNETES, SETTINGS
from tools.manifests.policies import secret_names, setting_names
from tools.manifests.systemd import SYSTEMD, exposure, problems, root_with
from tools.servers.packages import MissingPackagesError, path_of

if TYPE_CHECKING:
    from pathlib import Path

    from tools.manifests.documents import Process

UNITS: dict[Process, tuple[str, str]] = {
    "worker": ("keyturn-worker@.service", "keyturn-worker@upload.service"),
    "gateway": ("keyturn-gateway.service", "keyturn-gateway.service"),
    "console": ("keyturn-console.service", "keyturn-console.service"),
}
# In tenths, as `systemd-analyze security --threshold` takes it: the network, and /proc for metrics.
EXPOSURE = 11
_BROKEN = {
    "a setting that does not exist": ("Restart=", "Restrat="),
    "a value that does not exist": ("ProtectHome=yes", "ProtectHome=yess"),
    "a program that is not there": ("/opt/keyturn/", "/opt/other/"),
}
_HARDENING = re.compile(r"# Nothing to gain\..*?(?=\n\[Install\])", re.DOTALL)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _need_systemd()
    return root_with(tmp_path_factory.mktemp("root"), *(_path(one) for one in UNITS))


def _need_systemd() -> None:
    try:
        path_of("systemd-analyze", "systemd")
    except MissingPackagesError as error:
        pytest.skip(f"systemd cannot be installed: {error}")


def _path(process: Process) -> Path:
    return SYSTEMD / UNITS[process][0]


def _variables(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(?:Environment=)?([A-Z_0-9]+)=(.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("process", UNITS)
def test_systemd_finds_no_mistake(root: Path, process: Process) -> None:
    assert problems(root, UNITS[process][1]) == ""


@pytest.mark.parametrize("what", _BROKEN)
def test_systemd_finds_a_mistake(tmp_path: Path, what: str) -> None:
    _need_systemd()
    right, wrong = _BROKEN[what]
    unit = tmp_path / UNITS["gateway"][0]
    text = _path("gateway").read_text()
    assert right in text
    unit.write_text(text.replace(right, wrong))
    assert problems(root_with(tmp_path / "root", unit), unit.name) != ""


@pytest.mark.parametrize("process", UNITS)
def test_little_is_left_open(root: Path, process: Process) -> None:
    is_below, open_to = exposure(root, UNITS[process][1], EXPOSURE)
    assert is_below, open_to


@pytest.mark.parametrize(
    "line", ["NoNewPrivileges=yes", "ProtectSystem=strict", "SystemCallFilter=@system-service"]
)
def test_a_unit_without_a_limit_is_above_the_threshold(tmp_path: Path, line: str) -> None:
    _need_systemd()
    unit = tmp_path / UNITS["gateway"][0]
    unit.write_text(_path("gateway").read_text().replace(f"{line}\n", ""))
    is_below, _ = exposure(root_with(tmp_path / "root", unit), unit.name, EXPOSURE)
    assert not is_below


def test_all_units_have_the_same_limits() -> None:
    blocks = {match[0] for one in UNITS if (match := _HARDENING.search(_path(one).read_text()))}
    assert len(blocks) == 1


@pytest.mark.parametrize("process", UNITS)
def test_every_variable_is_a_setting_and_none_a_secret(process: Process) -> None:
    named = _variables(_path(process).read_text()) | _variables(
        (SYSTEMD / "etc" / f"{process}.env").read_text()
    )
    ours = {name for name in named if name.startswith("KEYTURN_")} - {SECRETS_DIR_VARIABLE}
    kind = SETTINGS[process]
    assert ours
    assert ours <= setting_names(kind)
    assert not ours & secret_names(kind)


@pytest.mark.parametrize("process", UNITS)
def test_a_unit_waits_longer_than_its_process_takes(process: Process) -> None:
    found = re.search(r"^TimeoutStopSec=(\d+)$", _path(process).read_text(), re.MULTILINE)
    assert found is not None
    grace_s = SETTINGS[process].model_fields["shutdown_grace_s"].default
    assert int(found[1]) > grace_s + (20 if process == "worker" else 0)


def _bytes(text: str) -> int:
    """A size as systemd (`768M`) or Kubernetes (`768Mi`) writes it."""
    number, unit = re.fullmatch(r"(\d+)([MG])i?", text).groups()  # type: ignore[union-attr]
    return int(number) << {"M": 20, "G": 30}[unit]


@pytest.mark.parametrize("process", UNITS)
def test_memory_is_limited_as_in_kubernetes(process: Process) -> None:
    found = re.search(r"^MemoryMax=(\S+)$", _path(process).read_text(), re.MULTILINE)
    assert found is not None
    role = KUBERNETES / "roles" / process / "deployment.yaml"
    (container,) = yaml.safe_load(role.read_text())["spec"]["template"]["spec"]["containers"]
    assert _bytes(found[1]) == _bytes(container["resources"]["limits"]["memory"])


@pytest.mark.parametrize("process", UNITS)
def test_each_unit_has_a_user_of_its_own_and_its_own_secrets(process: Process) -> None:
    text = _path(process).read_text()
    user = f"keyturn-{process}"
    assert f"\nUser={user}\nGroup={user}\n" in text
    assert f"\nLoadCredential=KEYTURN:/etc/keyturn/{process}\n" in text
    users = (SYSTEMD / "sysusers.d" / "keyturn.conf").read_text()
    assert re.search(rf"^u {user}\s+- ", users, re.MULTILINE)
