"""Wraps that need a customer secret: who can open them, and what is never made (SPEC 2.6, 8.2)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    SealError,
    Secret,
    composite_kek,
    customer_secret_id,
    from_base64,
    kek_id,
    new_customer_secret,
    new_dek,
    seal,
    unwrap_dek,
)
from keyturn.errors import (
    CorruptObjectError,
    CustomerKeyRefusedError,
    CustomerKeyUnavailableError,
    GenerationMismatchError,
    NoUsableWrapError,
    WrapsDisagreeError,
)
from keyturn.metadata import parse
from keyturn_workers.core.customer_keys import (
    NO_SECRETS,
    CustomerKey,
    CustomerSecrets,
    KeyName,
    SecretNeededError,
)
from keyturn_workers.core.keyring import retire_old_keys, rotate
from keyturn_workers.core.keyring_record import (
    customer_key_to_json,
    keyring_from_json,
    keyring_to_json,
    record_version,
)
from keyturn_workers.core.keyring_requests import is_same_request
from keyturn_workers.core.open_dek import ReaderKeys, open_dek
from keyturn_workers.core.plan_action import NoOp, Rewrap, plan_action
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.wraps import wrap
from tests.unit.keyturn_workers.factories import (
    AT,
    MASTER_KEYS,
    ORIGIN,
    enc,
    keyring,
    object_view,
)
from tools.harness.local_keys import admin_keks, desired_state

if TYPE_CHECKING:
    from keyturn.crypto import Role
    from keyturn.metadata import Wraps
    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.plan_action import PlannedAction

_VECTORS: Final = Path(__file__).resolve().parents[5] / "shared" / "vectors" / "keyturn_r4.json"

KEY: Final = "reports/q3.pdf"
A: Final = KeyName("kms-eu", "arn:aws:kms:eu-central-1:111122223333:key/a")
B: Final = KeyName("kms-eu", "arn:aws:kms:eu-central-1:111122223333:key/b")
SECRET_A: Final = new_customer_secret()
SECRET_B: Final = new_customer_secret()
KEY_A: Final = CustomerKey.of(A, SECRET_A, "YQ==")
KEY_B: Final = CustomerKey.of(B, SECRET_B, "vault:v1:Yg==")
HELD: Final = {customer_secret_id(secret): secret for secret in (SECRET_A, SECRET_B)}


def turned(before: Keyring, number: int, **more: Any) -> Keyring:
    rotation_id = f"2f6c9a0e-1111-4111-8111-11111111{number:04}"
    return rotate(before, rotation_id=rotation_id, requested_at=AT, at=AT, origin=ORIGIN, **more)


PLAIN: Final = keyring()
WITH_A: Final = turned(PLAIN, 2, customer_key=KEY_A)
WITH_B: Final = turned(WITH_A, 3, customer_key=KEY_B)
NEW_API_KEY: Final = turned(WITH_A, 3, kek=Secret(os.urandom(32)))
RETIRED: Final = (retire_old_keys(WITH_B), retire_old_keys(WITH_B, keeps_secrets=True))


def secrets(ring: Keyring, *held: Secret) -> CustomerSecrets:
    return replace(ring.secrets, held={customer_secret_id(secret): secret for secret in held})


def made_at(ring: Keyring) -> tuple[Wraps, bytes]:
    dek = new_dek()
    known = replace(ring.secrets, held=HELD)
    wraps = wrap(desired_state(ring, MASTER_KEYS), KEY, dek, known)
    return wraps, seal(dek, BODY_CONTEXT, b"hello")


def readers(ring: Keyring, known: CustomerSecrets, *, by_user: bool = True) -> ReaderKeys:
    keks = admin_keks("acme", MASTER_KEYS).with_secrets(known)
    return ReaderKeys.of(ring, keks, ring.current.kek if by_user else None)


def planned(
    ring: Keyring, wraps: Wraps, body: bytes, known: CustomerSecrets, **options: Any
) -> PlannedAction:
    return plan_action(
        object_view(enc(wraps), body),
        KEY,
        ring,
        desired_state(ring, MASTER_KEYS),
        admin_keks("acme", MASTER_KEYS).with_secrets(known),
        SweepOptions(**options),
    )


@pytest.mark.skipif(
    not _VECTORS.exists(), reason="the shared known answers are not next to the project"
)
def test_composites_and_wraps_are_those_of_an_independent_implementation() -> None:
    vectors = json.loads(_VECTORS.read_text())
    for case in vectors["composites"]:
        secret = Secret(from_base64(case["secret"]))
        assert customer_secret_id(secret) == case["secret_id"]
        kek = Secret(from_base64(case["kek"]))
        made = composite_kek(kek, secret, case["role"], case["project"], case["secret_id"])
        assert made == Secret(from_base64(case["composite"]))
    opened = 0
    for case in vectors["wraps"]:
        if case["since"]:
            continue  # of a DEK's `since`, which the specification does not have yet
        kek = Secret(from_base64(case["kek"]))
        label = f"{case['generation']}:{kek_id(kek)}"
        if "secret" in case:
            secret = Secret(from_base64(case["secret"]))
            label += f":{customer_secret_id(secret)}"
            kek = composite_kek(
                kek, secret, case["role"], case["project"], customer_secret_id(secret)
            )
        dek = unwrap_dek(
            kek,
            case["role"],
            algorithm="Cobblestone-256",
            project=case["project"],
            object_key=case["key"],
            generation=case["generation"],
            wrap=from_base64(case["wrap"]),
        )
        assert (dek, label) == (from_base64(case["dek"]), case["enc-kek-user"])
        opened += 1
    assert opened


@pytest.mark.parametrize("by_user", [True, False])
def test_no_wrap_opens_without_the_secret(by_user: bool) -> None:
    wraps, body = made_at(WITH_A)
    opened = open_dek(
        wraps, body[:HEADER_BYTES], KEY, readers(WITH_A, secrets(WITH_A, SECRET_A), by_user=by_user)
    )
    assert opened is not None
    with pytest.raises(SecretNeededError) as needed:
        open_dek(wraps, body[:HEADER_BYTES], KEY, readers(WITH_A, secrets(WITH_A), by_user=by_user))
    assert needed.value.customer_key == KEY_A
    wrong = replace(WITH_A.secrets, held={KEY_A.secret_id: SECRET_B})
    with pytest.raises(NoUsableWrapError):
        open_dek(wraps, body[:HEADER_BYTES], KEY, readers(WITH_A, wrong, by_user=by_user))


@pytest.mark.parametrize("role", ["user", "admin"])
def test_neither_the_master_key_nor_the_api_key_alone_opens_a_wrap(role: Any) -> None:
    """The broken variant: a composite of one role only."""
    wraps, _ = made_at(WITH_A)
    state = desired_state(WITH_A, MASTER_KEYS)
    plain = state.user_kek if role == "user" else state.admin_kek
    with pytest.raises(SealError):
        unwrap_dek(
            plain,
            role,
            algorithm=wraps.algorithm,
            project="acme",
            object_key=KEY,
            generation=2,
            wrap=wraps.user if role == "user" else wraps.admin,
        )


def test_the_label_names_the_secret_and_is_read_back() -> None:
    wraps, _ = made_at(WITH_A)
    assert wraps.secret_id == KEY_A.secret_id
    assert parse(enc(wraps)) == wraps
    plain, _ = made_at(PLAIN)
    assert (plain.secret_id, parse(enc(plain))) == (None, plain)


def test_no_wrap_is_made_without_the_secret_of_the_generation() -> None:
    state = desired_state(WITH_A, MASTER_KEYS)
    with pytest.raises(SecretNeededError):
        wrap(state, KEY, bytes(32), WITH_A.secrets)
    with pytest.raises(ValueError, match="not the customer secrets"):
        wrap(state, KEY, bytes(32))
    of_another = replace(WITH_A.secrets, keys={1: KEY_A}, held=HELD)
    with pytest.raises(ValueError, match="not the customer secrets"):
        wrap(desired_state(PLAIN, MASTER_KEYS), KEY, bytes(32), of_another)


@pytest.mark.parametrize(
    ("before", "after"),
    [(PLAIN, WITH_A), (WITH_A, WITH_B), (WITH_A, NEW_API_KEY), (PLAIN, WITH_B)],
    ids=["to a customer key", "to another", "to another API key", "over two"],
)
def test_a_sweep_brings_both_wraps_to_the_new_pair_of_keys(before: Keyring, after: Keyring) -> None:
    wraps, body = made_at(before)
    known = secrets(after, SECRET_A, SECRET_B)
    action = planned(after, wraps, body, known)
    assert isinstance(action, Rewrap)
    assert planned(after, action.wraps, body, known) == NoOp("current")
    assert action.wraps.secret_id == after.current.secret_id


def test_a_former_secret_is_asked_for_only_where_the_current_one_does_not_open() -> None:
    current, body = made_at(WITH_B)
    assert planned(WITH_B, current, body, secrets(WITH_B, SECRET_B)) == NoOp("current")
    former, body = made_at(WITH_A)
    with pytest.raises(SecretNeededError) as needed:
        planned(WITH_B, former, body, secrets(WITH_B, SECRET_B))
    assert needed.value.customer_key == KEY_A


@pytest.mark.parametrize("error", [CustomerKeyRefusedError, CustomerKeyUnavailableError])
def test_an_object_that_a_missing_secret_may_open_is_not_called_unusable(
    error: type[CustomerKeyRefusedError],
) -> None:
    former, body = made_at(WITH_A)
    known = replace(secrets(WITH_B, SECRET_B), failed={KEY_A.secret_id: error("disabled")})
    with pytest.raises(error, match="disabled"):
        planned(WITH_B, former, body, known)


def test_the_secrets_of_the_same_keys_stay_one_value() -> None:
    """It holds the KEKs that were derived, for all wraps of a page; another keyring's must not."""
    given = secrets(WITH_B, SECRET_A, SECRET_B)
    assert WITH_B.secrets_from(given) is given
    assert replace(WITH_B, serial=9).secrets_from(given) is given
    former = WITH_A.secrets_from(given)
    assert former is not given
    assert former.keys == WITH_A.customer_keys


def test_a_user_wrap_that_the_secret_does_not_open_disagrees() -> None:
    wraps, body = made_at(WITH_A)
    plain, _ = made_at(PLAIN)
    with pytest.raises(WrapsDisagreeError):
        planned(WITH_A, replace(wraps, user=plain.user), body, secrets(WITH_A, SECRET_A))


def test_the_secrets_of_another_keyring_judge_nothing() -> None:
    wraps, body = made_at(WITH_A)
    with pytest.raises(ValueError, match="not the customer secrets of the keyring"):
        planned(WITH_A, wraps, body, NO_SECRETS)
    with pytest.raises(ValueError, match="not the customer secrets of the keyring"):
        readers(WITH_A, NO_SECRETS)


# The keyring.


@pytest.mark.parametrize("ring", [PLAIN, WITH_A, WITH_B, NEW_API_KEY, *RETIRED])
def test_a_keyring_reads_back(ring: Keyring) -> None:
    assert keyring_from_json("acme", "m1", keyring_to_json(ring)) == ring


def test_a_record_with_a_customer_key_is_of_version_2() -> None:
    """A worker that does not know customer keys must not write the record without them."""
    assert [record_version(ring) for ring in (PLAIN, WITH_A, retire_old_keys(WITH_B))] == [1, 2, 2]


def test_a_clean_end_clears_former_secrets_alone() -> None:
    cleared = retire_old_keys(WITH_B)
    assert cleared.customer_keys == {3: KEY_B}
    assert [entry.secret_id for entry in cleared.history] == [None, KEY_A.secret_id]
    assert retire_old_keys(NEW_API_KEY).customer_keys == {3: KEY_A}
    kept = retire_old_keys(WITH_B, keeps_secrets=True)
    assert (kept.customer_keys, kept.has_old_keks) == (WITH_B.customer_keys, False)


def test_a_project_that_allows_plaintext_gets_no_customer_key() -> None:
    with pytest.raises(GenerationMismatchError, match="plaintext"):
        turned(keyring(plaintext=True), 2, customer_key=KEY_A)
    fields = keyring_to_json(WITH_A) | {"plaintext": "allowed"}
    with pytest.raises(CorruptObjectError):
        keyring_from_json("acme", "m1", fields)


@pytest.mark.parametrize(
    "changed",
    [
        {"store": "Kms"},
        {"store": None},
        {"key": ""},
        {"key": "a\nb"},
        {"key": "ü"},
        {"key": "a" * 2049},
        {"secret_id": "366923941b9116e"},
        {"secret_sha256": "0" * 63},
        {"secret_sha256": None},
        {"wrapped": None},
        {"wrapped": ""},
        {"wrapped": "vault:v1:"},
        {"wrapped": "other:v1:Yg=="},
        {"wrapped": "A" * 1028},
    ],
)
def test_a_malformed_customer_key_is_no_keyring(changed: dict[str, object]) -> None:
    fields = keyring_to_json(WITH_A)
    own = {**fields["customer_key"], **changed}
    fields["customer_key"] = {name: value for name, value in own.items() if value is not None}
    with pytest.raises(CorruptObjectError):
        keyring_from_json("acme", "m1", fields)


def test_the_current_generation_cannot_lack_its_secret() -> None:
    fields = keyring_to_json(WITH_A)
    fields["customer_key"] = customer_key_to_json(KEY_A.cleared())
    with pytest.raises(CorruptObjectError):
        keyring_from_json("acme", "m1", fields)


def test_a_known_id_is_the_same_request_only_with_the_same_keys() -> None:
    new_kek = NEW_API_KEY.current.kek
    both = turned(PLAIN, 2, kek=Secret(os.urandom(32)), customer_key=KEY_A)
    cases: list[tuple[Keyring, Secret | None, KeyName | None]] = [
        (WITH_A, None, A),
        (WITH_B, None, B),
        (NEW_API_KEY, new_kek, None),
        (both, both.current.kek, A),
    ]
    asked: list[tuple[Secret | None, KeyName | None]] = [
        (kek, key)
        for kek in (None, new_kek, both.current.kek, PLAIN.current.kek)
        for key in (None, A, B)
    ]
    for ring, kek, key in cases:
        same = [
            request
            for request in asked
            if is_same_request(
                ring, ring.current, kek=request[0], customer_key=request[1], origin=ORIGIN
            )
        ]
        assert same == [(kek, key)]


def test_the_same_key_again_is_a_new_secret() -> None:
    again = turned(WITH_A, 3, customer_key=CustomerKey.of(A, SECRET_B, "Yg=="))
    assert is_same_request(again, again.current, kek=None, customer_key=A, origin=ORIGIN)
    assert again.current.secret_id != WITH_A.current.secret_id


def test_a_kek_that_was_derived_serves_only_its_own_place_and_plain_kek() -> None:
    """Wraps of many objects share what was derived; another KEK, role or project never does."""
    secrets = CustomerSecrets({1: KEY_A, 2: KEY_B, 3: KEY_A}, HELD)
    keks = [Secret(bytes([number]) * 32) for number in (1, 2)]
    places: list[tuple[int, Role, str]] = [
        (1, "user", "acme"),
        (1, "admin", "acme"),
        (1, "user", "other"),
        (2, "user", "acme"),
        (3, "user", "acme"),
    ]
    for generation, role, project in places * 2:
        key, secret = (KEY_B, SECRET_B) if generation == 2 else (KEY_A, SECRET_A)
        for kek in [*keks, *keks, keks[1]]:
            expected = composite_kek(kek, secret, role, project, key.secret_id)
            assert secrets.kek_at(generation, role, project, kek) == expected
    kek = keks[1]
    assert secrets.kek_at(1, "user", "acme", kek) is secrets.kek_at(1, "user", "acme", kek)
    assert replace(secrets, held={}).kek_at(1, "user", "acme", kek) is None
    assert "_derived" not in repr(secrets)
