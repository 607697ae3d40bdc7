"""Who may ask for what, and which secrets open for it: the checks of SPEC 6.3 and 3.2."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from keyturn.crypto import IntakeKey, SigningKey, VerifyKey, to_base64
from keyturn.errors import (
    BadSealError,
    BadSignatureError,
    CodedError,
    MalformedRequestError,
    NotPermittedError,
    RequestExpiredError,
    UnknownIntakeKeyError,
)
from keyturn.identifiers import format_time
from keyturn.messages import RequestOrigin, SealedSecret
from keyturn.topology import CONTROL_QUEUE, CONTROL_REQUESTS, UPLOAD_QUEUE, UPLOAD_REQUESTS
from keyturn_workers.core.authorization import (
    Arrival,
    Rules,
    Signer,
    authorize,
    check_age,
    rejection_of,
    verify,
)
from keyturn_workers.core.grants import Grant
from keyturn_workers.core.sealed_secrets import open_secret

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
OLD, NEW, NARROW, STRANGER = (SigningKey.from_seed(bytes([n]) * 32) for n in range(4))
WEEK = timedelta(days=7)


def grant(*keys: SigningKey, may: str = "*", projects: str = "*") -> Grant:
    public = tuple(VerifyKey.from_bytes(key.public_bytes) for key in keys)
    return Grant(public, frozenset(may.split()), frozenset(projects.split()))


RULES = Rules(
    "test",
    {
        "api": grant(OLD, NEW),
        "narrow": grant(NARROW, may="upload.requested", projects="acme beta"),
        "sweeper": grant(NARROW, may="sweep.requested", projects="acme"),
        "intake": replace(grant(NARROW, may="upload.requested"), sources=frozenset({"drop"})),
        "nothing": grant(NARROW, may="", projects=""),
        "rotator": grant(NARROW, may="rotation.requested enroll.requested"),
        "keeper": grant(NARROW, may="rotation.requested enroll.requested customer_key"),
        "only-keys": grant(NARROW, may="customer_key"),
    },
    WEEK,
)


def headers(
    body: bytes, key: SigningKey, publisher: str = "api", deployment: str = "test"
) -> dict[str, Any]:
    return {
        "keyturn-publisher": publisher,
        "keyturn-signature": key.sign_request(deployment, publisher, body),
    }


def upload(**changes: Any) -> bytes:
    document = {
        "type": "upload.requested",
        "upload_id": "2f6c9a0e-1111-4111-8111-111111111111",
        "project": "acme",
        "key": "k",
        "requested_at": format_time(NOW),
        "sealed_key": {"intake_key": "main", "ciphertext": ""},
        "body": {"inline": ""},
    }
    return json.dumps(document | changes).encode()


def sweep(project: str) -> bytes:
    document = {
        "type": "sweep.requested",
        "sweep_id": "2f6c9a0e-1111-4111-8111-111111111111",
        "project": project,
        "requested_at": format_time(NOW),
    }
    return json.dumps(document).encode()


def admitted(
    body: bytes,
    publisher: str = "api",
    *,
    routed_as: str = "upload.requested",
    queue: str = "",
    now: datetime = NOW,
) -> str:
    """The type of the admitted request."""
    control = routed_as in CONTROL_REQUESTS or queue == CONTROL_QUEUE
    served = CONTROL_REQUESTS if control else UPLOAD_REQUESTS
    queue = queue or (CONTROL_QUEUE if control else UPLOAD_QUEUE)
    signer = Signer(publisher, RULES.publishers[publisher])
    request = authorize(body, signer, Arrival(queue, served, routed_as))
    check_age(request, RULES.max_age, now)
    return request.type


@pytest.mark.parametrize("key", [OLD, NEW], ids=["old key", "new key"])
def test_either_key_of_a_publisher(key: SigningKey) -> None:
    """While a publisher changes its key, both are good."""
    assert verify(b"body", headers(b"body", key), RULES).name == "api"


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"keyturn-publisher": "api"},
        headers(b"body", STRANGER),
        headers(b"body", NARROW),
        headers(b"body", OLD, "nobody"),
        headers(b"body", OLD, deployment="production"),
        headers(b"other", OLD),
        headers(b"body", NARROW, "narrow") | {"keyturn-publisher": "sweeper"},
        headers(b"body", OLD) | {"keyturn-publisher": 7},
        headers(b"body", OLD) | {"keyturn-publisher": b"api"},
        headers(b"body", OLD) | {"keyturn-signature": 7},
        headers(b"body", OLD) | {"keyturn-signature": None},
        headers(b"body", OLD) | {"keyturn-signature": "ü"},
        {"keyturn-publisher": "api", "keyturn-signature": OLD.sign_event("test", b"body")},
    ],
)
def test_a_request_without_a_valid_signature_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(BadSignatureError):
        verify(b"body", found, RULES)


def test_a_signature_names_its_publisher() -> None:
    """Two publishers with one key: what one signed is not the other's word."""
    signed = headers(b"body", NARROW, "narrow")
    assert verify(b"body", signed, RULES).name == "narrow"
    with pytest.raises(BadSignatureError):
        verify(b"body", signed | {"keyturn-publisher": "nothing"}, RULES)


@pytest.mark.parametrize(
    ("age", "error"),
    [
        (WEEK, None),
        (WEEK + timedelta(microseconds=1), RequestExpiredError),
        (timedelta(days=30), RequestExpiredError),
        (timedelta(minutes=-5), None),
        (timedelta(minutes=-5, microseconds=-1), RequestExpiredError),
        (timedelta(days=-365), RequestExpiredError),
    ],
)
def test_age(age: timedelta, error: type[CodedError] | None) -> None:
    """At most the longest age, at most five minutes ahead; the edges are inside."""
    body = upload(requested_at=format_time(NOW - age))
    if error is None:
        assert admitted(body) == "upload.requested"
    else:
        with pytest.raises(error):
            admitted(body)


@pytest.mark.parametrize(
    ("publisher", "body", "permitted"),
    [
        ("api", upload(project="anything"), True),
        ("narrow", upload(project="beta"), True),
        ("narrow", upload(project="gamma"), False),
        ("narrow", upload(project="acme-2"), False),
        ("nothing", upload(), False),
        ("narrow", sweep("acme"), False),
        ("sweeper", sweep("acme"), True),
        ("sweeper", sweep("*"), False),
        ("api", sweep("*"), True),
    ],
)
def test_permission(publisher: str, body: bytes, *, permitted: bool) -> None:
    """By type and by project; all projects at once take the right to all."""
    kind = json.loads(body)["type"]
    if permitted:
        assert admitted(body, publisher, routed_as=kind) == kind
    else:
        with pytest.raises(NotPermittedError):
            admitted(body, publisher, routed_as=kind)


@pytest.mark.parametrize("name", ["drop", "other", "*"])
def test_a_source_is_named_only_with_the_grant_for_it(name: str) -> None:
    """The right to upload is not the right to have a bucket read (SPEC 6.4)."""
    found = {"name": name, "key": "k", "etag": "e", "size": 1}
    document = json.loads(upload(body={"source": found}))
    del document["sealed_key"]
    body = json.dumps(document).encode()
    if name == "drop":
        assert admitted(body, "intake") == "upload.requested"
    else:
        error = MalformedRequestError if name == "*" else NotPermittedError
        with pytest.raises(error) as refused:
            admitted(body, "intake")
        if name == "other":
            reason = 'source other: its grant does not list it in "sources"'
            assert refused.value.detail.endswith(reason)
    with pytest.raises(MalformedRequestError if name == "*" else NotPermittedError):
        admitted(body)


@pytest.mark.parametrize("routed_as", ["sweep.requested", "enroll.requested"])
@pytest.mark.parametrize("key", ["k", "/"], ids=["well-formed", "malformed"])
def test_type_and_routing_key(routed_as: str, key: str) -> None:
    """A genuine request that an attacker moved: its publisher said nothing wrong."""
    with pytest.raises(BadSignatureError, match="routing key"):
        admitted(upload(key=key), routed_as=routed_as)


def test_routing_key_on_the_same_queue() -> None:
    """A type that the queue carries, under another type's routing key."""
    with pytest.raises(BadSignatureError, match="routing key"):
        admitted(sweep("acme"), routed_as="delete.requested")


def test_out_of_a_retry_queue() -> None:
    """What waited comes back under its queue's name, which counts as right."""
    assert admitted(upload(), routed_as="keyturn.upload") == "upload.requested"
    assert admitted(sweep("acme"), routed_as="keyturn.control", queue="keyturn.control")
    with pytest.raises(BadSignatureError):
        admitted(sweep("acme"), routed_as="keyturn.upload")
    with pytest.raises(BadSignatureError):
        admitted(upload(), routed_as="keyturn.control", queue="keyturn.control")


@pytest.mark.parametrize("routed_as", ["", "anything", "keyturn.control", "keyturn.upload.dead"])
def test_any_other_routing_key(routed_as: str) -> None:
    """Nothing of ours publishes under it."""
    with pytest.raises(BadSignatureError):
        admitted(upload(), routed_as=routed_as)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"type": "x.requested"}', b'{"type": 7}'])
def test_a_type_that_cannot_be_read_is_malformed(body: bytes) -> None:
    """Its publisher signed it so: wherever it arrived, it belongs nowhere."""
    with pytest.raises(MalformedRequestError):
        admitted(body, routed_as="anything")


def refusal(body: bytes, publisher: str) -> tuple[str, str | None] | None:
    """The type and the project of a refusal's event."""
    signer = Signer(publisher, RULES.publishers[publisher])
    event = rejection_of(body, signer, MalformedRequestError("x"), format_time(NOW))
    if event is None:
        return None
    assert event.origin == RequestOrigin.of(publisher, body)
    return event.type, event.project


@pytest.mark.parametrize(
    ("publisher", "body", "expected"),
    [
        ("api", upload(key="/"), ("upload.rejected", "acme")),
        ("narrow", upload(key="/"), ("upload.rejected", "acme")),
        ("narrow", upload(key="/", project="gamma"), ("upload.rejected", None)),
        ("narrow", upload(project="gamma"), ("upload.rejected", None)),
        ("narrow", sweep("acme"), ("sweep.rejected", None)),
        ("sweeper", sweep("acme"), ("sweep.rejected", "acme")),
        ("sweeper", sweep("*"), ("sweep.rejected", None)),
        ("api", sweep("*"), ("sweep.rejected", "*")),
        ("nothing", upload(), ("upload.rejected", None)),
        ("api", upload(project=7), ("upload.rejected", None)),
        ("api", upload(upload_id="x"), None),
        ("api", upload(type="x"), None),
    ],
)
def test_a_refusal_names_only_a_project_of_its_publisher(
    publisher: str, body: bytes, expected: tuple[str, str | None] | None
) -> None:
    """No publisher causes a refusal in a project that is not its own."""
    assert refusal(body, publisher) == expected


def test_order() -> None:
    """Form, then permission, then age: the first that fails decides."""
    everything = {"key": "/", "project": "gamma", "requested_at": "2020-01-01T00:00:00Z"}
    with pytest.raises(MalformedRequestError):
        admitted(upload(**everything), "narrow")
    with pytest.raises(NotPermittedError):
        admitted(upload(**everything | {"key": "k"}), "narrow")
    with pytest.raises(RequestExpiredError):
        admitted(upload(**everything | {"key": "k", "project": "acme"}), "narrow")


def test_refusals_repeat_no_value() -> None:
    """A secret in the wrong field is in no refusal."""
    secret = "kt_0123456789abcdef0123456789abcdef"
    for changes in (
        {"key": {"api_key": secret}},
        {"content_type": f"{secret}\n"},
        {"sealed_key": secret},
        {"metadata": {"enc-x": secret}},
        {"requested_at": secret},
        {"body": {"inline": f"{secret}!"}},
    ):
        with pytest.raises(MalformedRequestError) as caught:
            admitted(upload(**changes))
        assert secret not in str(caught.value)
        assert caught.value.__cause__ is None


def sealed(secret: bytes, info: bytes, intake: IntakeKey, name: str = "main") -> SealedSecret:
    return SealedSecret(intake_key=name, ciphertext=to_base64(intake.public_key.seal(secret, info)))


@pytest.fixture(scope="module")
def intake() -> IntakeKey:
    return IntakeKey.from_seed(os.urandom(32))


def test_secret(intake: IntakeKey) -> None:
    secret = os.urandom(32)
    assert open_secret(sealed(secret, b"info", intake), b"info", {"main": intake}) == secret


def test_secret_for_another_intake_key(intake: IntakeKey) -> None:
    with pytest.raises(UnknownIntakeKeyError, match="retired"):
        open_secret(sealed(bytes(32), b"info", intake, "retired"), b"info", {"main": intake})
    other = IntakeKey.from_seed(os.urandom(32))
    with pytest.raises(BadSealError):
        open_secret(sealed(bytes(32), b"info", other), b"info", {"main": intake})


def test_secret_for_something_else(intake: IntakeKey) -> None:
    with pytest.raises(BadSealError, match="does not open"):
        open_secret(sealed(bytes(32), b"other", intake), b"info", {"main": intake})


@pytest.mark.parametrize("size_bytes", [0, 31, 33, 64])
def test_secret_of_another_length(intake: IntakeKey, size_bytes: int) -> None:
    with pytest.raises(BadSealError, match="32 bytes"):
        open_secret(sealed(bytes(size_bytes), b"info", intake), b"info", {"main": intake})


_CUSTOMER_KEY = {"customer_key": {"store": "kms-eu", "key": "acme"}}
_SEALED_KEK = {"sealed_kek": {"intake_key": "main", "ciphertext": ""}}


@pytest.mark.parametrize(
    ("publisher", "fields", "is_admitted"),
    [
        ("api", _CUSTOMER_KEY, True),
        ("keeper", _CUSTOMER_KEY, True),
        ("keeper", _SEALED_KEK, True),
        ("rotator", _SEALED_KEK, True),
        ("rotator", _CUSTOMER_KEY, False),
        ("rotator", _SEALED_KEK | _CUSTOMER_KEY, False),
        ("only-keys", _CUSTOMER_KEY, False),
    ],
)
def test_a_customer_key_is_named_only_with_the_right_to(
    publisher: str, fields: dict[str, Any], *, is_admitted: bool
) -> None:
    for kind, id_field, needed in (
        ("rotation.requested", "rotation_id", {}),
        ("enroll.requested", "request_id", _SEALED_KEK),
    ):
        document = {
            "type": kind,
            id_field: "2f6c9a0e-1111-4111-8111-111111111111",
            "project": "acme",
            "requested_at": format_time(NOW),
        }
        body = json.dumps(document | needed | fields).encode()
        if is_admitted:
            assert admitted(body, publisher, routed_as=kind) == kind
        else:
            with pytest.raises(NotPermittedError):
                admitted(body, publisher, routed_as=kind)
