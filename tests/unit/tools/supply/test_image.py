"""Dockerfile and compose.yaml: an unprivileged user, a read-only root, no secrets.

`make image-test` and `make compose-test` run both for real, where there can be an engine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from keyturn.topology import DEAD_POLICIES
from keyturn_workers.cli.init import (
    CONSOLE_FILE,
    GATEWAY_FILE,
    PASSWORD_FILE,
    PUBLISHER_FILE,
    STORAGE_FILE,
    WORKER_FILE,
    init,
)
from tools.supply.lock import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
OURS = ("upload", "control", "sweep", "ingest", "gateway", "console")
FILES = {"gateway": GATEWAY_FILE, "console": CONSOLE_FILE}
MANUAL = ("keyturn", "add-user")
SERVERS = ("broker", "storage")
UID = "10001"
_FIRST_RUN: Final = ROOT / "deploy/compose/first-run.sh"
_VOLUMES: Final = ("workers", "gateway", "console", "publisher", "storage", "broker")
_SECRET = re.compile(r"_KEY|SECRET|PASSWORD|TOKEN|PEPPER|SEED|AMQP_URL", re.IGNORECASE)


def _stages() -> dict[str, list[tuple[str, str]]]:
    """By stage, its instructions in order, continued lines joined."""
    stages: dict[str, list[tuple[str, str]]] = {}
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    for line in filter(str.strip, joined.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages[rest.split(" AS ")[1]] = []
        stages[list(stages)[-1]].append((word, rest))
    return stages


def _last(stage: str, word: str) -> str:
    return [rest for found, rest in _stages()[stage] if found == word][-1]


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """compose.yaml's, its anchors resolved."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())[
        "services"
    ]
    return found


def test_the_image_that_is_shipped_is_the_last_stage_and_runs_as_nobody() -> None:
    """By number, which Kubernetes' `runAsNonRoot` asks for."""
    assert list(_stages())[-1] == "keyturn"
    assert _last("keyturn", "USER") == f"{UID}:{UID}"
    words = [word for word, _ in _stages()["keyturn"]]
    assert not {"RUN", "COPY", "ADD"} & set(words[words.index("USER") :])
    assert _last("keyturn", "ENTRYPOINT") == '["keyturn"]'


def test_what_is_shipped_comes_from_the_build_and_can_build_nothing() -> None:
    copies = [rest for word, rest in _stages()["keyturn"] if word == "COPY"]
    assert copies == ["--from=build /app/.venv /app/.venv"]
    (run,) = [rest for word, rest in _stages()["keyturn"] if word == "RUN"]
    installed = re.search(r"--no-install-recommends ([a-z0-9 -]+)&&", run)
    assert installed is not None
    assert installed[1].split() == ["python3", "ca-certificates"]
    assert f"groupadd --gid {UID} " in run
    assert f"useradd --uid {UID} --gid {UID} " in run
    assert not {word for stage in _stages().values() for word, _ in stage} & {
        "ADD",
        "ARG",
        "VOLUME",
    }


def test_the_build_asks_no_registry_for_its_own_language() -> None:
    """A line `# syntax=` has the builder fetch a frontend, even where the base image is there."""
    assert "syntax=" not in DOCKERFILE.splitlines()[0]


def test_the_storage_holds_what_its_program_imports_and_no_development_tool() -> None:
    stage = _stages()["storage"]
    (files,) = [rest.split() for word, rest in stage if word == "COPY" and "--from" not in rest]
    assert files.pop() == "tools/servers/"
    names = {Path(file).stem for file in files}
    imported = {"development"}
    for name in names:
        text = (ROOT / "tools" / "servers" / f"{name}.py").read_text()
        imported |= set(re.findall(r"^from tools\.servers\.(\w+) import", text, re.MULTILINE))
        others = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
        assert set(others) - set(sys.stdlib_module_names) <= {"tools", "botocore"}, name
        # The package's own __init__.py is not copied: it imports all servers.
        assert "from tools.servers import" not in text
        if name == "process":
            imported.add("reaper")  # run as a script
    assert names == imported
    syncs = [rest for word, rest in _stages()["storage-build"] if word == "RUN"]
    assert syncs == ["/opt/uv/bin/uv sync --locked --only-group storage"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert len(project["dependency-groups"]["storage"]) == 2  # botocore and the server itself
    assert _last("storage", "USER") == f"{UID}:{UID}"


def test_each_stage_installs_from_an_index_of_its_own() -> None:
    """The index of an earlier layer may be old, and then packages are gone."""
    for name, stage in _stages().items():
        for word, rest in stage:
            if word == "RUN" and "apt-get install" in rest:
                assert rest.split()[:3] == ["apt-get", "update", "&&"], name


def test_the_build_is_locked_and_leaves_its_sbom() -> None:
    runs = [rest for word, rest in _stages()["build"] if word == "RUN"]
    syncs = [part for run in runs for part in run.split("&&") if " sync " in part]
    assert len(syncs) == 2
    for sync in syncs:
        assert (
            "--locked --package keyturn-workers --extra pkcs11 --extra console --extra otel "
            "--no-default-groups" in sync
        )
    assert "--no-editable" in syncs[-1]
    assert "--format cyclonedx1.5" in runs[-1]
    assert "--output-file .venv/keyturn.cdx.json" in runs[-1]


def test_no_secret_is_built_in() -> None:
    for stage in _stages().values():
        for word, rest in stage:
            if word == "ENV":
                assert not _SECRET.search(re.sub(r"=\S+", "", rest)), rest
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {"*.env", "*.key", "*.header", ".git"} <= set(ignored)
    for file in (WORKER_FILE, GATEWAY_FILE, CONSOLE_FILE, PUBLISHER_FILE, STORAGE_FILE):
        assert file.endswith(".env")
    assert f"/{PASSWORD_FILE.parent}" in ignored


@pytest.mark.parametrize("name", [*OURS, *MANUAL, "storage", "first-run"])
def test_every_process_has_a_read_only_root_and_no_privilege(
    name: str, services: dict[str, dict[str, Any]]
) -> None:
    service = services[name]
    target = "storage" if name == "storage" else "keyturn"
    assert service["build"] == {"context": ".", "target": target}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid"} & set(service)
    # The first run gives files to the user of the others. It has no network.
    is_first = name == "first-run"
    assert service.get("cap_add") == (["CHOWN", "DAC_OVERRIDE"] if is_first else None)
    assert service.get("user") == ("0:0" if is_first else None)
    assert (service.get("network_mode") == "none") == (name in ("first-run", "add-user"))
    # Of the others, only the storage writes, and only its own files.
    assert service.get("tmpfs") == (["/tmp"] if name in ("first-run", "storage") else None)  # noqa: S108
    if name in OURS and name not in FILES:
        assert service["command"] == ["worker", name]


def test_each_process_gets_its_own_settings_and_no_others(
    services: dict[str, dict[str, Any]],
) -> None:
    """The broker and the storage get nothing that opens an object."""
    written = {
        **{name: [f"{name if name in FILES else 'workers'}:/etc/keyturn:ro"] for name in OURS},
        "keyturn": ["publisher:/keys", ".:/clone:ro"],
        "add-user": ["console:/etc/keyturn"],
        "broker": ["broker:/etc/keyturn:ro", "queues:/var/lib/rabbitmq"],
        "storage": ["storage:/etc/keyturn:ro", "objects:/data"],
        "first-run": [
            "./deploy/compose/first-run.sh:/first-run.sh:ro",
            *(f"{name}:/settings/{name}" for name in _VOLUMES),
        ],
    }
    assert {name: service["volumes"] for name, service in services.items()} == written
    for name, service in services.items():
        given = service.get("environment", {})
        assert "env_file" not in service
        named = {each for each in given if not each.endswith("_FILE")} - {"KEYTURN_AMQP_URL"}
        assert not any(_SECRET.search(variable) for variable in named)
        if name in OURS:
            assert given["KEYTURN_ENV_FILE"] == f"/etc/keyturn/{FILES.get(name, WORKER_FILE)}"


@pytest.mark.slow
def test_the_first_run_makes_everything_once(
    tmp_path: Path, services: dict[str, dict[str, Any]]
) -> None:
    def run() -> dict[str, str]:
        env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **services["first-run"]["environment"],
            "TMPDIR": str(tmp_path),
        }
        owner = f"{os.getuid()}:{os.getgid()}"
        command = ["sh", str(_FIRST_RUN), str(tmp_path / "settings"), owner]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        files = [each for each in (tmp_path / "settings").rglob("*") if each.is_file()]
        return {str(each.relative_to(tmp_path / "settings")): each.read_text() for each in files}

    for name in _VOLUMES:
        (tmp_path / "settings" / name).mkdir(parents=True)
    made = run()
    assert run() == made
    assert set(made) == {
        "workers/keyturn.env",
        "gateway/gateway.env",
        "console/console.env",
        "console/passwords",
        "publisher/publisher.env",
        "publisher/host.env",
        "storage/storage.env",
        "broker/conf.d/keyturn.conf",
        "broker/definitions.json",
    }
    secret = [path for path in made if not path.startswith("broker/")]
    for path in secret:
        assert (tmp_path / "settings" / path).stat().st_mode & 0o77 == 0, path
    definitions = json.loads(made["broker/definitions.json"])
    users = {"all", "dev", "gateway", "console"}
    assert {each["name"] for each in definitions["users"]} == users
    assert {each["user"] for each in definitions["permissions"]} == users
    assert {each["name"] for each in definitions["policies"]} == {p.name for p in DEAD_POLICIES}
    for path, user in (("workers/keyturn", "all"), ("console/console", "console")):
        assert re.search(rf"AMQP_URL=amqp://{user}:\S+@broker:5672/keyturn", made[f"{path}.env"])
    host = made["publisher/host.env"]
    assert "@127.0.0.1:5672/" in host
    assert "http://127.0.0.1:8000" in host
    assert not re.search(r"@broker|//storage", host)
    # One that was interrupted begins again, and all files agree.
    (tmp_path / "settings/workers/keyturn.env").unlink()
    again = run()
    assert set(again) == set(made)
    assert not {again[path] for path in secret} & {made[path] for path in secret} - {""}


def test_only_loopback_is_published_and_all_services_are_known(
    services: dict[str, dict[str, Any]],
) -> None:
    assert set(services) == {*OURS, *SERVERS, *MANUAL, "first-run"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    console = services["console"]
    # Which makes its link safe to print.
    assert console["command"] == ["console", "--sign-in-link"]
    assert console["ports"] == ["127.0.0.1:8090:8090"]
    assert console["environment"]["KEYTURN_CONSOLE_PUBLIC_URL"] == "http://127.0.0.1:8090"


def test_people_are_added_where_the_console_reads_them(
    services: dict[str, dict[str, Any]],
) -> None:
    """By the image's own user; not by `up`."""
    adding = services["add-user"]
    file = services["console"]["environment"]["KEYTURN_CONSOLE_PASSWORD_FILE"]
    assert adding["entrypoint"] == ["keyturn", "console", "add-user", "--file", file]
    assert all(services[name]["profiles"] for name in MANUAL)


def test_the_storage_container_learns_no_key_that_opens_anything(tmp_path: Path) -> None:
    init(tmp_path, force=False)
    lines = (tmp_path / STORAGE_FILE).read_text().splitlines()
    names = {line.split("=")[0] for line in lines if line and not line.startswith("#")}
    assert names == {
        "KEYTURN_S3_ENDPOINT_URL",
        "KEYTURN_S3_REGION",
        "KEYTURN_S3_BUCKET",
        "KEYTURN_S3_ACCESS_KEY_ID",
        "KEYTURN_S3_SECRET_ACCESS_KEY",
    }
