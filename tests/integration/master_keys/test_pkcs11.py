"""Master keys on SoftHSM (SPEC 2.2): loaded as such, and behind a socket, where it can be away."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pkcs11
import pytest
from pkcs11 import Attribute, TokenFlag

from keyturn.crypto import (
    Secret,
    admin_kek,
    admin_kek_info,
    master_prk,
    record_kek,
    record_kek_info,
)
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.key_uris import Pkcs11Uri, parse_key_uri
from keyturn_workers.keys.master_keys.circuit_breaker import CallLimits, CircuitBreaker
from keyturn_workers.keys.master_keys.pkcs11 import Pkcs11MasterKey, TokenAccess, key_template
from keyturn_workers.keys.master_keys.providers import (
    generate_master_key,
    import_master_key,
    open_master_key,
)
from keyturn_workers.process.settings import KmsSettings
from tools.servers import softhsm as server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.servers import SoftHsm

pytestmark = pytest.mark.servers
KEY = bytes(range(32))
# HMAC-SHA256(HMAC-SHA256(32 zero bytes, KEY), "keyturn/v1/admin-kek" ‖ \0 ‖ "acme" ‖ 0x01), by
# openssl: the vector that every provider must pass.
ADMIN_KEK = "97216b49f732dff39115cf6c4b4ab2051c9c044d6a2e80f2978f3d6a1ced9dbf"
RECORD_KEK = "236a2dc8b7f1d8207107a086cf438d248f540f1daf0a0265c4022aa9dc53957c"

_OTHER_PROCESS = """
import asyncio, sys
from keyturn.crypto import admin_kek_info
from keyturn_workers.core.key_uris import parse_key_uri
from keyturn_workers.keys.master_keys.providers import open_master_key
from keyturn_workers.process.settings import KmsSettings

key = open_master_key(parse_key_uri(sys.argv[1]), KmsSettings.read())
print(asyncio.run(key.derive(admin_kek_info("acme"))).kek.reveal().hex())
"""


@pytest.fixture
def settings(softhsm: SoftHsm) -> KmsSettings:
    """The token behind its socket."""
    return KmsSettings(pkcs11_module=server.CLIENT, pkcs11_pin_file=softhsm.pin_file)


@pytest.fixture(params=["socket", "library"])
def either(
    request: pytest.FixtureRequest,
    softhsm: SoftHsm,
    settings: KmsSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> KmsSettings:
    """The same token, behind its socket or by SoftHSM's own library, which threads share."""
    if request.param == "socket":
        return settings
    for name, value in softhsm.direct_env.items():
        monkeypatch.setenv(name, value)
    return settings.model_copy(update={"pkcs11_module": server.MODULE})


def _uri(softhsm: SoftHsm, label: str | None = None, token: str = server.TOKEN) -> Pkcs11Uri:
    uri = parse_key_uri(softhsm.uri(label or secrets.token_hex(8), token=token))
    assert isinstance(uri, Pkcs11Uri)
    return uri


@asynccontextmanager
async def _opened(uri: Pkcs11Uri, settings: KmsSettings) -> AsyncIterator[Pkcs11MasterKey]:
    key = open_master_key(uri, settings)
    assert isinstance(key, Pkcs11MasterKey)
    try:
        yield key
    finally:
        await key.aclose()


async def test_an_imported_master_key_derives_what_it_derived_before(
    softhsm: SoftHsm, either: KmsSettings
) -> None:
    uri = _uri(softhsm)
    await import_master_key(uri, either, master_prk(KEY))
    async with _opened(uri, either) as key:
        admin = (await key.derive(admin_kek_info("acme"))).kek
        record = (await key.derive(record_kek_info("acme"))).kek
        description = await key.describe()
    assert (admin, record) == (admin_kek(KEY, "acme"), record_kek(KEY, "acme"))
    assert (admin.reveal().hex(), record.reveal().hex()) == (ADMIN_KEK, RECORD_KEK)
    assert description.exportable is False
    assert description.imported is True


async def test_a_key_made_inside_derives_and_never_leaves(
    softhsm: SoftHsm, either: KmsSettings
) -> None:
    uri = _uri(softhsm)
    await generate_master_key(uri, either)
    async with _opened(uri, either) as key:
        first = (await key.derive(b"1")).kek
        assert (await key.derive(b"1")).kek == first
        assert (await key.derive(b"2")).kek != first
        description = await key.describe()
    assert len(first.reveal()) == 32
    assert (description.exportable, description.imported) == (False, False)
    assert description.warnings == ()
    access = TokenAccess(uri, either)
    with access.module.call(5) as epoch:
        session = access.open_session(epoch)
        (inside,) = session.get_objects(key_template(uri))
        with pytest.raises(pkcs11.AttributeSensitive):
            inside[Attribute.VALUE]
        assert inside[Attribute.VALUE_LEN] == 32
        session.close()


async def test_a_key_that_exists_is_not_made_again(softhsm: SoftHsm, settings: KmsSettings) -> None:
    uri = _uri(softhsm)
    await generate_master_key(uri, settings)
    with pytest.raises(ValueError, match="already has a matching key"):
        await import_master_key(uri, settings, master_prk(KEY))
    with pytest.raises(ValueError, match="already has a matching key"):
        await generate_master_key(uri, settings)


async def test_another_process_needs_only_the_environment(
    softhsm: SoftHsm, settings: KmsSettings
) -> None:
    uri = _uri(softhsm)
    await import_master_key(uri, settings, master_prk(KEY))
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _OTHER_PROCESS, uri.location],
        env={"KEYTURN_SECRETS_DIR": str(softhsm.pin_file.parent), **softhsm.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ADMIN_KEK), done.stderr


async def _keyturn(softhsm: SoftHsm, amqp_url: str, *arguments: str) -> tuple[int, str]:
    keys = json.dumps({"m1": base64.b64encode(KEY).decode()})
    empty = softhsm.pin_file.parent
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("keyturn")), "keys", *arguments),
        env={
            "KEYTURN_SECRETS_DIR": str(empty),
            "KEYTURN_MASTER_KEYS": keys,
            "KEYTURN_AMQP_URL": amqp_url,
            "KEYTURN_EVENT_KEY": base64.b64encode(KEY).decode(),
            **softhsm.env,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_the_commands_of_the_how_to(
    softhsm: SoftHsm, settings: KmsSettings, vhost_url: str
) -> None:
    created, imported = _uri(softhsm), _uri(softhsm)
    status, output = await _keyturn(softhsm, vhost_url, "create", created.location)
    assert (status, "It can derive KEKs" in output) == (0, True), output
    status, output = await _keyturn(softhsm, vhost_url, "create", created.location)
    assert (status, "already has a matching key" in output) == (1, True), output
    for _ in range(2):  # it can be repeated
        status, output = await _keyturn(softhsm, vhost_url, "import", "m1", imported.location)
        assert (status, "derives the same KEKs" in output) == (0, True), output
    status, output = await _keyturn(softhsm, vhost_url, "import", "m1", created.location)
    assert (status, "differs from the local one" in output) == (1, True), output
    async with _opened(imported, settings) as key:
        assert (await key.derive(admin_kek_info("acme"))).kek == admin_kek(KEY, "acme")


async def test_32_derivations_at_once(softhsm: SoftHsm, either: KmsSettings) -> None:
    uri = _uri(softhsm)
    await import_master_key(uri, either, master_prk(KEY))
    projects = [f"p{number}" for number in range(32)]
    async with _opened(uri, either) as key:
        for _ in range(20):
            keks = await asyncio.gather(*(key.derive(admin_kek_info(name)) for name in projects))
            assert [kek.kek for kek in keks] == [admin_kek(KEY, name) for name in projects]


async def test_two_master_keys_share_one_token(softhsm: SoftHsm, either: KmsSettings) -> None:
    """Closing one must not log the other out."""
    uris = [_uri(softhsm), _uri(softhsm)]
    for uri in uris:
        await generate_master_key(uri, either)
    async with _opened(uris[0], either) as first:
        kek = (await first.derive(b"1")).kek
        async with _opened(uris[1], either) as second:
            assert (await second.derive(b"1")).kek != kek
        assert (await first.derive(b"1")).kek == kek


async def test_a_wrong_pin_is_tried_once(
    softhsm: SoftHsm,
    settings: KmsSettings,
    tmp_path: Path,
) -> None:
    label, wrong = secrets.token_hex(8), secrets.token_hex(8)
    softhsm.add_token(label)
    uri = _uri(softhsm, token=label)
    await generate_master_key(uri, settings)
    file = tmp_path / "pin"
    file.write_text(wrong)
    # Another process: this one is logged in.
    softhsm.stop()
    softhsm.start()
    async with _opened(
        uri, settings.model_copy(update={"pkcs11_pin_file": file, "kms_timeout_s": 10})
    ) as key:
        with pytest.raises(KmsUnavailableError, match="refused the PIN") as caught:
            await key.derive(b"1")
        assert wrong not in str(caught.value)
        assert _flags(key, uri) & TokenFlag.USER_PIN_COUNT_LOW
        # Now it would be right. It is refused all the same, so it was not tried.
        softhsm.set_pin(label, wrong)
        for _ in range(5):
            with pytest.raises(KmsUnavailableError, match="not tried again"):
                await key.derive(b"1")
        corrected = secrets.token_hex(8)
        softhsm.set_pin(label, corrected)
        file.write_text(f"{corrected}\n")
        await key.derive(b"1")
        assert not _flags(key, uri) & TokenFlag.USER_PIN_COUNT_LOW


def _flags(key: Pkcs11MasterKey, uri: Pkcs11Uri) -> TokenFlag:
    with key._token.module.call(5):
        return key._token.module.token(uri).flags


async def test_what_the_uri_names_must_be_there_once(
    softhsm: SoftHsm, settings: KmsSettings
) -> None:
    label = secrets.token_hex(8)
    for number in (b"\x01", b"\x02"):
        one = Pkcs11Uri("", object=label, id=number, token=server.TOKEN)
        await import_master_key(one, settings, Secret(number * 32))
    for uri, text in (
        (_uri(softhsm, token="missing"), "no PKCS #11 token matches"),
        (_uri(softhsm), "no key that matches"),
        (_uri(softhsm, label), "2 keys of the PKCS #11 token match"),
    ):
        async with _opened(uri, settings) as key:
            with pytest.raises(KmsUnavailableError, match=text):
                await key.derive(b"1")
    async with _opened(one, settings) as key:
        await key.derive(b"1")


async def test_a_token_is_found_after_it_was_plugged_in(
    softhsm: SoftHsm, settings: KmsSettings
) -> None:
    label = secrets.token_hex(8)
    uri = _uri(softhsm, token=label)
    async with _opened(uri, settings) as key:
        with pytest.raises(KmsUnavailableError, match="no PKCS #11 token"):
            await key.derive(b"1")
        softhsm.add_token(label)
        await generate_master_key(uri, settings)
        await key.derive(b"1")


async def test_a_hsm_that_goes_away_under_load_comes_back(
    softhsm: SoftHsm, settings: KmsSettings
) -> None:
    uri = _uri(softhsm)
    await import_master_key(uri, settings, master_prk(KEY))
    breaker = CircuitBreaker(CallLimits())
    failed, derived, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def load() -> None:
        while not done.is_set():
            try:
                kek = (await breaker.call(lambda: key.derive(admin_kek_info("acme")))).kek
            except KmsUnavailableError:
                failed.set()
                await asyncio.sleep(0.01)  # the pace of a caller
            else:
                assert kek == admin_kek(KEY, "acme")
                derived.set()

    async with _opened(uri, settings) as key, asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(load())
        await asyncio.wait_for(derived.wait(), 30)
        for _ in range(2):
            failed.clear()
            await asyncio.to_thread(softhsm.stop)
            await asyncio.wait_for(failed.wait(), 30)
            await asyncio.to_thread(softhsm.start)
            derived.clear()
            await asyncio.wait_for(derived.wait(), 30)
        done.set()


async def test_a_hsm_that_hangs_is_given_up_in_time_and_used_again(
    softhsm: SoftHsm, settings: KmsSettings
) -> None:
    uri = _uri(softhsm)
    await generate_master_key(uri, settings)
    short = settings.model_copy(update={"kms_timeout_s": 0.5})
    async with _opened(uri, short) as key:
        kek = (await key.derive(b"1")).kek
        softhsm.suspend()
        try:
            async with asyncio.timeout(5):
                calls = (key.derive(b"1") for _ in range(16))
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            softhsm.resume()
        assert {type(outcome) for outcome in outcomes} == {KmsUnavailableError}
        assert (await key.derive(b"1")).kek == kek
