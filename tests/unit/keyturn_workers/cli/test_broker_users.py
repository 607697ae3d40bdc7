"""`keyturn broker-users`: definitions that RabbitMQ imports (SPEC 6.8, 6.9).

tests/integration/amqp/test_permissions.py shows on a real broker what these permissions allow.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from keyturn.crypto import SigningKey, to_base64
from keyturn.topology import (
    AUDIT_RECORDED,
    EVENTS,
    KEYRING_MARKED,
    REQUESTS,
    STATUS_REPORTED,
    WORKER_REPORTED,
)
from keyturn_workers.cli.app import app
from keyturn_workers.cli.broker_users import ROLES
from tests.support.documents import code_blocks

if TYPE_CHECKING:
    from typer.testing import Result

_DOCUMENT = Path(__file__).parents[4] / "docs" / "howto" / "deploy.md"
_KEY = to_base64(SigningKey.from_seed(bytes(32)).public_bytes)
_MAY = {
    "billing": ["upload.requested", "rotation.requested"],
    "gateway": ["upload.requested", "rotation.requested", "delete.requested"],
    "console": [
        *("enroll.requested", "rotation.requested", "sweep.requested", "delete.requested"),
        *("status.requested", "dead_letters.requested", "customer_key"),
    ],
}
_KEYS = (*REQUESTS, *EVENTS, STATUS_REPORTED, WORKER_REPORTED, AUDIT_RECORDED, KEYRING_MARKED)
_NAMES = (
    *("keyturn", "amq.default", "keyturn.upload", "keyturn.dead.lock", "keyturn.marks"),
    *("keyturn.audit", "keyturn.notifications", "amq.gen-x", "keyturn.events", "other"),
    *(f"keyturn.events.{name}" for name in _MAY),
)


def _run(*arguments: str, **env: str) -> Result:
    grants = {name: {"keys": [_KEY], "may": may, "projects": ["*"]} for name, may in _MAY.items()}
    settings = {"KEYTURN_PUBLISHERS": json.dumps(grants)}
    settings |= {f"KEYTURN_{name}": value for name, value in env.items()}
    return CliRunner().invoke(app, ["broker-users", *arguments], env=settings)


def _definitions(*arguments: str, **env: str) -> Any:
    result = _run(*arguments, **env)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _documented() -> dict[tuple[str, str], list[str]]:
    """The patterns of the document's commands, by verb and user."""
    text = _DOCUMENT.read_text(encoding="utf-8").partition("## Broker users")[2]
    (block,) = [block for block in code_blocks(text, "sh") if "set_permissions" in block]
    lines = [shlex.split(line) for line in block.splitlines()]
    return {(verb, user): patterns for _, verb, _, _, user, *patterns in lines}


def _matches(pattern: str, names: tuple[str, ...]) -> set[str]:
    return {name for name in names if re.search(pattern, name)}


def test_the_definitions_allow_what_the_guide_documents() -> None:
    roles = [part for role in ROLES if role != "all" for part in ("--role", role)]
    made = _definitions(*roles, *(part for name in _MAY for part in ("--publisher", name)))
    documented = _documented()
    permissions = {each["user"]: each for each in made["permissions"]}
    assert {user for _, user in documented} == {*permissions}
    for user, found in permissions.items():
        patterns = documented["set_permissions", user]
        for kind, pattern in zip(("configure", "write", "read"), patterns, strict=True):
            assert _matches(found[kind], _NAMES) == _matches(pattern, _NAMES), (user, kind)
    for found in made["topic_permissions"]:
        user = found["user"]
        exchange, write, read = documented["set_topic_permissions", user]
        assert found["exchange"] == exchange
        assert _matches(found["write"], _KEYS) == _matches(write, _KEYS), user
        assert found["read"] == read
    assert all(each["vhost"] == "keyturn" for each in (*made["permissions"], *made["policies"]))
    assert made["users"] == []


def test_worker_all_also_requests_uploads() -> None:
    made = _definitions("--role", "all", "--publisher", "billing")
    (worker, _) = made["topic_permissions"]
    assert worker["user"] == "all"
    assert _matches(worker["write"], REQUESTS) == {"upload.requested"}


def test_users_get_passwords_that_only_a_new_file_has(tmp_path: Path) -> None:
    path = tmp_path / "users.env"
    url = "amqps://admin:secret@broker.example.com:5671/other"
    made = _definitions("--vhost", "a/b", "--save-to", str(path), AMQP_URL=url)
    assert path.stat().st_mode & 0o777 == 0o600
    lines = path.read_text().splitlines()
    urls = [urlsplit(line.partition("=")[2]) for line in lines if not line.startswith("#")]
    assert [each.username for each in urls] == [each["name"] for each in made["users"]]
    assert {(each.scheme, each.hostname, each.port, each.path) for each in urls} == {
        ("amqps", "broker.example.com", 5671, "/a%2Fb")
    }
    assert len({each.password for each in urls}) == len(urls)
    assert all(each.password and each.password not in json.dumps(made) for each in urls)
    assert "secret" not in path.read_text()
    assert _run("--save-to", str(path)).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--role", "boss"], "no such role: boss; there are: all, auditor"),
        (["--publisher", "web"], "not in KEYTURN_PUBLISHERS: web; there are: billing"),
        (["--gateway", "web"], "not in KEYTURN_PUBLISHERS: web"),
    ],
)
def test_unknown_names_are_refused(arguments: list[str], problem: str) -> None:
    result = _run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert problem in result.stderr


def test_by_default_there_are_all_publishers_and_otherwise_only_who_is_named() -> None:
    def users(*arguments: str) -> list[str]:
        return [each["user"] for each in _definitions(*arguments)["permissions"]]

    assert users() == ["worker", "ingest", "operator", *_MAY]
    assert users("--publisher", "billing") == ["billing"]
    assert users("--role", "auditor") == ["auditor"]
