"""A master key on a PKCS #11 token, on a module written in Python."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType, ObjectClass
from pydantic import SecretStr

from keyturn.crypto import Secret, admin_kek, admin_kek_info, record_kek, record_kek_info
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn_workers.core.key_uris import Pkcs11Uri
from keyturn_workers.keys.master_keys.pkcs11 import (
    BlockingCalls,
    Pkcs11MasterKey,
    TokenAccess,
    find_key,
    key_template,
)
from keyturn_workers.process.settings import KmsSettings
from tests.support.fake_pkcs11 import MASTER_KEY, PIN, FakeModule, FakeSession

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
    with pytest.raises(KmsUnavailableError, match="does not respond"):
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
    with pytest.raises(KmsUnavailableError, match=r"did not respond within 0\.1 s"):
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


# What a URI names: module, token, PIN and key.

ANY_TOKEN = Pkcs11Uri("pkcs11:object=m1", object="m1")
MODULE = Path("fake.so")


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
    access = TokenAccess(ANY_TOKEN, KmsSettings(pkcs11_module=MODULE, pkcs11_pin_file=file))
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
        TokenAccess(ANY_TOKEN, settings)


def test_the_uris_module_goes_first(fake: FakeModule) -> None:
    del fake
    settings = KmsSettings(pkcs11_module=MODULE, pkcs11_pin=SecretStr(PIN))
    with_path = Pkcs11Uri("", object="m1", module_path="/other.so")
    modules = {TokenAccess(uri, settings).module for uri in (ANY_TOKEN, with_path, with_path)}
    assert len(modules) == 2


def test_a_key_is_found_by_label_and_id(fake: FakeModule) -> None:
    fake.token.add_key("m1", ID=b"\x01")
    fake.token.add_key("m1", ID=b"\x02")
    fake.token.add_key("m1", ID=b"\x02", CLASS=ObjectClass.DATA)
    uri = Pkcs11Uri("", object="m1", id=b"\x02")
    assert find_key(_session(fake), uri)[Attribute.ID] == b"\x02"
    assert key_template(uri)[Attribute.CLASS] is ObjectClass.SECRET_KEY


def test_no_key_and_two_keys_are_refused(fake: FakeModule) -> None:
    fake.token.keys.clear()
    with pytest.raises(KmsUnavailableError, match="no key that matches"):
        find_key(_session(fake), ANY_TOKEN)
    fake.token.add_key(ID=b"\x01")
    fake.token.add_key(ID=b"\x02")
    with pytest.raises(KmsUnavailableError, match=r"2 keys .* match"):
        find_key(_session(fake), ANY_TOKEN)


def test_a_key_of_another_type_is_refused(fake: FakeModule) -> None:
    fake.token.keys.clear()
    key = fake.token.add_key(KEY_TYPE=KeyType.AES)
    with pytest.raises(KmsUnavailableError, match="not an HMAC key"):
        find_key(_session(fake), ANY_TOKEN)
    key.attributes[Attribute.KEY_TYPE] = KeyType.SHA256_HMAC
    assert find_key(_session(fake), ANY_TOKEN)[Attribute.KEY_TYPE] is KeyType.SHA256_HMAC


# Blocking calls in threads that no caller and no exit waits for.

_HANGS_AT_EXIT = """
import asyncio, threading
from keyturn.errors import KmsUnavailableError
from keyturn_workers.keys.master_keys.pkcs11 import BlockingCalls

async def main():
    try:
        await BlockingCalls(1, 0.05).run(threading.Event().wait)
    except KmsUnavailableError:
        print("gave up")

asyncio.run(main())
"""


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Ends hanging calls, at the latest with the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_result_or_an_error_comes_back_from_another_thread() -> None:
    calls = BlockingCalls(1, 5)
    assert await calls.run(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ValueError, match="seven"):
        await calls.run(lambda: int("seven"))
    assert await calls.run(lambda: 7) == 7


async def test_no_more_blocking_calls_run_than_there_are_places(release: threading.Event) -> None:
    begun = threading.Semaphore(0)

    def call() -> bool:
        begun.release()
        return release.wait()

    blocking = BlockingCalls(2, 30)
    calls = [asyncio.create_task(blocking.run(call)) for _ in range(6)]
    for _ in range(2):
        await asyncio.to_thread(begun.acquire)
    assert not begun.acquire(blocking=False)
    release.set()
    assert await asyncio.gather(*calls) == [True] * 6


async def test_a_hanging_call_costs_its_place_and_no_other(release: threading.Event) -> None:
    calls = BlockingCalls(2, 0.05)
    with pytest.raises(KmsUnavailableError, match=r"within 0\.05 s"):
        await calls.run(release.wait)
    calls.timeout_s = 30
    assert [await calls.run(lambda: 7) for _ in range(20)] == [7] * 20


async def test_a_call_that_found_no_place_in_time_is_dropped(release: threading.Event) -> None:
    calls, called = BlockingCalls(1, 0.05), []
    for call in (release.wait, lambda: called.append(1)):
        with pytest.raises(KmsUnavailableError):
            await calls.run(call)
    release.set()
    calls.timeout_s = 30
    assert await calls.run(lambda: 7) == 7
    assert called == []


def test_a_hanging_call_does_not_keep_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANGS_AT_EXIT],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("gave up\n", "")


async def test_a_call_that_gets_no_thread_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = BlockingCalls(1, 5)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(KmsUnavailableError, match="no thread"):
            await calls.run(lambda: 1)
    assert await calls.run(lambda: 2) == 2
