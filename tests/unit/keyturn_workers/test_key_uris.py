"""The URIs of master keys that are held elsewhere."""

import pytest

from keyturn.crypto import Secret
from keyturn_workers.key_uris import (
    AwsKmsUri,
    Pkcs11Uri,
    VaultUri,
    is_key_uri,
    parse_key_uri,
)

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def test_a_pkcs11_uri_names_token_object_module_and_the_file_with_the_pin() -> None:
    uri = parse_key_uri(
        "pkcs11:token=My%20HSM;object=master-m2;id=%01%ff;type=secret-key"
        "?module-path=/usr/lib/p11.so&pin-source=file:/run/secrets/pin%20file"
    )
    assert isinstance(uri, Pkcs11Uri)
    assert (uri.token, uri.object, uri.id) == ("My HSM", "master-m2", b"\x01\xff")
    assert (uri.module_path, uri.pin_source) == ("/usr/lib/p11.so", "/run/secrets/pin file")


def test_a_pin_in_a_uri_is_used_and_never_shown() -> None:
    uri = parse_key_uri("pkcs11:object=m2?pin-value=4711&module-path=/p11.so")
    assert isinstance(uri, Pkcs11Uri)
    assert uri.pin == Secret(b"4711")
    assert uri.location == "pkcs11:object=m2?module-path=/p11.so"
    assert "4711" not in repr(uri)


def test_an_awskms_uri_is_an_arn_with_its_region() -> None:
    assert parse_key_uri(f"awskms:{ARN}") == AwsKmsUri(f"awskms:{ARN}", ARN, "eu-central-1")


def test_a_vault_uri_names_address_mount_key_and_version() -> None:
    text = "vault:https://vault.example.com:8200/team/transit/keyturn-m2?version=3"
    assert parse_key_uri(text) == VaultUri(
        text, "https://vault.example.com:8200", "team/transit", "keyturn-m2", 3
    )


def test_a_vault_address_may_be_ipv6() -> None:
    uri = parse_key_uri("vault:http://[::1]:8200/transit/m2?version=1")
    assert isinstance(uri, VaultUri)
    assert uri.address == "http://[::1]:8200"


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:token=keyturn",  # no key
        "pkcs11:object=m2;object=m3",
        "pkcs11:object=m2;color=red",
        "pkcs11:object=m2;type=private",
        "pkcs11:object=%ff",
        "pkcs11:object=m2;slot-id=x",
        "awskms:arn:aws:kms:eu-central-1:111122223333:alias/m2",
        "awskms:alias/m2",
        "vault:https://vault.example.com/transit/m2",  # no version
        "vault:https://vault.example.com/transit/m2?version=0",
        "vault:https://vault.example.com/transit/m2?version=latest",
        "vault:https://vault.example.com/transit/m2?version=1&version=2",
        "vault:https://vault.example.com/m2?version=1",  # no mount
        "vault:https://user:canary@vault.example.com/transit/m2?version=1",
        "vault:https://:canary@vault.example.com/transit/m2?version=1",
        "vault:ftp://vault.example.com/transit/m2?version=1",
        "vault:https://vault.example.com/../m2/x y?version=1",
        "vault:https://vault.example.com:port/transit/m2?version=1",
        "gcpkms:projects/p",
    ],
)
def test_a_uri_that_does_not_pin_one_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"URI|master key") as caught:
        parse_key_uri(text)
    assert "canary" not in str(caught.value)


def test_base64_is_no_uri() -> None:
    assert not is_key_uri("q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=")
    assert is_key_uri(f"awskms:{ARN}")
