"""Schemas and AsyncAPI are what the models say; examples pass or fail as they should (SPEC 6)."""

import json
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from keyturn.crypto import (
    IntakeKey,
    SignatureError,
    SigningKey,
    VerifyKey,
    from_base64,
    kek_info,
    open_sealed,
    session_info,
    transport_context,
    upload_info,
    user_kek,
)
from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    AUDIT_MODELS,
    EVENT_MODELS,
    MARK_MODELS,
    REQUEST_MODELS,
    WORKER_REPORT_MODELS,
    UploadRequested,
    encode,
    encode_audit,
    encode_mark,
    encode_worker_report,
    parse_audit,
    parse_event,
    parse_mark,
    parse_request,
    parse_worker_report,
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
from tools.generate.examples import compact

TYPES = [*REQUEST_MODELS, *EVENT_MODELS, *AUDIT_MODELS, *WORKER_REPORT_MODELS, *MARK_MODELS]
_BY_HAND = {PurePosixPath(f"examples/{name}.json") for name in (*TYPES, "sealed")}


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
    assert schemas == set(TYPES)


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


# The examples, by model and by schema.


EXAMPLES = generate.ROOT / "examples"
SEALED: dict[str, str] = json.loads((EXAMPLES / "sealed.json").read_text(encoding="utf-8"))
OF_TYPE: dict[str, Any] = {
    name: json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8")) for name in TYPES
}


def _cases(kind: str) -> list[Any]:
    return [
        pytest.param(name, example, id=f"{name}-{title}")
        for name, examples in OF_TYPE.items()
        for title, example in examples[kind].items()
    ]


def _parse(message_type: str, body: bytes) -> Any:
    if message_type in AUDIT_MODELS:
        return parse_audit(body)
    if message_type in WORKER_REPORT_MODELS:
        return parse_worker_report(body)
    if message_type in MARK_MODELS:
        return parse_mark(body)
    return parse_request(body) if message_type in REQUEST_MODELS else parse_event(body)


def _encode(message: Any) -> bytes:
    if message.type in WORKER_REPORT_MODELS:
        return encode_worker_report(message)
    if message.type in MARK_MODELS:
        return encode_mark(message)
    return encode_audit(message) if message.type in AUDIT_MODELS else encode(message)


@cache
def _validator(message_type: str) -> Draft202012Validator:
    schema = json.loads((generate.ROOT / "schemas" / f"{message_type}.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(("message_type", "example"), _cases("valid"))
def test_valid_example_passes_model_and_schema(message_type: str, example: Any) -> None:
    message = _parse(message_type, compact(example))
    assert message.type == message_type
    validator = _validator(message_type)
    validator.validate(example)
    validator.validate(json.loads(_encode(message)))


@pytest.mark.parametrize(("message_type", "example"), _cases("invalid"))
def test_invalid_example_is_refused_with_its_code(message_type: str, example: Any) -> None:
    with pytest.raises(MalformedRequestError) as refused:
        _parse(message_type, example["body"].encode())
    assert refused.value.code == example["code"]
    assert example["reason"]


@pytest.mark.parametrize("message_type", TYPES)
def test_every_type_has_examples_that_pass_and_that_fail(message_type: str) -> None:
    assert OF_TYPE[message_type]["valid"]
    assert OF_TYPE[message_type]["invalid"]


@pytest.mark.parametrize("message_type", TYPES)
def test_a_message_without_a_required_field_or_with_an_unknown_one(message_type: str) -> None:
    """Requests refuse unknown fields; what is read may have grown."""
    schema = json.loads((generate.ROOT / "schemas" / f"{message_type}.json").read_text("utf-8"))
    valid = next(iter(OF_TYPE[message_type]["valid"].values()))
    # There is one type of audit record, so that its parser does not look at it.
    for field in set(schema["required"]) - ({"type"} if message_type in AUDIT_MODELS else set()):
        body = compact({name: value for name, value in valid.items() if name != field})
        with pytest.raises(MalformedRequestError):
            _parse(message_type, body)
    grown = compact({**valid, "color": "blue"})
    if message_type in REQUEST_MODELS:
        with pytest.raises(MalformedRequestError):
            _parse(message_type, grown)
    else:
        assert _parse(message_type, grown).type == message_type


@pytest.mark.parametrize("message_type", TYPES)
def test_signed_example_verifies_for_its_deployment_and_no_other(message_type: str) -> None:
    signed = json.loads((EXAMPLES / "signed.json").read_text("utf-8"))[message_type]
    body, signature = signed["body"].encode(), signed["headers"]["keyturn-signature"]
    assert body == compact(json.loads(body))
    if message_type in REQUEST_MODELS:
        key = _public("publisher_seed")
        key.verify_request("default", signed["headers"]["keyturn-publisher"], body, signature)
    else:
        key = _public("event_seed")
        verify = key.verify_mark if message_type in MARK_MODELS else key.verify_event
        verify("default", body, signature)
        with pytest.raises(SignatureError):
            verify("elsewhere", body, signature)
    if message_type not in EVENT_MODELS | AUDIT_MODELS | WORKER_REPORT_MODELS:
        with pytest.raises(SignatureError):
            key.verify_event("default", body, signature)


def test_sealed_examples_open_with_the_examples_keys() -> None:
    intake = IntakeKey.from_seed(from_base64(SEALED["intake_seed"]))
    upload = _example("upload.requested", "inline")
    assert isinstance(upload, UploadRequested)
    assert upload.sealed_key is not None
    info = upload_info(upload.upload_id, upload.project, upload.key)
    transport_key = intake.open(from_base64(upload.sealed_key.ciphertext), info)
    assert transport_key == from_base64(SEALED["transport_key"])
    sealed = from_base64(SEALED["inline"])
    opened = open_sealed(transport_key, transport_context(upload.upload_id), sealed)
    assert opened.decode() == SEALED["plaintext"]


def test_the_example_under_a_session_opens_with_the_examples_keys() -> None:
    intake = IntakeKey.from_seed(from_base64(SEALED["intake_seed"]))
    upload = _example("upload.requested", "under-a-session")
    assert isinstance(upload, UploadRequested)
    assert upload.sealed_key is not None
    assert upload.sealed_key.session is not None
    info = session_info(SEALED["deployment"], SEALED["publisher"])
    secret = intake.open(from_base64(upload.sealed_key.session), info)
    assert secret == from_base64(SEALED["session_secret"])
    info = upload_info(upload.upload_id, upload.project, upload.key)
    transport_key = open_sealed(secret, info, from_base64(upload.sealed_key.ciphertext))
    assert transport_key == from_base64(SEALED["transport_key"])


def test_sealed_keks_of_examples_are_those_of_their_api_keys() -> None:
    intake = IntakeKey.from_seed(from_base64(SEALED["intake_seed"]))
    enroll: Any = _example("enroll.requested", "adopting")
    rotate: Any = _example("rotation.requested", "minimal")

    def opened(ciphertext: str, info: bytes) -> bytes:
        return intake.open(from_base64(ciphertext), info)

    kek = opened(enroll.sealed_kek.ciphertext, kek_info("enroll", enroll.request_id, "acme"))
    assert kek == user_kek(SEALED["api_key"], "acme").reveal()
    new = opened(rotate.sealed_kek.ciphertext, kek_info("rotation", rotate.rotation_id, "acme"))
    assert new == user_kek(SEALED["new_api_key"], "acme").reveal()


def _example(message_type: str, title: str) -> Any:
    return parse_request(compact(OF_TYPE[message_type]["valid"][title]))


def _public(seed: str) -> VerifyKey:
    return VerifyKey.from_bytes(SigningKey.from_seed(from_base64(SEALED[seed])).public_bytes)
