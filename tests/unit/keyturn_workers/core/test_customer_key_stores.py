"""The setting of stores: what each project may have, and what is refused in one line (SPEC 2.6)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn_workers.core.customer_key_stores import VaultStore, parse_customer_key_stores
from keyturn_workers.core.vault_access import MasterKeyCredentials

if TYPE_CHECKING:
    from pathlib import Path

_ACCOUNT: Final = "arn:aws:kms:eu-central-1:111122223333:key/"
ARN: Final = _ACCOUNT + "1234abcd-12ab-34cd-56ef-1234567890ab"
AWS: Final = {"kind": "awskms", "projects": ["acme", "acme-*"], "keys": [ARN]}
VAULT: Final = {
    "kind": "vault",
    "address": "https://bao.example.com:8200",
    "mount": "transit",
    "projects": ["globex"],
    "keys": ["keyturn-*"],
    "token_file": "/run/token",
}


def _gives(fields: dict[str, Any], project: str, key: str) -> bool:
    return parse_customer_key_stores({"one": fields})["one"].gives(project, key)


@pytest.mark.parametrize(
    ("fields", "project", "key", "expected"),
    [
        (AWS, "acme", ARN, True),
        (AWS, "acme-eu", ARN, True),
        (AWS, "acmeeu", ARN, False),
        (AWS, "globex", ARN, False),
        (AWS, "acme", ARN[:-1] + "0", False),
        (AWS | {"keys": [_ACCOUNT + "*"]}, "acme", ARN[:-1] + "0", True),
        # A pattern allows only what is the ARN of a key: never an alias.
        (AWS | {"keys": ["arn:aws:kms:eu-central-1:*"]}, "acme", ARN, True),
        (
            AWS | {"keys": ["arn:aws:kms:eu-central-1:*"]},
            "acme",
            ARN.replace("key/", "alias/"),
            False,
        ),
        (AWS | {"keys": [_ACCOUNT + "*"]}, "acme", ARN + "/../x", False),
        (VAULT, "globex", "keyturn-globex", True),
        (VAULT, "globex", "another", False),
        # A name is one segment of a path.
        (VAULT, "globex", "keyturn-x/../../../sys/seal", False),
        (VAULT, "globex", "keyturn-x?y", False),
        (VAULT | {"keys": ["*"]}, "globex", "..", False),
    ],
)
def test_a_store_gives_a_project_its_keys_and_nothing_else(
    fields: dict[str, Any], project: str, key: str, expected: bool
) -> None:
    assert _gives(fields, project, key) is expected


@pytest.mark.parametrize("address", ["http://127.0.0.1:8200", "http://[::1]:8200"])
def test_a_loopback_address_needs_no_tls(address: str) -> None:
    store = parse_customer_key_stores({"one": VAULT | {"address": address + "/"}})["one"]
    assert isinstance(store, VaultStore)
    assert store.address == address


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([], "its kind must be awskms or vault"),
        ({}, "its kind must be awskms or vault"),
        (AWS | {"kind": "gcp"}, "its kind must be awskms or vault"),
        (AWS | {"kind": ["awskms"]}, "its kind must be awskms or vault"),
        (AWS | {"address": "https://canary"}, "address: Extra inputs"),
        (AWS | {"projects": []}, "projects: List should have at least 1 item"),
        (AWS | {"projects": "acme"}, "projects: Input should be a valid list"),
        (AWS | {"projects": ["acme", "Canary"]}, "projects: entry 2 is not a project's id"),
        (AWS | {"projects": ["a*e"]}, "projects: entry 1 is not"),
        (AWS | {"keys": ["canary"]}, "keys: entry 1 is not a key's ARN"),
        (AWS | {"keys": [ARN.replace("key/", "alias/")]}, "an alias is refused"),
        (AWS | {"keys": ["arn:aws:kms:eu-central-1:111122223333:alias/*"]}, "alias is refused"),
        *(
            (AWS | {"keys": [ARN, pattern]}, "keys: entry 2 .* with the whole Region")
            for pattern in (
                "*",
                "arn:*",
                "arn:aws:kms:*",
                "arn:aws:kms:eu-*",
                "arn:aws:kms:eu-central-1*",
                "arn:aws:kms:*:111122223333:key/*",
                "arn:aws:kms:eu-*-1:111122223333:key/*",
                "arn:aws:kms::*",
            )
        ),
        (VAULT | {"address": "http://canary.example.com"}, "address: it must begin with https://"),
        (VAULT | {"address": "ftp://127.0.0.1"}, "address: it must begin with https://"),
        (VAULT | {"address": "https://user:canary@bao.example.com"}, "must have no user"),
        (VAULT | {"address": "https://bao.example.com/canary"}, "must have no user, path"),
        (VAULT | {"address": "https://bao.example.com:canary"}, "not a URL"),
        (VAULT | {"mount": "../canary"}, "mount: not the path of a transit engine"),
        (VAULT | {"keys": ["a/canary"]}, "keys: entry 1 is not a transit key's name"),
        (VAULT | {"token": "canary"}, "token: Extra inputs"),
        (VAULT | {"token_file": None}, "exactly one of token_file, role_id and kubernetes_role"),
        (VAULT | {"kubernetes_role": "canary"}, "exactly one of token_file, role_id"),
        (VAULT | {"secret_id_file": "/canary"}, "role_id and secret_id_file must be set together"),
        (
            VAULT | {"token_file": None, "kubernetes_role": "canary"},
            "kubernetes_role and kubernetes_token_file must be set together",
        ),
        (
            VAULT | {"kubernetes_token_file": "/canary"},
            "kubernetes_role and kubernetes_token_file must be set together",
        ),
        ({k: v for k, v in VAULT.items() if k != "mount"}, "mount: Field required"),
    ],
)
def test_a_malformed_store_is_named_without_its_values(fields: object, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        parse_customer_key_stores(json.dumps({"one": fields}))
    assert str(caught.value).startswith("store one: ")
    assert "canary" not in str(caught.value).lower()


def test_the_setting_may_be_the_path_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "stores.json"
    with pytest.raises(ValueError, match=r"^the file cannot be read \(No such file"):
        parse_customer_key_stores(str(path))
    path.write_text(json.dumps({"kms-eu": AWS, "globex": VAULT}))
    assert list(parse_customer_key_stores(str(path))) == ["kms-eu", "globex"]


def test_a_store_has_the_credentials_of_its_own_fields_alone() -> None:
    store = parse_customer_key_stores({"globex": VAULT})["globex"]
    assert isinstance(store, VaultStore)
    access = store.access("globex", MasterKeyCredentials())
    assert str(access.token_file) == "/run/token"
    assert (access.token, access.role_id, access.ca_file) == (None, None, None)
    assert access.setting("ca_file") == "ca_file of globex in KEYTURN_CUSTOMER_KEY_STORES"
