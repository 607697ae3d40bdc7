"""Schemas, examples and AsyncAPI are what the models and the topology say (SPEC 6)."""

import json
from pathlib import PurePosixPath
from typing import Any

from keyturn.messages import (
    AUDIT_MODELS,
    EVENT_MODELS,
    MARK_MODELS,
    REQUEST_MODELS,
    WORKER_REPORT_MODELS,
)
from keyturn.topology import (
    AUDIT_RECORDED,
    KEYRING_MARKED,
    PUBLISHER_EVENTS,
    REQUESTS,
    WORKER_REPORTED,
    audit_queue,
    queues,
)
from tools import generate

_TYPES = {
    *REQUEST_MODELS,
    *EVENT_MODELS,
    *AUDIT_MODELS,
    *WORKER_REPORT_MODELS,
    *MARK_MODELS,
}
_BY_HAND = {PurePosixPath(f"examples/{name}.json") for name in (*_TYPES, "sealed")}


def test_generated_files_are_what_is_committed() -> None:
    """Where this fails: `python -m tools.generate`, and look at the difference."""
    for path, text in generate.files().items():
        assert (generate.ROOT / path).read_text(encoding="utf-8") == text, path


def test_there_is_nothing_besides_the_generated_files() -> None:
    found = {
        PurePosixPath(path.relative_to(generate.ROOT).as_posix())
        for folder in ("schemas", "examples")
        for path in (generate.ROOT / folder).rglob("*.json")
    }
    below = {p for p in generate.files() if p.parts[0] in ("schemas", "examples")}
    assert found == below | _BY_HAND


def test_every_message_has_a_model_and_every_model_a_schema() -> None:
    assert set(REQUEST_MODELS) == set(REQUESTS)
    assert set(EVENT_MODELS) == set(PUBLISHER_EVENTS)
    assert set(AUDIT_MODELS) == {AUDIT_RECORDED}
    assert set(WORKER_REPORT_MODELS) == {WORKER_REPORTED}
    assert set(MARK_MODELS) == {KEYRING_MARKED}
    schemas = {p.stem for p in generate.files() if p.parts[0] == "schemas"}
    assert schemas == _TYPES


def test_asyncapi_names_the_topology() -> None:
    document = json.loads((generate.ROOT / "asyncapi.json").read_text(encoding="utf-8"))
    declared = {queue["name"]: queue for queue in document["x-queues"]}
    every = (*queues(), audit_queue())
    assert list(declared) == [queue.name for queue in every]
    for queue in every:
        assert declared[queue.name]["arguments"] == dict(queue.arguments)
        assert declared[queue.name]["bindings"] == list(queue.bindings)
    actions = {name: o["action"] for name, o in document["operations"].items()}
    assert {n for n, action in actions.items() if action == "receive"} == set(REQUEST_MODELS)
    sent = {n for n, action in actions.items() if action == "send"}
    assert sent == {*EVENT_MODELS, *AUDIT_MODELS, *WORKER_REPORT_MODELS, *MARK_MODELS}


def test_asyncapi_references_resolve() -> None:
    document = json.loads((generate.ROOT / "asyncapi.json").read_text(encoding="utf-8"))
    references = list(_references(document))
    assert references
    for reference in references:
        file, _, pointer = reference.partition("#")
        if file:
            assert (generate.ROOT / file).is_file(), reference
        else:
            _resolve(document, pointer)


def _references(node: Any) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _resolve(document: Any, pointer: str) -> None:
    for part in pointer.strip("/").split("/"):
        document = document[part]
