"""The permissions of the RabbitMQ example are those of docs/howto/deploy.md, user by user."""

from __future__ import annotations

import copy
import shlex
from typing import TYPE_CHECKING

from tests.support.documents import code_blocks
from tools.manifests.documents import Manifests, name_of
from tools.supply.lock import ROOT

if TYPE_CHECKING:
    from tools.manifests.documents import Document

_DOCUMENT = ROOT / "docs" / "howto" / "deploy.md"
Permission = tuple[str, ...]


def _documented() -> set[Permission]:
    """Each command without the program: its verb, vhost, user and patterns."""
    text = _DOCUMENT.read_text().partition("## Broker users")[2]
    (block,) = [block for block in code_blocks(text, "sh") if "set_permissions" in block]
    commands = [shlex.split(line) for line in block.splitlines()]
    assert all(command[:3:2] == ["rabbitmqctl", "-p"] for command in commands)
    return {(command[1], *command[3:]) for command in commands}


def _rendered(manifests: Manifests) -> set[Permission]:
    found: set[Permission] = set()
    for one in manifests.of("Permission"):
        spec, allowed = one["spec"], one["spec"]["permissions"]
        patterns = (allowed["configure"], allowed["write"], allowed["read"])
        found.add(("set_permissions", spec["vhost"], _user(one), *patterns))
    for one in manifests.of("TopicPermission"):
        spec, allowed = one["spec"], one["spec"]["permissions"]
        patterns = (allowed["exchange"], allowed["write"], allowed["read"])
        found.add(("set_topic_permissions", spec["vhost"], _user(one), *patterns))
    return found


def _user(document: Document) -> str:
    name: str = document["spec"]["userReference"]["name"]
    return name


def test_the_permissions_are_those_of_the_document(rabbitmq: Manifests) -> None:
    assert _rendered(rabbitmq) == _documented()


def test_a_permission_that_differs_is_noticed(rabbitmq: Manifests) -> None:
    broken = Manifests(copy.deepcopy(rabbitmq.documents))
    broken.find("TopicPermission", "billing")["spec"]["permissions"]["write"] = ".*"
    assert _rendered(broken) != _documented()


def test_every_user_exists_with_both_kinds_of_permission(rabbitmq: Manifests) -> None:
    """A user without topic permissions may publish under every routing key."""
    users = {name_of(one) for one in rabbitmq.of("User")}
    for kind in ("Permission", "TopicPermission"):
        assert {_user(one) for one in rabbitmq.of(kind)} == users
    for one in rabbitmq.of("User"):
        secret = one["spec"]["importCredentialsSecret"]["name"]
        assert secret == f"broker-user-{name_of(one)}"
