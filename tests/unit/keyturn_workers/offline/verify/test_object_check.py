"""What one key opens of one object: never by its labels, and never without its header."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import (
    HEADER_BYTES,
    SealError,
    Secret,
    admin_kek,
    from_base64,
    new_dek,
    to_base64,
    wrap_dek,
)
from keyturn_workers.offline.verify.object_check import (
    ObjectCheck,
    VerificationKeys,
    check_object,
    find_wrap,
    is_wrap_sized,
)
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    enc,
    keyring,
    rotated,
    sealed_object,
)
from tests.unit.keyturn_workers.hiding import SPELLINGS
from tools.harness.local_keys import desired_state

if TYPE_CHECKING:
    from keyturn_workers.core.keyring import Keyring

FIRST = keyring()
SECOND = rotated(FIRST)
OTHER = keyring("other")
KEK = Secret(b"k" * 32)
OTHER_KEK = Secret(b"o" * 32)
KEYS = VerificationKeys("acme", "user", {"": KEK})


def _user(ring: Keyring) -> VerificationKeys:
    kek = ring.current.kek
    assert kek is not None
    return VerificationKeys(ring.project, "user", {"": kek})


def _admin(*master_keys: str, project: str = "acme") -> VerificationKeys:
    keks = {name: admin_kek(MASTER_KEYS[name].reveal(), project) for name in master_keys}
    return VerificationKeys(project, "admin", keks)


def _object(ring: Keyring, key: str = "k", **labels: Any) -> tuple[dict[str, str], bytes]:
    wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), key)
    return enc(replace(wraps, **labels)), body[:HEADER_BYTES]


def _state(check: ObjectCheck) -> tuple[str, str, str | None]:
    return check.kind, check.state, check.code


@pytest.mark.parametrize("keys", [_user(SECOND), _admin("m1"), _admin("m2", "m1")])
def test_an_object_opens_under_the_users_and_under_the_operators_key(
    keys: VerificationKeys,
) -> None:
    assert check_object(*_object(SECOND), "k", keys) == ObjectCheck("encrypted", "opened")


@pytest.mark.parametrize(
    "keys",
    [
        _user(FIRST),
        replace(_user(SECOND), project="other"),
        _admin("m2"),
        _admin("m1", project="other"),
        VerificationKeys("acme", "user", {"": Secret(bytes(32))}),
    ],
    ids=["old", "other project", "other master key", "other admin KEK", "random"],
)
def test_another_key_opens_nothing(keys: VerificationKeys) -> None:
    check = check_object(*_object(SECOND), "k", keys)
    assert _state(check) == ("encrypted", "closed", "no_usable_wrap")


def test_an_object_moved_to_another_key_does_not_open() -> None:
    check = check_object(*_object(SECOND, "k"), "moved", _user(SECOND))
    assert _state(check) == ("encrypted", "closed", "no_usable_wrap")


@pytest.mark.parametrize("keys", [_user(FIRST), _admin("m1")], ids=["user", "admin"])
def test_a_wrong_label_does_not_hide_that_a_key_opens_a_wrap(keys: VerificationKeys) -> None:
    """An old wrap that a bucket writer labels with the new generation."""
    metadata, header = _object(FIRST, generation=2, kek_id=SECOND.current.kek_id)
    check = check_object(metadata, header, "k", keys)
    assert _state(check) == ("encrypted", "failed", "no_usable_wrap")
    role = keys.role
    assert check.detail == (
        f"enc-dek-{role} opens as the {role} wrap of generation 1, but the labels say otherwise"
    )


def test_the_label_of_the_master_key_is_a_hint() -> None:
    check = check_object(*_object(SECOND, master_key="m9"), "k", _admin("m2", "m1"))
    assert check.state == "opened"


@pytest.mark.parametrize("cut", [0, HEADER_BYTES - 1])
def test_a_header_that_is_cut_is_corrupt(cut: int) -> None:
    metadata, header = _object(SECOND)
    check = check_object(metadata, header[:cut], "k", _user(SECOND))
    assert _state(check) == ("encrypted", "failed", "corrupt_object")


@pytest.mark.parametrize("position", [0, HEADER_BYTES - 1], ids=["salt", "commitment"])
def test_a_header_of_another_body_is_corrupt(position: int) -> None:
    metadata, header = _object(SECOND)
    flipped = bytearray(header)
    flipped[position] ^= 1
    check = check_object(metadata, bytes(flipped), "k", _user(SECOND))
    assert _state(check) == ("encrypted", "failed", "corrupt_object")
    assert "does not commit" in check.detail


def test_a_flipped_wrap_does_not_open() -> None:
    metadata, header = _object(SECOND)
    wraps, _ = sealed_object(desired_state(SECOND, MASTER_KEYS), "k")
    flipped = bytes([*wraps.user[:-1], wraps.user[-1] ^ 1])
    metadata |= {"enc-dek-user": enc(replace(wraps, user=flipped))["enc-dek-user"]}
    assert check_object(metadata, header, "k", _user(SECOND)).state == "closed"
    assert check_object(metadata, header, "k", _admin("m1")).state == "opened"


def test_an_archived_body_leaves_the_header_unchecked() -> None:
    metadata, _ = _object(SECOND)
    check = check_object(metadata, None, "k", _user(SECOND))
    assert _state(check) == ("encrypted", "failed", "archived_object")
    assert check_object(metadata, None, "k", _user(FIRST)).state == "closed"


# What Keyturn does not write, and a wrap can hide in.


def _hidden(place: str) -> tuple[dict[str, str], bytes]:
    """An object that the first key opens, in one of the places where a bucket writer hides that."""
    metadata, header = _object(FIRST)
    current, _ = _object(SECOND)
    match place:
        case "relabeled as AES-256-GCM":
            metadata["enc-algo"] = "AES-256-GCM"
        case "relabeled as deleted":
            metadata["enc-algo"] = "deleted"
        case "relabeled to another generation":
            old = replace(FIRST, current=replace(FIRST.current, generation=40))
            metadata, header = _object(old, generation=41, kek_id=SECOND.current.kek_id)
        case "swapped":
            user, admin = metadata["enc-dek-user"], metadata["enc-dek-admin"]
            metadata |= {"enc-dek-user": admin, "enc-dek-admin": user}
        case "beside the current ones":
            metadata = {**current, "enc-dek-user-1": metadata["enc-dek-user"]}
    return metadata, header


HIDING_PLACES = (
    "relabeled as AES-256-GCM",
    "relabeled as deleted",
    "relabeled to another generation",
    "swapped",
    "beside the current ones",
)


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_a_hidden_wrap_shows_that_the_old_key_is_not_gone(place: str) -> None:
    check = check_object(*_hidden(place), "k", _user(FIRST), must_be_gone=True)
    assert check.state == "opened", check
    assert check.detail.startswith("enc-dek-")


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_a_hidden_wrap_is_reported_by_the_current_key_too(place: str) -> None:
    check = check_object(*_hidden(place), "k", _user(SECOND))
    assert check.state in ("closed", "failed"), check


def test_an_unknown_name_is_reported_even_if_nothing_opens_there() -> None:
    metadata, header = _object(SECOND)
    added = metadata | {"enc-note": "hello", "enc-\x1b[2J": ""}
    for keys in (_user(SECOND), _user(FIRST)):
        for must_be_gone in (False, keys == _user(FIRST)):
            check = check_object(added, header, "k", keys, must_be_gone=must_be_gone)
            assert _state(check) == ("encrypted", "failed", "corrupt_object")
            assert check.detail.endswith(r"does not write: enc-\x1b[2J, enc-note")


def test_metadata_of_the_caller_are_not_keyturns() -> None:
    metadata, header = _object(SECOND)
    own = metadata | {"author": "kim", "encoding": "x", "note": metadata["enc-dek-user"]}
    assert check_object(own, header, "k", _user(SECOND)).state == "opened"
    assert check_object(own, header, "k", _user(FIRST), must_be_gone=True).state == "closed"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_wrap_in_what_a_rewrap_keeps_shows_that_the_old_key_is_not_gone(spelling: str) -> None:
    metadata, header = _object(SECOND)
    keys = _user(FIRST)
    old = _object(FIRST)[0]["enc-dek-user"]
    hidden = [("content-disposition", SPELLINGS[spelling](old))]
    check = check_object(metadata, header, "k", keys, must_be_gone=True, others=hidden)
    assert (check.state, check.detail.split()[0]) == ("opened", "content-disposition")
    new = [("note", SPELLINGS[spelling](metadata["enc-dek-user"]))]
    check = check_object(metadata, header, "k", keys, must_be_gone=True, others=new)
    assert check.state == "closed"


@pytest.mark.parametrize("keys", [_user(FIRST), _admin("m2")], ids=["user", "admin"])
@pytest.mark.parametrize(
    ("letters", "code"), [(344, "no_usable_wrap"), (8000, "hidden_wrap")], ids=["few", "too many"]
)
def test_the_search_of_what_a_rewrap_keeps_is_bounded_and_then_undecided(
    monkeypatch: pytest.MonkeyPatch, keys: VerificationKeys, letters: int, code: str
) -> None:
    """A signature costs little. What a bucket writer makes too long to search is never clean."""
    metadata, header = _object(SECOND)
    roles = Counter[str]()

    def unwrap(_: Secret, role: str, **__: object) -> bytes:
        roles[role] += 1
        raise SealError

    monkeypatch.setattr("keyturn_workers.offline.verify.object_check.unwrap_dek", unwrap)
    others = [("signature", to_base64(hashlib.shake_256(b"").digest(letters * 3 // 4)))]
    check = check_object(metadata, header, "k", keys, must_be_gone=True, others=others)
    assert (check.state, check.code) == ("closed" if letters == 344 else "failed", code)
    generations, by_the_labels = 34, 1
    own_wraps = 2 * generations
    parts = min(letters - 138, 2**18 // generations)
    assert roles[keys.role] == by_the_labels + own_wraps + parts * generations
    assert roles.total() - roles[keys.role] == own_wraps


@pytest.mark.parametrize("name", ["enc-upload", "enc-upload-tag", "enc-stored-at", "enc-kek-admin"])
def test_a_name_that_holds_no_wrap_holds_nothing_of_its_length(name: str) -> None:
    """Made at a generation that nobody tries."""
    old = replace(FIRST, current=replace(FIRST.current, generation=500))
    metadata, header = _object(SECOND)
    hidden = metadata | {name: _object(old)[0]["enc-dek-user"]}
    for keys, must_be_gone in ((_user(FIRST), True), (_user(SECOND), False)):
        check = check_object(hidden, header, "k", keys, must_be_gone=must_be_gone)
        assert _state(check) == ("encrypted", "failed", "corrupt_object")
    plaintext = {"enc-upload": hidden[name]}
    check = check_object(plaintext, b"x", "k", _user(FIRST), must_be_gone=True)
    assert _state(check) == ("plaintext", "failed", "corrupt_object")


@pytest.mark.parametrize("name", ["enc-dek-user", "enc-dek-admin"])
def test_a_wrap_of_another_length_is_corrupt(name: str) -> None:
    metadata, header = _object(FIRST)
    longer = metadata | {name: to_base64(from_base64(metadata[name]) + b"x")}
    for keys, must_be_gone in ((_user(SECOND), True), (_user(SECOND), False)):
        check = check_object(longer, header, "k", keys, must_be_gone=must_be_gone)
        assert _state(check) == ("encrypted", "failed", "corrupt_object")


@pytest.mark.parametrize("keys", [_user(SECOND), _admin("m1")], ids=["user", "admin"])
@pytest.mark.parametrize("must_be_gone", [False, True])
@pytest.mark.parametrize(
    ("added", "header"),
    [({"enc-dek-user": "AAAA"}, b""), ({}, b"body"), ({}, None)],
    ids=["a user wrap", "a body", "a body that cannot be read"],
)
def test_a_tombstone_has_neither_user_wrap_nor_body(
    keys: VerificationKeys, added: dict[str, str], header: bytes | None, *, must_be_gone: bool
) -> None:
    metadata = deleted(desired_state(SECOND, MASTER_KEYS), "k") | added
    check = check_object(metadata, header, "k", keys, must_be_gone=must_be_gone)
    assert _state(check) == ("tombstone", "failed", "corrupt_object")


def test_a_tombstone_opens_under_the_operators_key_alone() -> None:
    metadata = deleted(desired_state(SECOND, MASTER_KEYS), "k")
    assert _state(check_object(metadata, b"", "k", _admin("m2", "m1"))) == (
        "tombstone", "opened", None)  # fmt: skip
    assert _state(check_object(metadata, b"", "k", _admin("m2"))) == (
        "tombstone", "closed", "no_usable_wrap")  # fmt: skip
    assert _state(check_object(metadata, b"", "moved", _admin("m1"))) == (
        "tombstone", "closed", "no_usable_wrap")  # fmt: skip
    assert _state(check_object(metadata, b"", "k", _user(SECOND))) == (
        "tombstone", "unchecked", None)  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, ("plaintext", "unchecked", None)),
        ({"author": "kim", "enc-upload": str(uuid.UUID(int=1))}, ("plaintext", "unchecked", None)),
        ({"enc-dek-user": "x"}, ("unreadable", "failed", "corrupt_object")),
        ({"enc-algo": "Cobblestone-256"}, ("unreadable", "failed", "corrupt_object")),
        ({"enc-algo": "ROT13"}, ("unreadable", "failed", "unknown_algorithm")),
    ],
)
def test_what_has_no_readable_wrap(
    metadata: dict[str, str], expected: tuple[str, str, str | None]
) -> None:
    assert _state(check_object(metadata, b"", "k", _user(SECOND))) == expected


@pytest.mark.parametrize("object_key", ["folder/", "a//b", "..", "x" * 901, "\ud800"])
def test_a_foreign_name_is_only_counted_unless_it_has_an_envelope(object_key: str) -> None:
    plain = check_object({"author": "kim"}, b"", object_key, _user(SECOND))
    assert _state(plain) == ("foreign", "unchecked", None)
    sealed = check_object(*_object(SECOND), object_key, _user(SECOND))
    assert _state(sealed) == ("foreign", "failed", "foreign_object")


# The search for a wrap goes by no label.


def _wrap(role: str = "user", generation: int = 1) -> bytes:
    return wrap_dek(
        KEK,
        role,  # type: ignore[arg-type]
        algorithm="Cobblestone-256",
        project="acme",
        object_key="k",
        generation=generation,
        dek=new_dek(),
    )


def _find(wrap: bytes, keys: VerificationKeys = KEYS, label: str = "") -> str | None:
    metadata = {"enc-x": to_base64(wrap), "enc-kek-user": label, "enc-algo": "deleted"}
    return find_wrap(metadata, "k", keys)


@pytest.mark.parametrize("role", ["user", "admin"])
def test_each_role_is_tried_under_every_key(role: str) -> None:
    wrap = _wrap(role, 7)
    expected = f"enc-x opens as the {role} wrap of generation 7"
    assert _find(wrap) == expected
    assert _find(wrap, replace(KEYS, keks={"a": OTHER_KEK, "b": KEK})) == expected
    assert _find(wrap, replace(KEYS, keks={"a": OTHER_KEK})) is None


@pytest.mark.parametrize(
    ("generation", "label", "given", "found"),
    [
        (1, "", (), True),
        (32, "", (), True),
        (33, "", (), False),
        (33, "", (33,), True),
        (33, "1:0", (), True),
        (34, "1:0", (), False),
        (1, "500:0", (), True),
        (32, "500:0", (), True),
        (33, "500:0", (), False),
        (467, "500:0", (), False),
        (468, "500:0", (), True),
        (500, "500:0", (), True),
        (532, "500:0", (), True),
        (533, "500:0", (), False),
        (533, "500:0", (40, 533), True),
        (40, "041:9f86d081884c7d65", (), True),
        (40, "41", (), True),
        (40, "x41", (), False),
    ],
)
def test_the_generations_are_the_labeled_its_neighbors_the_first_and_those_given(
    generation: int, label: str, given: tuple[int, ...], *, found: bool
) -> None:
    keys = replace(KEYS, generations=given)
    assert (_find(_wrap(generation=generation), keys, label) is not None) is found


def test_a_wrap_of_another_place_is_no_finding() -> None:
    """It opens nothing here: its context names its own place."""
    metadata = {"enc-dek-user": to_base64(_wrap())}
    assert find_wrap(metadata, "other", KEYS) is None
    assert find_wrap(metadata, "k", replace(KEYS, project="other")) is None
    assert find_wrap({"dek-user": to_base64(_wrap())}, "k", KEYS) is None


def test_no_spelling_hides_a_wrap() -> None:
    text = to_base64(_wrap())
    assert text.endswith("=")
    stray = text[:-2] + chr(ord(text[-2]) + 1) + "="
    for spelling in (
        text,
        text.rstrip("="),
        text + "=",
        text.replace("+", "-").replace("/", "_"),
        f" {text[:50]}\r\n\t{text[50:]} ",
        f"{text[:50]}!{text[50:]}",
        stray,
    ):
        assert is_wrap_sized(spelling)
        assert find_wrap({"enc-x": spelling}, "k", KEYS) is not None, spelling


@pytest.mark.parametrize("value", ["", "=", "A", "é", "AAAA", "A" * 136, "2:9f86d081884c7d65"])
def test_what_is_not_as_long_as_a_wrap_is_not_tried(value: str) -> None:
    assert not is_wrap_sized(value)
    assert find_wrap({"enc-x": value}, "k", KEYS) is None
