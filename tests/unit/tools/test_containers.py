"""What the container tests decide without an engine, and with one that a test stands in for."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tools.containers import __main__ as program
from tools.containers.compose_test import PORTS, counted, taken_ports
from tools.containers.container import (
    CheckFailedError,
    Container,
    Report,
    changed_files,
    require,
    service_flags,
    wider_limits,
)
from tools.containers.engine import (
    CannotRunError,
    DockerError,
    Engine,
    available_bytes,
    find_engine,
    last_line,
    mounts_below,
    remove_cgroups,
)
from tools.containers.images import (
    BROKER,
    CA_BUNDLE,
    IMAGE,
    ROOT,
    STORAGE,
    Images,
    base_references,
    broker_reference,
    ca_bundle,
    copy_sources,
    image_environment,
    make_base,
    pip_config,
    pull,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class FakeEngine(Engine):
    """Answers by the first words of a command; everything else fails with `reason`."""

    answers: dict[str, str]
    reason: str
    commands: list[tuple[str, ...]]

    def __init__(self, answers: dict[str, str] | None = None, *, reason: str = "no such") -> None:
        super().__init__({}, is_private=False)
        for name, value in (("answers", answers or {}), ("reason", reason), ("commands", [])):
            object.__setattr__(self, name, value)

    def attempt(self, *arguments: str, **_options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(arguments)
        line = " ".join(arguments)
        for begin, answer in self.answers.items():
            if line.startswith(begin):
                return subprocess.CompletedProcess(arguments, 0, answer, "")
        return subprocess.CompletedProcess(arguments, 1, "", f"{self.reason}\n")


def _docker(folder: Path, script: str) -> None:
    program = folder / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that is found before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(
    ("script", "answers"),
    [("echo 26.1.5", True), ("echo no daemon >&2; exit 1", False), ("exit 0", False)],
)
def test_an_engine_that_answers_is_used(path: Path, script: str, answers: bool) -> None:
    _docker(path, script)
    engine = find_engine()
    assert (engine is not None) == answers
    assert engine is None or not engine.is_private


def test_no_command_is_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_engine() is None


def test_a_failure_says_how_the_command_ended(path: Path) -> None:
    _docker(path, 'echo "$@"; echo refused >&2; exit 3')
    engine = Engine(dict(os.environ), is_private=False)
    with pytest.raises(DockerError, match=r"(?s)docker pull ended with 3:.*refused"):
        engine.run("pull", "x")
    assert engine.attempt("pull", "x").stdout == "pull x\n"


def test_a_command_that_hangs_is_ended(path: Path) -> None:
    _docker(path, "exec sleep 60")
    done = Engine(dict(os.environ), is_private=False).attempt("pull", "x", timeout_s=0.2)
    assert (done.returncode, done.stderr) == (124, "no end in 0.2 s")


def test_a_reason_is_the_last_line_that_says_something() -> None:
    assert last_line("one\ntwo \n\n") == "two"
    assert last_line("\n") == "no output"


def test_control_groups_are_removed_from_the_deepest_on(tmp_path: Path) -> None:
    (tmp_path / "run" / "container" / "inner").mkdir(parents=True)
    remove_cgroups(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    remove_cgroups(tmp_path / "run")


_MOUNTS = """\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 21 254:0 /d /srv/k/engine/data rw - ext4 /dev/vda rw
41 40 0:50 / /srv/k/engine/data/overlay2/x/merged rw - overlay overlay rw
42 21 0:51 / /srv/k-other rw - tmpfs tmpfs rw
"""


def test_the_deepest_goes_first_and_neighbors_stay() -> None:
    assert mounts_below(Path("/srv/k"), _MOUNTS) == [
        "/srv/k/engine/data/overlay2/x/merged",
        "/srv/k/engine/data",
    ]


def test_the_memory_that_can_be_had_is_read_in_bytes() -> None:
    assert available_bytes("MemTotal: 9 kB\nMemAvailable:   2048 kB\n") == 2**21
    assert available_bytes("MemTotal: 9 kB\n") == 0


def test_the_images_are_built_upon_one_base() -> None:
    (base,) = base_references((ROOT / "Dockerfile").read_text())
    assert base.partition("@")[0] == "debian:13-slim"  # with a digest or without
    stages = "FROM a:1 AS x\nRUN y\nFROM x AS z\nFROM b:2\nCOPY --from=x / /\n"
    assert base_references(stages) == ["a:1", "b:2"]


def test_an_image_is_pulled_where_it_is_missing_and_a_registry_answers() -> None:
    held = FakeEngine({"image inspect": "[]"})
    assert pull(held, "debian:13-slim") is None
    assert [command[0] for command in held.commands] == ["image"]
    assert pull(FakeEngine({"pull": "done"}), "debian:13-slim") is None
    away = FakeEngine(reason="dial tcp: no route to host")
    assert pull(away, "debian:13-slim") == "dial tcp: no route to host"


@pytest.mark.parametrize("reference", ["alpine:3", "debian:99-slim", "debian"])
def test_only_debian_is_made_here(tmp_path: Path, reference: str) -> None:
    with pytest.raises(CannotRunError, match=f"^{reference} cannot be made here$"):
        make_base(FakeEngine(), reference, tmp_path)


def test_the_broker_that_stands_in_is_not_run_by_root() -> None:
    text = BROKER.format(base="debian:13-slim")
    assert base_references(text) == ["debian:13-slim"]
    assert "\nUSER rabbitmq\n" in text


@pytest.mark.slow
def test_the_sources_are_copied_without_secrets_and_caches(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    copied = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    for path in copied:
        assert (ROOT / path).read_bytes() == (tmp_path / path).read_bytes()
        assert path.suffix not in (".env", ".key", ".pyc")
    names = {path.parts[0] for path in copied}
    assert {"Dockerfile", "compose.yaml", "contracts", "workers", "tools", "uv.lock"} <= names
    assert not {".git", ".venv", "tests", "console"} & names


def test_the_broker_is_the_one_of_compose() -> None:
    assert broker_reference((ROOT / "compose.yaml").read_text()) == "rabbitmq:4"


@pytest.mark.parametrize(
    ("before", "ours"),
    [(("debian", "rabbitmq"), {IMAGE, STORAGE}), (("debian", "rabbitmq", "keyturn"), set())],
    ids=["only what they are made from", "all of them"],
)
def test_what_is_there_is_built_upon_and_stays(
    tmp_path: Path, before: tuple[str, ...], ours: set[str]
) -> None:
    for name in ("Dockerfile", "compose.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    held = {f"image inspect {name}": "[]" for name in before}
    engine = FakeEngine({**held, "build": "", "image rm": ""})
    images = Images(engine, tmp_path, tmp_path)
    images.provide()
    assert images.made == []
    assert set(images.built) == ours
    builds = [command for command in engine.commands if command[0] == "build"]
    assert {build[build.index("--target") + 1] for build in builds} == {"keyturn", "storage"}
    assert not any("--network" in build for build in builds)
    images.remove()
    removed = {command[-1] for command in engine.commands if command[:2] == ("image", "rm")}
    assert removed == ours


def test_pips_index_is_read_from_its_files_and_the_environment(tmp_path: Path) -> None:
    first, second = tmp_path / "machine.conf", tmp_path / "user.conf"
    first.write_text("[global]\nindex_url = https://a.example/\ncert = /etc/a.pem\n")
    second.write_text(
        "[install]\nindex_url = https://b.example/\ntrusted-host = b\nfind-links = /opt/wheels\n"
    )
    assert pip_config([first], {}) == "[global]\nindex_url = https://a.example/\n"
    both = "[global]\nindex_url = https://b.example/\ntrusted_host = b\n"
    assert pip_config([first, second], {}) == both
    given = {"PIP_INDEX_URL": "https://c.example/", "PIP_TRUSTED_HOST": "c.example", "OTHER": "x"}
    given["PIP_TIMEOUT"] = "9"
    assert pip_config([first, second], given).splitlines() == [
        "[global]",
        "index_url = https://c.example/",
        "timeout = 9",
        "trusted_host = c.example",
    ]


def test_the_certificates_are_those_that_the_environment_names(tmp_path: Path) -> None:
    own = tmp_path / "own.pem"
    own.write_text("PEM")
    assert ca_bundle({"SSL_CERT_FILE": str(own)}) == own
    assert ca_bundle({"SSL_CERT_FILE": str(tmp_path / "none")}) in (CA_BUNDLE, None)


def test_an_image_gets_no_variable_but_those_of_its_indexes() -> None:
    environ = {"UV_DEFAULT_INDEX": "https://a.example/", "UV_INDEX": "", "AWS_SECRET": "x"}
    assert image_environment(environ, with_cas=False) == {"UV_DEFAULT_INDEX": "https://a.example/"}
    assert image_environment({}, with_cas=True) == {
        "SSL_CERT_FILE": str(CA_BUNDLE),
        "PIP_CERT": str(CA_BUNDLE),
    }


_SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())[
    "services"
]
_NONE = ["0000000000000000"]
_SEEN: dict[str, Any] = {
    "status": {
        "Uid": ["10001"] * 4,
        "Gid": ["10001"] * 4,
        "Groups": ["10001"],
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), _NONE),
        "NoNewPrivs": ["1"],
    },
    "root": ["ro", "relatime"],
    "writable": [],
}


@pytest.mark.parametrize("service", ["upload", "control", "sweep", "ingest", "gateway", "console"])
def test_a_role_runs_under_the_limits_of_compose(service: str) -> None:
    flags = service_flags(_SERVICES[service])
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true"} <= set(flags)
    assert "--health-cmd" in flags
    assert "urlopen" in flags[flags.index("--health-cmd") + 1]


def test_a_health_check_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="CMD"):
        service_flags({"healthcheck": {"test": ["CMD-SHELL", "true"], "timeout": "1s"}})


def test_what_is_as_narrow_as_promised_passes() -> None:
    assert wider_limits(_SEEN) == []
    assert wider_limits({**_SEEN, "status": {**_SEEN["status"], "Groups": []}}) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"Uid": ["0"] * 4}, "Uid is 0 0 0 0"),
        ({"Gid": ["999"] * 4}, "Gid is 999 999 999 999"),
        ({"Groups": ["10001", "0"]}, "further groups 10001 0"),
        ({"CapBnd": ["00000000a80425fb"]}, "CapBnd is 00000000a80425fb"),
        ({"NoNewPrivs": ["0"]}, "new privileges can be gained"),
    ],
)
def test_what_is_wider_is_named(change: dict[str, list[str]], problem: str) -> None:
    assert wider_limits({**_SEEN, "status": {**_SEEN["status"], **change}}) == [problem]


def test_a_writable_root_is_named() -> None:
    seen = {**_SEEN, "root": ["rw"], "writable": ["/etc"]}
    assert wider_limits(seen) == ["the root is writable", "/etc is writable"]


def test_only_the_mount_points_may_be_new_in_a_container() -> None:
    diff = "C /etc\nA /etc/keyturn\nA /etc/keyturn-own\n"
    assert changed_files(diff, ["/etc/keyturn"]) == ["/etc/keyturn-own"]
    assert changed_files("", []) == []


def test_a_container_that_ends_while_starting_is_shown_with_its_log() -> None:
    state = '[{"State": {"Status": "exited", "ExitCode": 2, "Health": {"Status": "starting"}}}]'
    engine = FakeEngine({"container inspect": state, "logs": "KEYTURN_AMQP_URL is missing\n"})
    with pytest.raises(CheckFailedError, match="ended with 2:\nKEYTURN_AMQP_URL is missing"):
        Container(engine, "upload").wait_healthy()


def test_a_container_that_was_killed_did_not_stop() -> None:
    killed = '[{"State": {"Status": "exited", "ExitCode": 137}}]'
    engine = FakeEngine({"stop": "", "container inspect": killed, "logs": ""})
    with pytest.raises(CheckFailedError, match="ended with 137"):
        Container(engine, "upload").stop(grace_s=1)


def test_checks_are_counted_and_a_failure_is_not_swallowed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report("image-test")
    with report.check("a first thing") as seen:
        seen += ["one", "two"]
    with pytest.raises(CheckFailedError, match="seen"), report.check("a second thing"):
        require(condition=False, seen="seen")
    report.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("a first thing: one, two")
    assert lines[1] == "FAILED  a second thing"
    assert lines[-1] == "image-test: 1 passed, 1 failed"


_METRICS = """\
# HELP keyturn_requests_served_total Requests served, by the event published.
keyturn_requests_served_total{type="upload.stored"} 12.0
keyturn_requests_served_total{type="upload.rejected"} 3.0
keyturn_sweep_objects_total{outcome="wrapped"} 5.0
keyturn_sweep_objects_total{outcome="current"} 2.0
"""


def test_a_counter_is_summed_over_its_series() -> None:
    assert counted(_METRICS, 'keyturn_requests_served_total{type="upload.stored"}') == 12
    assert counted(_METRICS, "keyturn_sweep_objects_total") == 7
    assert counted(_METRICS, "keyturn_nothing") == 0


def test_the_ports_are_those_that_compose_publishes() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    published = {
        name: port for name, service in services.items() for port in service.get("ports", ())
    }
    assert published == {name: f"127.0.0.1:{port}:{port}" for name, port in PORTS.items()}


def test_a_port_in_use_is_found() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", PORTS["console"]))
        except OSError:
            assert PORTS["console"] in taken_ports()
            return
        listener.listen()
        assert PORTS["console"] in taken_ports()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no engine, and can start none."""

    def refuse(_tests: Sequence[str]) -> None:
        raise CannotRunError("no Docker engine, and starting one needs root")

    monkeypatch.setattr(program, "run", refuse)
    monkeypatch.delenv(program.REQUIRE, raising=False)


@pytest.mark.usefixtures("nowhere")
def test_a_machine_that_cannot_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["image"]) == 0
    line = "image-test skipped: no Docker engine, and starting one needs root\n"
    assert capsys.readouterr().out == line


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("required", ["--require", "environment"])
def test_unless_it_is_required(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, required: str
) -> None:
    arguments = ["image", "compose"]
    if required == "--require":
        arguments.append("--require")
    else:
        monkeypatch.setenv(program.REQUIRE, "1")
    assert program.main(arguments) == 1
    assert capsys.readouterr().out.startswith("image-test and compose-test cannot run: ")
