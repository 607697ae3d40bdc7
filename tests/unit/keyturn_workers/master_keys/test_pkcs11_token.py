"""What a URI names: module, token, PIN and key, on a module written in Python."""

from pathlib import Path
from typing import Any, cast

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType, ObjectClass
from pydantic import SecretStr

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn_workers.key_uris import Pkcs11Uri
from keyturn_workers.master_keys.pkcs11_token import (
    TokenAccess,
    close_quietly,
    find_key,
    key_template,
)
from keyturn_workers.settings import KmsSettings
from tests.support.fake_pkcs11 import PIN, FakeModule, FakeSession

URI = Pkcs11Uri("pkcs11:object=m1", object="m1")
MODULE = Path("fake.so")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModule:
    module = FakeModule()
    module.install(monkeypatch)
    return module


def _session(fake: FakeModule) -> pkcs11.Session:
    return cast("pkcs11.Session", FakeSession(fake.token, rw=False))


def _open(access: TokenAccess) -> None:
    with access.module.call(5) as epoch:
        access.open_session(epoch)


@pytest.mark.parametrize("source", ["uri", "uri file", "setting", "setting file"])
def test_the_pin_comes_from_the_uri_or_the_settings(
    fake: FakeModule, tmp_path: Path, source: str
) -> None:
    file = tmp_path / "pin"
    file.write_text(f"{PIN}\n")
    uri, settings = {
        "uri": ({"pin": Secret(PIN.encode())}, {"pkcs11_pin": SecretStr("not this")}),
        "uri file": ({"pin_source": str(file)}, {"pkcs11_pin": SecretStr("not this")}),
        "setting": ({}, {"pkcs11_pin": SecretStr(PIN)}),
        "setting file": ({}, {"pkcs11_pin_file": file}),
    }[source]
    values = cast("dict[str, Any]", settings)
    access = TokenAccess(
        Pkcs11Uri("", object="m1", **cast("dict[str, Any]", uri)),
        KmsSettings(pkcs11_module=MODULE, **values),
    )
    _open(access)
    assert fake.token.pins == [PIN]


def test_a_corrected_pin_file_is_read_again(fake: FakeModule, tmp_path: Path) -> None:
    file = tmp_path / "pin"
    access = TokenAccess(URI, KmsSettings(pkcs11_module=MODULE, pkcs11_pin_file=file))
    with pytest.raises(KmsUnavailableError, match="cannot be read"):
        _open(access)
    file.write_text("\n")
    with pytest.raises(KmsUnavailableError, match="is empty"):
        _open(access)
    for content in ("wrong", "wrong", "wrong\n"):
        file.write_text(content)
        with pytest.raises(KmsUnavailableError, match="refused the PIN"):
            _open(access)
    file.write_text(PIN)
    _open(access)
    file.unlink()  # it is logged in
    _open(access)
    assert fake.token.pins == ["wrong", PIN]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (KmsSettings(pkcs11_pin=SecretStr(PIN)), "KEYTURN_PKCS11_MODULE is missing"),
        (KmsSettings(pkcs11_module=MODULE), "KEYTURN_PKCS11_PIN or KEYTURN_PKCS11_PIN_FILE"),
    ],
)
def test_a_missing_setting_is_named(settings: KmsSettings, name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        TokenAccess(URI, settings)


def test_the_uris_module_goes_first(fake: FakeModule) -> None:
    del fake
    settings = KmsSettings(pkcs11_module=MODULE, pkcs11_pin=SecretStr(PIN))
    with_path = Pkcs11Uri("", object="m1", module_path="/other.so")
    modules = {TokenAccess(uri, settings).module for uri in (URI, with_path, with_path)}
    assert len(modules) == 2


def test_a_key_is_found_by_label_and_id(fake: FakeModule) -> None:
    fake.token.add_key("m1", ID=b"\x01")
    fake.token.add_key("m1", ID=b"\x02")
    fake.token.add_key("m1", ID=b"\x02", CLASS=ObjectClass.DATA)
    uri = Pkcs11Uri("", object="m1", id=b"\x02")
    assert find_key(_session(fake), uri)[Attribute.ID] == b"\x02"
    assert key_template(uri)[Attribute.CLASS] is ObjectClass.SECRET_KEY


def test_no_key_and_two_keys_are_refused(fake: FakeModule) -> None:
    with pytest.raises(KmsUnavailableError, match="no key that matches"):
        find_key(_session(fake), URI)
    fake.token.add_key(ID=b"\x01")
    fake.token.add_key(ID=b"\x02")
    with pytest.raises(KmsUnavailableError, match=r"2 keys .* match"):
        find_key(_session(fake), URI)


def test_a_key_of_another_type_is_refused(fake: FakeModule) -> None:
    key = fake.token.add_key(KEY_TYPE=KeyType.AES)
    with pytest.raises(KmsUnavailableError, match="not an HMAC key"):
        find_key(_session(fake), URI)
    key.attributes[Attribute.KEY_TYPE] = KeyType.SHA256_HMAC
    assert find_key(_session(fake), URI)[Attribute.KEY_TYPE] is KeyType.SHA256_HMAC


def test_a_session_that_is_gone_is_closed_quietly(fake: FakeModule) -> None:
    session = _session(fake)
    close_quietly(session)
    with pytest.raises(pkcs11.SessionHandleInvalid):
        session.close()
    close_quietly(session)
