"""The documents and manifests set the policies of the specification (SPEC 6.9)."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from keyturn.topology import DEAD_POLICIES, DEAD_QUEUES, queues

_ROOT = Path(__file__).parents[3]
_EXPECTED = {(p.name, p.pattern): dict(p.definition) for p in DEAD_POLICIES}


def _commands(path: str) -> dict[tuple[str, str], Any]:
    text = (_ROOT / path).read_text(encoding="utf-8").replace("\\\n#", "")
    found: dict[tuple[str, str], Any] = {}
    for line in re.findall(r"rabbitmqctl (set_policy .*)", text):
        *options, name, pattern, definition = shlex.split(line)
        assert options[-2:] == ["--apply-to", "quorum_queues"]
        found[name, pattern] = json.loads(definition)
    return found


@pytest.mark.parametrize("path", ["docs/howto/deploy.md", "compose.yaml"])
def test_the_commands_set_the_policies(path: str) -> None:
    assert _commands(path) == _EXPECTED


def test_the_example_for_kubernetes_sets_the_policies() -> None:
    path = _ROOT / "deploy/kubernetes/examples/rabbitmq/policies.yaml"
    specs = [each["spec"] for each in yaml.safe_load_all(path.read_text()) if each]
    assert {(s["name"], s["pattern"]): s["definition"] for s in specs} == _EXPECTED
    assert {(s["vhost"], s["applyTo"]) for s in specs} == {("keyturn", "queues")}


def test_every_dead_letter_queue_has_one_policy_that_its_arguments_leave_in_force() -> None:
    for queue in queues():
        policies = [p for p in DEAD_POLICIES if re.search(p.pattern, queue.name)]
        assert len(policies) == (queue.name in DEAD_QUEUES)
        for policy in policies:
            assert not {f"x-{name}" for name in policy.definition} & set(queue.arguments)
