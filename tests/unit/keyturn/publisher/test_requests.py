"""Requests as a publisher builds them, with real cryptography and without a network."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from keyturn.crypto import (
    IntakeKey,
    SealError,
    SigningKey,
    VerifyKey,
    from_base64,
    kek_info,
    upload_info,
    user_kek,
)
from keyturn.errors import BadSealError, MalformedRequestError
from keyturn.messages import (
    DeleteRequested,
    InlineBody,
    RotationRequested,
    SweepRequested,
    parse_request,
)
from keyturn.publisher import requests
from keyturn.publisher.sessions import SealingSession
from keyturn.settings import NamedIntakeKey, PublisherSettings
from keyturn_workers.pipeline.upload.sessions import OpenedSessions

if TYPE_CHECKING:
    from collections.abc import Callable

INTAKE = IntakeKey.from_seed(bytes(32))
KEY = SigningKey.from_seed(b"p" * 32)
API_KEY = "kt_" + "k" * 43
SETTINGS = PublisherSettings(
    deployment="test",
    amqp_url="amqp://localhost/",
    publisher_name="billing",
    publisher_key=KEY,
    intake_public_key=NamedIntakeKey("main", INTAKE.public_key),
    event_public_key=VerifyKey.from_bytes(KEY.public_bytes),
    pepper="pepper",
)
SESSION = SealingSession(SETTINGS)


def new_draft(**change: Any) -> requests.UploadDraft:
    given_: dict[str, Any] = {
        "project": "acme",
        "object_key": "a",
        "content_type": None,
        "metadata": None,
        "upload_id": requests.new_id(),
    }
    return requests.draft_upload(SESSION, **(given_ | change))


def _enroll(**change: Any) -> Any:
    given_: dict[str, Any] = {
        "project": "acme",
        "api_key": API_KEY,
        "plaintext": False,
        "adopt": False,
        "request_id": requests.new_id(),
    }
    return requests.build_enroll(SETTINGS, **(given_ | change))


def _rotation(**change: Any) -> RotationRequested:
    given_: dict[str, Any] = {
        "project": "acme",
        "api_key": API_KEY,
        "expected_generation": None,
        "rotation_id": requests.new_id(),
    }
    return requests.build_rotation(SETTINGS, **(given_ | change))


def _sweep(**change: Any) -> SweepRequested:
    given_: dict[str, Any] = {
        "requested_at": requests.now(),
        "project": "acme",
        "master_key": None,
        "encrypt_plaintext": False,
        "repair": False,
        "sweep_id": requests.new_id(),
    }
    return requests.build(SweepRequested, **(given_ | change))


def _delete(project: str, key: str) -> DeleteRequested:
    return requests.build(
        DeleteRequested,
        requested_at=requests.now(),
        project=project,
        key=key,
        request_id=requests.new_id(),
    )


def test_drafts_transport_key_is_sealed_for_this_upload_alone() -> None:
    draft = new_draft()
    request = draft.with_body(InlineBody(inline=""))
    sealed = request.sealed_key
    assert sealed is not None
    right = upload_info(request.upload_id, "acme", "a")
    opened = OpenedSessions("test", {"main": INTAKE})
    assert opened.open_key(sealed, right, "billing") == draft.transport_key.reveal()
    for wrong in (
        upload_info(request.upload_id, "acme", "b"),
        upload_info(request.upload_id, "other", "a"),
        upload_info(str(uuid.uuid4()), "acme", "a"),
    ):
        with pytest.raises(BadSealError):
            opened.open_key(sealed, wrong, "billing")


def test_no_two_drafts_share_a_transport_key() -> None:
    upload_id = requests.new_id()
    assert (
        new_draft(upload_id=upload_id).transport_key != new_draft(upload_id=upload_id).transport_key
    )


def test_signed_request_is_what_its_receiver_parses() -> None:
    request = new_draft(metadata={"author": "Kim Grün"}).with_body(InlineBody(inline="AAAA"))
    signed = requests.sign(SETTINGS, request)
    assert parse_request(signed.body) == request
    assert (signed.request_id, signed.type) == (request.upload_id, "upload.requested")
    public = VerifyKey.from_bytes(KEY.public_bytes)
    signature = signed.headers["keyturn-signature"]
    public.verify_request("test", "billing", signed.body, signature)
    for deployment, publisher in (("other", "billing"), ("test", "other")):
        with pytest.raises(SealError):
            public.verify_request(deployment, publisher, signed.body, signature)


def test_no_secret_shows_in_a_draft() -> None:
    draft = new_draft()
    assert draft.transport_key.reveal().hex() not in repr(draft)
    assert str(draft.transport_key.reveal()) not in repr(draft)


@pytest.mark.parametrize("as_secret", [True, False])
def test_enrollment_seals_the_kek_of_the_key_and_the_pepper(as_secret: bool) -> None:
    request = _enroll(api_key=SecretStr(API_KEY) if as_secret else API_KEY)
    info = kek_info("enroll", request.request_id, "acme")
    kek = INTAKE.open(from_base64(request.sealed_kek.ciphertext), info)
    assert kek == user_kek(API_KEY, "acme", "pepper").reveal()


def test_a_customer_key_is_a_store_and_a_key_of_it() -> None:
    arn = "arn:aws:kms:eu-central-1:111122223333:key/a"
    rotation = _rotation(api_key=None, customer_key=f"kms-eu/{arn}")
    assert rotation.sealed_kek is None
    for request in (rotation, _rotation(customer_key=f"kms-eu/{arn}")):
        assert request.customer_key is not None
        assert (request.customer_key.store, request.customer_key.key) == ("kms-eu", arn)
    assert _enroll(customer_key="bao/acme").customer_key.key == "acme"


@pytest.mark.parametrize(
    "make",
    [
        lambda: _rotation(api_key=None),
        lambda: _rotation(customer_key="kms-eu"),
        lambda: _rotation(customer_key="/key"),
        lambda: _rotation(customer_key="kms-eu/"),
        lambda: _rotation(customer_key="KMS/key"),
        lambda: _rotation(customer_key="kms-eu/a key\n"),
        lambda: _rotation(customer_key="kms-eu/" + "k" * 2049),
        lambda: _enroll(customer_key="kms-eu/key", plaintext=True),
    ],
)
def test_a_request_without_a_key_or_with_a_malformed_one_is_not_made(
    make: Callable[[], object],
) -> None:
    with pytest.raises(MalformedRequestError):
        make()


def test_a_rotation_seals_the_kek_of_the_new_key_for_this_rotation_alone() -> None:
    request = _rotation(expected_generation=3)
    assert request.expected_generation == 3
    assert request.sealed_kek is not None
    sealed = from_base64(request.sealed_kek.ciphertext)
    kek = INTAKE.open(sealed, kek_info("rotation", request.rotation_id, "acme"))
    assert kek == user_kek(API_KEY, "acme", "pepper").reveal()
    for wrong in (
        kek_info("enroll", request.rotation_id, "acme"),
        kek_info("rotation", request.rotation_id, "other"),
        kek_info("rotation", str(uuid.uuid4()), "acme"),
    ):
        with pytest.raises(SealError):
            INTAKE.open(sealed, wrong)


@pytest.mark.parametrize("build", [_enroll, _rotation])
def test_no_api_key_shows_in_what_is_sent(build: Any) -> None:
    body = requests.sign(SETTINGS, build(api_key=SecretStr(API_KEY))).body
    assert API_KEY.encode() not in body
    assert user_kek(API_KEY, "acme", "pepper").reveal().hex() not in body.decode()


@pytest.mark.parametrize(
    "build",
    [
        lambda project: _rotation(project=project),
        lambda project: _sweep(project=project),
        lambda project: _delete(project, "a"),
    ],
)
@pytest.mark.parametrize("project", ["", "Acme", "_all", "a" * 64, "a/b"])
def test_control_requests_check_the_project_as_workers_do(build: Any, project: str) -> None:
    with pytest.raises(MalformedRequestError, match="project"):
        build(project)


def test_a_sweep_of_all_projects_says_what_to_do() -> None:
    request = _sweep(project="*", master_key="2027", repair=True)
    assert parse_request(requests.sign(SETTINGS, request).body) == request
    assert (request.project, request.master_key, request.repair) == ("*", "2027", True)
    assert request.encrypt_plaintext is False


@pytest.mark.parametrize("change", [{"master_key": "No Name"}, {"sweep_id": "A" * 36}])
def test_a_sweep_of_wrong_names_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequestError, match=next(iter(change))):
        _sweep(**change)


@pytest.mark.parametrize("generation", [0, -1])
def test_a_rotation_from_no_generation_is_refused(generation: int) -> None:
    with pytest.raises(MalformedRequestError, match="expected_generation"):
        _rotation(expected_generation=generation)


@given(st.text(max_size=80))
def test_any_key_is_deleted_or_refused_as_malformed(key: str) -> None:
    try:
        request = _delete("acme", key)
    except MalformedRequestError:
        return
    assert parse_request(requests.sign(SETTINGS, request).body) == request


@pytest.mark.parametrize("build", [_enroll, _rotation])
@pytest.mark.parametrize(
    "api_key", ["", "k" * 31, "k" * 513, "k" * 31 + " ", "k" * 32 + "\n", "ü" * 40]
)
def test_api_key_of_a_wrong_form_is_refused_and_not_repeated(build: Any, api_key: str) -> None:
    with pytest.raises(MalformedRequestError, match="32 to 512") as refused:
        build(api_key=api_key)
    assert not api_key or api_key not in str(refused.value)


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_names_are_taken_or_refused_as_malformed(project: str, key: str) -> None:
    try:
        request = new_draft(project=project, object_key=key).with_body(InlineBody(inline=""))
    except MalformedRequestError:
        return
    assert parse_request(requests.sign(SETTINGS, request).body) == request


@given(
    st.dictionaries(st.text(max_size=10) | st.just("a"), st.text(max_size=50), max_size=3),
    st.text(max_size=30),
)
def test_any_metadata_is_taken_or_refused_as_malformed(
    metadata: dict[str, str], content_type: str
) -> None:
    try:
        draft = new_draft(metadata=metadata, content_type=content_type)
    except MalformedRequestError:
        return
    request = draft.with_body(InlineBody(inline=""))
    assert parse_request(requests.sign(SETTINGS, request).body) == request
