"""The commands of docs/howto/kubernetes.md, as far as they go without a cluster.

`kubectl apply -k` is rendered, `create` prints what it would create, and labels are those that the
network policies ask for.
"""

from __future__ import annotations

import re
import shlex
import shutil
from base64 import b64decode
from typing import TYPE_CHECKING

import pytest
import yaml

from keyturn_workers.cli.init import init
from keyturn_workers.console.settings import ConsoleSettings
from keyturn_workers.process.settings import GatewaySettings, WorkerSettings
from tests.support.documents import code_blocks
from tools.manifests.documents import KUBERNETES, kubectl, render, write_volume
from tools.servers.packages import MissingPackagesError
from tools.supply.lock import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from keyturn.settings import Settings
    from tools.manifests.documents import Document, Manifests

_TEXT = (ROOT / "docs/howto/kubernetes.md").read_text()
_COMMANDS = [
    shlex.split(line) for block in code_blocks(_TEXT, "sh") for line in block.strip().splitlines()
]
_PREFIX = "deploy/kubernetes/"


def _commands(*words: str) -> list[list[str]]:
    return [one for one in _COMMANDS if all(word in one for word in words)]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what `keyturn init` wrote, and the manifests."""
    shutil.copytree(KUBERNETES, tmp_path / _PREFIX)
    init(tmp_path, force=False)
    (tmp_path / "worker.password").write_text("a password")
    monkeypatch.chdir(tmp_path)
    try:
        kubectl("version", "--client")
    except MissingPackagesError as error:
        pytest.skip(f"kubectl cannot be installed: {error}")
    return tmp_path


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    kinds = {"create", "apply", "label", "kustomize", "rollout"}
    for command in _COMMANDS:
        assert command[0] == "cp" or kinds & set(command), command


def test_an_overlay_of_ones_own_is_rendered_as_it_was(site: Path) -> None:
    ((_, _, source, target),) = [one for one in _COMMANDS if one[0] == "cp"]
    shutil.copytree(site / source, site / target)
    assert render(site / target) == render(site / source)
    for command in _commands("kubectl", "kustomize"):
        assert command[2] == target
    for command in [*_commands("-k"), *_commands("-f")]:
        path = site / command[-1]
        assert path.is_file() or render(path).documents


def _created(command: list[str]) -> Document:
    text = kubectl(*command[1:], "--dry-run=client", "--output=yaml")
    document: Document = yaml.safe_load(text)
    return document


def test_the_secrets_are_those_that_pods_mount(site: Path, small: Manifests) -> None:
    """With a file for each setting that `keyturn init` wrote, under its name."""
    assert site
    created = {one["metadata"]["name"]: one for one in map(_created, _commands("create"))}
    mounted = {
        volume["secret"]["secretName"]
        for deployment in small.deployments
        for volume in deployment["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert mounted == created.keys() - {"broker-user-worker"}
    assert created["broker-user-worker"]["data"].keys() == {"username", "password"}
    assert {one["metadata"]["namespace"] for name, one in created.items() if name in mounted} == {
        "keyturn"
    }
    assert "KEYTURN_MASTER_KEYS" in created["keyturn-worker"]["data"]
    assert "KEYTURN_PUBLISHER_KEY" in created["keyturn-gateway"]["data"]
    assert "KEYTURN_CONSOLE_SESSION_KEY" in created["keyturn-console"]["data"]
    assert created["keyturn-console-passwords"]["data"].keys() == {"passwords"}


def test_the_labels_are_those_that_policies_ask_for(small: Manifests) -> None:
    given = {
        word.removesuffix("=true")
        for command in _commands("label")
        for word in command
        if word.endswith("=true")
    }
    asked = set(re.findall(r"keyturn/[a-z]+", str(small.of("NetworkPolicy"))))
    assert given | {"keyturn/storage"} == asked


def test_the_deployments_of_a_rollout_exist(small: Manifests) -> None:
    for command in _commands("rollout", "status"):
        for word in command:
            if word.startswith("deployment/"):
                small.find("Deployment", word.removeprefix("deployment/"))


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ("keyturn-worker", WorkerSettings),
        ("keyturn-gateway", GatewaySettings),
        ("keyturn-console", ConsoleSettings),
    ],
)
def test_a_process_reads_its_settings_from_the_files_of_its_secret(
    site: Path, monkeypatch: pytest.MonkeyPatch, secret: str, kind: type[Settings]
) -> None:
    (command,) = _commands("create", secret)
    folder = site / "mounted"
    files = {name: b64decode(value).decode() for name, value in _created(command)["data"].items()}
    write_volume(folder, files)
    monkeypatch.setenv("KEYTURN_SECRETS_DIR", str(folder))
    assert kind.read()
