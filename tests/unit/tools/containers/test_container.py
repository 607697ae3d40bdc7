"""A container's limits: those of compose.yaml, and which ones are too wide."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.unit.tools.containers.fake_engine import FakeEngine
from tools.containers.container import (
    CheckFailedError,
    Container,
    changed_files,
    service_flags,
    wider_limits,
)
from tools.containers.images import ROOT

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


@pytest.mark.parametrize("service", ["upload", "control", "sweep", "gateway", "console"])
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
