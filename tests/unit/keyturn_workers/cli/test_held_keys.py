"""Master keys as the commands see them: their URIs, and what to know about them."""

from __future__ import annotations

import pytest
import typer

from keyturn.crypto import Secret, record_kek
from keyturn.errors import KmsUnavailableError
from keyturn_workers.cli.keys import (
    concerns,
    derive_known_kek,
    describe_source,
    opened,
    parse_uri,
)
from keyturn_workers.key_uris import parse_key_uri
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.port import KeyDescription
from keyturn_workers.settings import KmsSettings
from tests.unit.keyturn_workers.cli.fake_kms import MASTER_KEY, PRK, URI, FakeKey, FakeKms

AWS = "awskms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd"


@pytest.mark.parametrize("text", [URI, AWS, "pkcs11:object=m1?pin-source=/run/pin"])
def test_a_uri_is_parsed(text: str) -> None:
    assert parse_uri(text) == parse_key_uri(text)


def test_a_pin_is_no_argument() -> None:
    with pytest.raises(typer.BadParameter, match="KEYTURN_PKCS11_PIN_FILE") as caught:
        parse_uri("pkcs11:object=m1?pin-value=12345")
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "m1", "AAAA", "https://vault", "awskms:alias/x"])
def test_anything_else_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_uri(text)


async def test_the_kek_is_that_of_the_known_texts() -> None:
    kek = await derive_known_kek(LocalMasterKey(MASTER_KEY))
    assert kek == record_kek(MASTER_KEY.reveal(), "*known-text")


async def test_a_provider_that_contradicts_itself_is_not_believed(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK, wrong=2)
    async with opened(parse_key_uri(URI), KmsSettings()) as key:
        with pytest.raises(KmsUnavailableError, match="differ"):
            await derive_known_kek(key)
    assert kms.keys[URI].closed == 1


def test_the_settings_say_where_a_key_is() -> None:
    assert describe_source(Secret(bytes(32))) == KeyDescription("local", "in the settings")
    assert describe_source(parse_key_uri(URI)) == KeyDescription("vault", URI, "1")
    assert describe_source(parse_key_uri(AWS)) == KeyDescription("awskms", AWS)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        (KeyDescription("vault", ""), []),
        (
            KeyDescription("vault", "", exportable=False, automatic_rotation=False, imported=False),
            [],
        ),
        (KeyDescription("vault", "", exportable=True), ["can be exported"]),
        (KeyDescription("vault", "", automatic_rotation=True), ["rotates the key automatically"]),
        (KeyDescription("vault", "", imported=True), ["was imported"]),
        (KeyDescription("vault", "", warnings=("expires",)), ["expires"]),
        (KeyDescription("local", "", exportable=True), ["anyone who can read"]),
    ],
)
def test_what_to_know_about_a_key(description: KeyDescription, said: list[str]) -> None:
    found = concerns(description)
    assert len(found) == len(said)
    for line, expected in zip(found, said, strict=True):
        assert expected in line
