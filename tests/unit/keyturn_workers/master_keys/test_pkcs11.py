"""A master key on a PKCS #11 token, on a module written in Python."""

import asyncio
import threading
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute
from pydantic import SecretStr

from keyturn.crypto import admin_kek, admin_kek_info, record_kek, record_kek_info
from keyturn.errors import KmsUnavailableError
from keyturn_workers.key_uris import Pkcs11Uri
from keyturn_workers.master_keys.pkcs11 import Pkcs11MasterKey
from keyturn_workers.settings import KmsSettings
from tests.support.fake_pkcs11 import MASTER_KEY, PIN, FakeModule

URI = Pkcs11Uri("pkcs11:token=keyturn;object=m1", object="m1", token="keyturn")
SETTINGS = KmsSettings(
    pkcs11_module=Path("fake.so"), pkcs11_pin=SecretStr(PIN), kms_timeout_s=5, pkcs11_sessions=4
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModule:
    module = FakeModule()
    module.install(monkeypatch)
    module.token.add_key()
    return module


async def test_it_derives_what_hkdf_derives(fake: FakeModule) -> None:
    key = Pkcs11MasterKey(URI, SETTINGS)
    assert fake.token.sessions == []
    admin = await key.derive(admin_kek_info("acme"))
    record = await key.derive(record_kek_info("acme"))
    assert admin.kek == admin_kek(MASTER_KEY, "acme")
    assert record.kek == record_kek(MASTER_KEY, "acme")
    await key.aclose()


async def test_a_lost_session_is_replaced_and_the_caller_sees_nothing(fake: FakeModule) -> None:
    key = Pkcs11MasterKey(URI, SETTINGS)
    await key.derive(b"1")
    fake.token.errors = [pkcs11.SessionHandleInvalid()]
    await key.derive(b"2")
    assert fake.token.pins == [PIN, PIN]


async def test_a_lost_device_ends_all_sessions_and_is_initialized_again_once(
    fake: FakeModule,
) -> None:
    key = Pkcs11MasterKey(URI, SETTINGS)
    for round_ in (1, 2):
        fake.token.hang = threading.Barrier(4)  # four calls at once: each has its own session
        await asyncio.gather(*(key.derive(b"%d" % number) for number in range(4)))
        fake.token.hang = None
        assert fake.initialized == round_
        fake.token.errors = [pkcs11.DeviceRemoved()]
        if round_ == 1:
            await key.derive(b"1")


async def test_a_device_that_stays_away_is_not_tried_without_end(fake: FakeModule) -> None:
    key = Pkcs11MasterKey(URI, SETTINGS)
    fake.token.errors = [pkcs11.DeviceRemoved()] * 10
    with pytest.raises(KmsUnavailableError, match="does not answer"):
        await key.derive(b"1")
    assert fake.token.signs == 2


async def test_a_refusal_is_not_tried_again(fake: FakeModule) -> None:
    key = Pkcs11MasterKey(URI, SETTINGS)
    fake.token.errors = [pkcs11.MechanismInvalid()]
    with pytest.raises(KmsUnavailableError, match="MechanismInvalid"):
        await key.derive(b"1")
    assert fake.token.signs == 1
    await key.derive(b"2")


async def test_sessions_are_used_again_and_bounded(fake: FakeModule) -> None:
    # On a busy machine the last ones wait long for their turn.
    key = Pkcs11MasterKey(URI, SETTINGS.model_copy(update={"kms_timeout_s": 60}))
    await asyncio.gather(*(key.derive(b"%d" % number) for number in range(200)))
    # One more keeps the login.
    assert len(fake.token.sessions) <= 4 + 1
    await key.aclose()
    assert [session.is_open for session in fake.token.sessions].count(True) == 1


async def test_sessions_never_exceed_the_concurrency_of_the_settings(fake: FakeModule) -> None:
    key = Pkcs11MasterKey(
        URI, SETTINGS.model_copy(update={"kms_concurrency": 1, "kms_timeout_s": 60})
    )
    await asyncio.gather(*(key.derive(b"%d" % number) for number in range(50)))
    assert len(fake.token.sessions) == 1 + 1


async def test_a_call_that_hangs_is_given_up(fake: FakeModule) -> None:
    key = Pkcs11MasterKey(URI, SETTINGS.model_copy(update={"kms_timeout_s": 0.1}))
    await key.derive(b"1")
    hang = fake.token.hang = threading.Event()
    with pytest.raises(KmsUnavailableError, match=r"did not answer within 0\.1 s"):
        await key.derive(b"2")
    fake.token.hang = None
    await key.derive(b"3")
    hang.set()


async def test_calls_that_hang_take_no_further_threads(fake: FakeModule) -> None:
    key = Pkcs11MasterKey(URI, SETTINGS.model_copy(update={"kms_timeout_s": 0.1}))
    hang = fake.token.hang = threading.Event()
    calls = (key.derive(b"%d" % number) for number in range(20))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {KmsUnavailableError}
    assert fake.token.signs == 4
    fake.token.hang = None
    hang.set()


async def test_an_answer_that_is_no_hmac_is_refused(
    fake: FakeModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(fake.token.keys[0]), "sign", lambda *_, **__: b"short")
    with pytest.raises(KmsUnavailableError, match="not 32 bytes"):
        await Pkcs11MasterKey(URI, SETTINGS).derive(b"1")


async def test_a_key_made_inside_needs_no_warning(fake: FakeModule) -> None:
    del fake
    description = await Pkcs11MasterKey(URI, SETTINGS).describe()
    assert description.location == URI.location
    assert description.exportable is False
    assert description.imported is False
    assert description.automatic_rotation is False
    assert description.warnings == ()


@pytest.mark.parametrize(
    ("attributes", "exportable", "imported", "warning"),
    [
        ({"SENSITIVE": False}, True, False, "CKA_SENSITIVE"),
        ({"EXTRACTABLE": True, "NEVER_EXTRACTABLE": False}, True, False, "CKA_EXTRACTABLE"),
        ({"NEVER_EXTRACTABLE": False}, False, False, "CKA_NEVER_EXTRACTABLE"),
        ({"DERIVE": True}, False, False, "CKA_DERIVE"),
        ({"LOCAL": False, "NEVER_EXTRACTABLE": False}, False, True, None),
    ],
)
async def test_a_key_that_may_leave_is_warned_of(
    fake: FakeModule,
    attributes: dict[str, bool],
    warning: str | None,
    *,
    exportable: bool,
    imported: bool,
) -> None:
    for name, value in attributes.items():
        fake.token.keys[0].attributes[Attribute[name]] = value
    description = await Pkcs11MasterKey(URI, SETTINGS).describe()
    assert (description.exportable, description.imported) == (exportable, imported)
    assert len(description.warnings) == (0 if warning is None else 1)
    assert warning is None or warning in description.warnings[0]


async def test_what_a_token_does_not_say_is_unknown(fake: FakeModule) -> None:
    for name in ("SENSITIVE", "EXTRACTABLE", "NEVER_EXTRACTABLE", "LOCAL"):
        del fake.token.keys[0].attributes[Attribute[name]]
    description = await Pkcs11MasterKey(URI, SETTINGS).describe()
    assert description.exportable is None
    assert description.imported is None
