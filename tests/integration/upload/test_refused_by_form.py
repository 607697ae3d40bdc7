"""Uploads that are refused before anything is opened: signature, form, permission, age (SPEC 6.3).

Each case goes through a real broker to a real worker, and ends in the dead-letter queue as
it was sent, published or not as SPEC 6.3 says, and the next good upload is served.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import SigningKey
from keyturn.identifiers import format_time
from tools.harness import requests
from tools.harness.worker_under_test import OutgoingRequest, WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

Document = dict[str, Any]
MALFORMED = "malformed_request"
BAD_SIGNATURE = "bad_signature"


def ago(**age: float) -> str:
    return format_time(datetime.now(UTC) - timedelta(**age))


def good(served: WorkerUnderTest, project: str = "acme") -> Document:
    return requests.upload(served.deployment, project, f"form/{requests.new_id()}", b"x").document


# What is changed in a good request, and what the refusal says of it. All forms of a field are in
# tests/unit/keyturn/messages and in contracts/examples.
CHANGES: dict[str, tuple[Document, str]] = {
    "number for a string": ({"key": 7}, "key: "),
    "null for a field": ({"sealed_key": None}, "sealed_key: "),
    "list for an object": ({"metadata": ["author"]}, "metadata: "),
    "unknown field": ({"color": "red"}, "color: "),
    "unknown field further in": ({"body": {"inline": "AA==", "size": 1}}, "size: "),
    "body both ways": ({"body": {"inline": "AA==", "staged": {"size": 72}}}, "body."),
    "key of 901 bytes in 451 characters": ({"key": "k" + "ü" * 450}, "900 bytes"),
    "key that climbs": ({"key": "a/../../other/b"}, "'..' segment"),
    "key with a C1 control": ({"key": "a\u0085b"}, "control characters"),
    "key of half a character": ({"key": "\ud800"}, "not a JSON object"),
    "time of another form": ({"requested_at": "yesterday"}, "requested_at: "),
    "time with 7 digits": ({"requested_at": "2026-11-24T10:00:00.0000000Z"}, "requested_at: "),
    "time as a number": ({"requested_at": 1_790_000_000}, "requested_at: "),
    "metadata of Keyturn's own": ({"metadata": {"enc-algo": "none"}}, "enc-"),
    "metadata too long once encoded": ({"metadata": {"a": "ü" * 400}}, "bytes on the wire"),
    "content type with a line feed": ({"content_type": "text/plain\r\nx: y"}, "content_type: "),
    "content type not ASCII": ({"content_type": "text/plün"}, "content_type: "),
    "content type too long": ({"content_type": "t" * 1025}, "content_type: "),
    "sealed key not base64": (
        {"sealed_key": {"intake_key": "main", "ciphertext": "AA=A"}},
        "sealed_key.ciphertext: ",
    ),
    "body not base64": ({"body": {"inline": "A-_A"}}, "inline: "),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_malformed_field_is_refused(served: WorkerUnderTest, name: str) -> None:
    """Refused under the request's id; the event names the field."""
    change, detail = CHANGES[name]
    await served.assert_rejected(served.sign(good(served) | change), MALFORMED, detail)


@pytest.mark.parametrize("missing", ["key", "requested_at", "sealed_key", "body"])
async def test_a_missing_field_is_refused(served: WorkerUnderTest, missing: str) -> None:
    """A required field is missing."""
    document = good(served)
    del document[missing]
    await served.assert_rejected(served.sign(document), MALFORMED, f"{missing}: ")


@pytest.mark.parametrize(
    ("project", "reported"),
    [
        ("ACME", "ACME"),
        ("../other", "../other"),
        ("acme\n", "acme\n"),
        (7, None),
        (None, None),
    ],
)
async def test_a_malformed_project_is_refused(
    served: WorkerUnderTest, project: object, reported: str | None
) -> None:
    """The event has the project as it was sent, or null."""
    sent = served.sign(good(served) | {"project": project})
    assert sent.rejection is not None
    await served.assert_rejected(
        replace(sent, rejection=sent.rejection | {"project": reported}), MALFORMED, "project: "
    )


async def test_a_missing_project_is_refused(served: WorkerUnderTest) -> None:
    document = good(served)
    sent = served.sign(document)
    assert sent.rejection is not None
    del document["project"]
    body = requests.encode(document)
    headers = requests.headers(body, served.deployment.publisher_key)
    rejection = sent.rejection | {"project": None}
    await served.assert_rejected(
        OutgoingRequest("upload.requested", body, dict(headers), rejection), MALFORMED
    )


@pytest.mark.parametrize("upload_id", ["2F6C9A0E-1111-4111-8111-111111111111", "7", "", 7, None])
async def test_an_unreadable_id_is_refused_without_an_event(
    served: WorkerUnderTest, upload_id: object
) -> None:
    """Without a readable id there is no one to answer."""
    sent = served.sign(good(served) | {"upload_id": upload_id})
    await served.assert_rejected(replace(sent, rejection=None), MALFORMED, "upload_id: ")


def twice(name: str, value: str) -> Callable[[bytes], bytes]:
    return lambda body: body[:-1] + f', "{name}": "{value}"}}'.encode()


# What is done to the bytes of a good request, and the reported project; None: no event. All forms
# are in tests/unit/keyturn/messages/test_fields.py.
BYTES: dict[str, tuple[Callable[[bytes], bytes], dict[str, Any] | None]] = {
    "no JSON": (lambda _: b"key=value", None),
    "not UTF-8": (lambda body: body.replace(b"acme", b"acm\xe9"), None),
    "brackets beyond measure": (lambda _: b"[" * 100_000, None),
    "not a number": (lambda body: body[:-1] + b', "n": NaN}', {"project": "acme"}),
    "project twice": (twice("project", "other"), {"project": None}),
    "id twice": (twice("upload_id", "2f6c9a0e-1111-4111-8111-111111111111"), None),
}


@pytest.mark.parametrize("name", BYTES)
async def test_bytes_that_are_no_json_object_are_refused(
    served: WorkerUnderTest, name: str
) -> None:
    """Signed, but no unambiguous JSON object."""
    change, reported = BYTES[name]
    sent = served.sign(good(served))
    assert sent.rejection is not None
    body = change(sent.body)
    headers = requests.headers(body, served.deployment.publisher_key)
    expected = None if reported is None else sent.rejection | reported
    await served.assert_rejected(
        OutgoingRequest(sent.routing_key, body, dict(headers), expected), MALFORMED
    )


@pytest.mark.parametrize("kind", ["upload.wished", "upload.stored", "", 7, None])
async def test_an_unknown_type_is_refused_without_an_event(
    served: WorkerUnderTest, kind: object
) -> None:
    """No event: which refusal it would be, only its unsigned routing key could say."""
    sent = served.sign(good(served))
    body = requests.encode(good(served) | {"type": kind, "upload_id": sent.request_id})
    headers = requests.headers(body, served.deployment.publisher_key)
    await served.assert_rejected(
        OutgoingRequest(sent.routing_key, body, dict(headers)), MALFORMED, "type must be one of"
    )


@pytest.mark.parametrize("routing_key", ["enroll.requested", "delete.requested"])
async def test_an_upload_on_the_control_queue_is_refused_without_an_event(
    served: WorkerUnderTest, routing_key: str
) -> None:
    """A copy of a genuine request on another queue: a dead letter, and no event of any kind.

    It was once reported as `malformed_request` while the original was stored.
    """
    sent = served.sign(good(served), routing_key=routing_key)
    await served.assert_rejected(replace(sent, rejection=None), "bad_signature", "routing key")


async def test_an_enrollment_on_the_upload_queue_is_refused_without_an_event(
    served: WorkerUnderTest,
) -> None:
    """As with an upload on the control queue."""
    document = requests.enroll(served.deployment, "elsewhere")
    sent = served.sign(document, routing_key="upload.requested")
    await served.assert_rejected(replace(sent, rejection=None), "bad_signature", "routing key")
    assert not served.object_exists(".keyturn/keyrings/elsewhere.json")


def _unsigned(sent: OutgoingRequest) -> dict[str, Any]:
    return {"keyturn-publisher": sent.headers["keyturn-publisher"]}


def _with_narrow_key(served: WorkerUnderTest, sent: OutgoingRequest) -> dict[str, Any]:
    return dict(requests.headers(sent.body, served.deployment.narrow_key))


SIGNATURES: dict[str, Callable[[WorkerUnderTest, OutgoingRequest], dict[str, Any]]] = {
    "no headers": lambda _s, _sent: {},
    "not signed": lambda _s, sent: _unsigned(sent),
    "no publisher": lambda _s, sent: {"keyturn-signature": sent.headers["keyturn-signature"]},
    "unknown publisher": lambda _s, sent: sent.headers | {"keyturn-publisher": "nobody"},
    "publisher a number": lambda _s, sent: sent.headers | {"keyturn-publisher": 7},
    "signature a number": lambda _s, sent: sent.headers | {"keyturn-signature": 7},
    "signature of nothing": lambda _s, sent: sent.headers | {"keyturn-signature": ""},
    "signature not base64": lambda _s, sent: sent.headers | {"keyturn-signature": "ü!"},
    "by a stranger": lambda _s, sent: dict(
        requests.headers(sent.body, SigningKey.from_seed(os.urandom(32)))
    ),
    "by another publisher": _with_narrow_key,
    "in another publisher's name": lambda _s, sent: sent.headers | {"keyturn-publisher": "narrow"},
    "for another deployment": lambda s, sent: dict(
        requests.headers(sent.body, s.deployment.publisher_key, deployment="production")
    ),
    "as an event": lambda s, sent: (
        sent.headers
        | {"keyturn-signature": s.deployment.publisher_key.sign_event("test", sent.body)}
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
async def test_a_bad_signature_is_refused_without_an_event(
    served: WorkerUnderTest, name: str
) -> None:
    """A dead letter, and no event."""
    sent = served.sign(good(served))
    headers = SIGNATURES[name](served, sent)
    await served.assert_rejected(replace(sent, headers=headers, rejection=None), BAD_SIGNATURE)


async def test_bytes_changed_after_signing_are_refused(served: WorkerUnderTest) -> None:
    """One more space makes another message; its refusal is not published under the id inside."""
    sent = served.sign(good(served))
    await served.assert_rejected(
        replace(sent, body=sent.body + b" ", rejection=None), BAD_SIGNATURE
    )


async def test_the_signature_is_checked_before_the_form(served: WorkerUnderTest) -> None:
    """The signature is checked first."""
    await served.assert_rejected(OutgoingRequest("upload.requested", b"{", {}), BAD_SIGNATURE)


def by_narrow(served: WorkerUnderTest, document: Document) -> OutgoingRequest:
    """Signed by a publisher that may not ask for it: the refusal names no project (SPEC 6.3)."""
    sent = served.sign(document)
    assert sent.rejection is not None
    headers = requests.headers(sent.body, served.deployment.narrow_key, publisher="narrow")
    return replace(sent, headers=dict(headers), rejection=sent.rejection | {"project": None})


async def test_a_project_that_is_not_granted_is_refused(served: WorkerUnderTest) -> None:
    sent = by_narrow(served, good(served, "acme"))
    await served.assert_rejected(sent, "not_permitted", "narrow may not send upload.requested")


async def test_a_type_that_is_not_granted_is_refused(served: WorkerUnderTest) -> None:
    sent = by_narrow(served, requests.enroll(served.deployment, "other"))
    await served.assert_rejected(sent, "not_permitted", "narrow may not send enroll.requested")
    assert not served.object_exists(".keyturn/keyrings/other.json")


EXPIRED: dict[str, tuple[dict[str, float], str]] = {
    "last month": ({"days": 30}, "too long ago"),
    "a minute too old": ({"days": 7, "minutes": 1}, "too long ago"),
    "ten minutes ahead": ({"minutes": -10}, "in the future"),
}


@pytest.mark.parametrize("name", EXPIRED)
async def test_an_expired_request_is_refused(served: WorkerUnderTest, name: str) -> None:
    age, detail = EXPIRED[name]
    sent = served.sign(good(served) | {"requested_at": ago(**age)})
    await served.assert_rejected(sent, "request_expired", detail)


@pytest.mark.parametrize("age", [{"days": 6.9}, {"minutes": -4}])
async def test_a_request_within_its_age_is_served(
    served: WorkerUnderTest, age: dict[str, float]
) -> None:
    """Within a week, and within what clocks may differ, a request is served."""
    event = await served.publish_and_wait(good(served) | {"requested_at": ago(**age)})
    assert event["type"] == "upload.stored"


async def test_checks_happen_in_the_order_of_the_specification(served: WorkerUnderTest) -> None:
    """Form before permission, permission before age, age before what is inside (SPEC 6.3)."""
    wrong = good(served) | {
        "key": "/",
        "requested_at": ago(days=30),
        "sealed_key": {"intake_key": "unheard-of", "ciphertext": ""},
    }
    await served.assert_rejected(by_narrow(served, wrong), MALFORMED)
    well_formed = wrong | {"key": "k", "upload_id": requests.new_id()}
    await served.assert_rejected(by_narrow(served, well_formed), "not_permitted")
    permitted = well_formed | {"upload_id": requests.new_id()}
    await served.assert_rejected(served.sign(permitted), "request_expired")
    timely = permitted | {"requested_at": requests.now(), "upload_id": requests.new_id()}
    await served.assert_rejected(served.sign(timely), "unknown_intake_key", "unheard-of")
