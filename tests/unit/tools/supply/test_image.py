"""Dockerfile and compose.yaml: an unprivileged user, a read-only root, no secrets.

`make image-test` and `make compose-test` run both for real, where there can be an engine.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

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
UID = "10001"
# compose's own development broker: its address in this network, with the password beside it.
_BROKER: Final = "amqp://keyturn:keyturn@broker:5672/"
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
    assert len(project["dependency-groups"]["storage"]) == 1


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


@pytest.mark.parametrize("name", [*OURS, "add-user"])
def test_every_process_has_a_read_only_root_and_no_privilege(
    name: str, services: dict[str, dict[str, Any]]
) -> None:
    service = services[name]
    assert service["build"] == {"context": ".", "target": "keyturn"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # Nothing is written, so there is nothing to mount: the integration test shows it. The console
    # reads a file that `add-user` changes.
    mounted = {"console": ["console:/etc/keyturn:ro"], "add-user": ["console:/etc/keyturn"]}
    assert service.get("volumes", []) == mounted.get(name, [])
    assert not {"tmpfs", "privileged", "cap_add", "user", "pid"} & set(service)
    if name == "add-user":
        return
    assert service["command"] == ([name] if name in FILES else ["worker", name])


@pytest.mark.parametrize("name", OURS)
def test_secrets_come_from_files_beside_the_deployment(
    name: str, services: dict[str, dict[str, Any]]
) -> None:
    service = services[name]
    assert service["env_file"] == [FILES.get(name, WORKER_FILE)]
    given = service["environment"]
    assert given["KEYTURN_AMQP_URL"] == _BROKER
    named = {name for name in given if not name.endswith("_FILE")} - {"KEYTURN_AMQP_URL"}
    assert not any(_SECRET.search(variable) for variable in named)


def test_the_names_of_this_network_are_in_compose_alone(
    tmp_path: Path, services: dict[str, dict[str, Any]]
) -> None:
    """The files of `keyturn init` work on the host, through the published ports."""
    init(tmp_path, force=False, amqp_url="amqp://k:k@127.0.0.1:5672/",
         s3_endpoint_url="http://127.0.0.1:8000")  # fmt: skip
    for file in tmp_path.glob("*.env"):
        assert not re.search(r"@broker\b|//storage\b", file.read_text()), file
    for name in OURS:
        expected = None if name == "console" else "http://storage:8000"
        assert services[name]["environment"].get("KEYTURN_S3_ENDPOINT_URL") == expected
    broker = services["broker"]["environment"]
    assert set(broker.values()) == {"keyturn"}


def test_no_other_service_is_ours(services: dict[str, dict[str, Any]]) -> None:
    """The broker and the development storage keep state and are not this image."""
    assert set(services) == {*OURS, "broker", "storage", "add-user"}


def test_people_are_added_where_the_console_reads_them(
    services: dict[str, dict[str, Any]],
) -> None:
    """By the image's own user, in a volume that begins as the image's folder; not by `up`."""
    adding = services["add-user"]
    file = services["console"]["environment"]["KEYTURN_CONSOLE_PASSWORD_FILE"]
    assert adding["entrypoint"] == ["keyturn", "console", "add-user", "--file", file]
    assert adding["profiles"]
    assert adding["network_mode"] == "none"
    assert f"install -d -o {UID} -g {UID} {Path(file).parent}" in DOCKERFILE
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_only_the_processes_that_need_keys_get_their_file(
    services: dict[str, dict[str, Any]],
) -> None:
    """The broker gets no file of ours, the development storage none but the bucket's keys."""
    files = {name: service.get("env_file", []) for name, service in services.items()}
    assert files["broker"] == []
    assert files["storage"] == [STORAGE_FILE]


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
