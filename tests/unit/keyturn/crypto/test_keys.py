"""Secrets do not show; API keys have a form; each derivation is for one thing (SPEC 1 to 6)."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from keyturn.crypto import (
    Secret,
    admin_kek,
    associated_data,
    encryption_context,
    kek_id,
    new_api_key,
    new_dek,
    record_kek,
    user_kek,
)
from keyturn.crypto.labels import label

API_KEY = "kt_0123456789abcdefghijklmnopqrstuvwxyz"
MASTER = bytes(range(32))


def test_a_secret_shows_itself_only_by_reveal() -> None:
    secret = Secret(b"s3cr3t-value")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", repr([secret])):
        assert "s3cr3t" not in shown
    assert secret.reveal() == b"s3cr3t-value"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(secret)
    assert not hasattr(secret, "__dict__")
    assert copy.deepcopy([secret]) == [secret]
    assert copy.copy(secret) is secret


def test_secrets_compare_and_are_not_hashable() -> None:
    assert Secret(b"a") == Secret(b"a")
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"
    with pytest.raises(TypeError):
        hash(Secret(b"a"))


@pytest.mark.parametrize(
    "api_key",
    ["", "a" * 31, "a" * 513, "a" * 40 + "\n", "a" * 40 + " ", "é" * 40, "٣" * 40, "a" * 40 + "\0"],
)
def test_an_api_key_of_another_form_is_refused_and_not_shown(api_key: str) -> None:
    with pytest.raises(ValueError, match="32 to 512") as caught:
        user_kek(api_key, "acme")
    assert not api_key or api_key not in str(caught.value)


@pytest.mark.parametrize("api_key", ["a" * 32, "a" * 512, "Az09._~+/=-" * 3])
def test_an_api_key_of_that_form_is_taken(api_key: str) -> None:
    assert len(user_kek(api_key, "acme").reveal()) == 32


def test_each_derivation_is_for_one_thing() -> None:
    keks = [
        user_kek(API_KEY, "acme"),
        user_kek(API_KEY, "acme2"),
        user_kek(API_KEY, "acme", "pepper"),
        user_kek(API_KEY + "x", "acme"),
        admin_kek(MASTER, "acme"),
        admin_kek(MASTER, "acme2"),
        record_kek(MASTER, "acme"),
    ]
    assert len({kek.reveal() for kek in keks}) == len(keks)
    assert len({kek_id(kek) for kek in keks}) == len(keks)
    assert all(re.fullmatch("[0-9a-f]{16}", kek_id(kek)) for kek in keks)


@pytest.mark.parametrize("derive", [admin_kek, record_kek])
def test_a_master_key_is_32_bytes(derive: type) -> None:
    for master_key in (b"", MASTER[:31], MASTER + b"x"):
        with pytest.raises(ValueError, match="32 bytes"):
            derive(master_key, "acme")


def test_a_name_with_a_zero_byte_derives_nothing() -> None:
    with pytest.raises(ValueError, match="zero byte"):
        user_kek(API_KEY, "ac\0me")


def test_a_pepper_that_is_no_text_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match=r"^a secret is UTF-8$") as caught:
        user_kek(API_KEY, "acme", "p3pper\ud800")
    assert caught.value.__suppress_context__  # its cause would quote the pepper


def test_fresh_keys() -> None:
    keys = {new_api_key() for _ in range(200)}
    assert len(keys) == 200
    assert all(re.fullmatch("kt_[0-9A-Za-z]{43}", key) for key in keys)
    assert len({character for key in keys for character in key[3:]}) == 62
    user_kek(keys.pop(), "acme")
    assert len({new_dek() for _ in range(100)}) == 100
    assert len(new_dek()) == 32


# Labels, which bind a derived key or a seal to one purpose.


def test_a_label_is_its_parts_joined_by_zero_bytes() -> None:
    assert label("keyturn/v1/dek", "user", "é") == b"keyturn/v1/dek\0user\0\xc3\xa9"
    assert label("a", "", "b") == b"a\0\0b"


def test_no_two_lists_of_parts_have_the_same_label() -> None:
    labels = [label("a", "bc"), label("ab", "c"), label("abc"), label("a", "b", "c")]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("parts", [("a\0b",), ("a", "b\0"), ("\0", "\0")])
def test_a_part_with_a_zero_byte_is_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no zero byte"):
        label(*parts)


def test_a_part_that_is_no_text_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="parts are UTF-8") as refused:
        label("a", "secret \ud800")
    assert refused.value.__cause__ is None
    assert "secret" not in str(refused.value)


def test_a_customer_secret_is_bound_to_its_deployment_project_and_id() -> None:
    place = ("rig", "acme", "366923941b9116e5")
    # As an independent implementation of SPEC 2.6 makes them.
    assert encryption_context(*place) == {
        "keyturn:deployment": "rig",
        "keyturn:project": "acme",
        "keyturn:secret": "366923941b9116e5",
    }
    assert associated_data(*place) == (
        "a2V5dHVybi92MS9jdXN0b21lci1zZWNyZXQAcmlnAGFjbWUAMzY2OTIzOTQxYjkxMTZlNQ=="
    )
