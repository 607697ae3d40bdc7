"""A master key in this process."""

from keyturn.crypto import Secret, admin_kek, admin_kek_info, record_kek, record_kek_info
from keyturn_workers.master_keys.local import LocalMasterKey

KEY = Secret(bytes(range(32)))


async def test_it_derives_what_hkdf_derives() -> None:
    key = LocalMasterKey(KEY)
    admin = await key.derive(admin_kek_info("acme"))
    record = await key.derive(record_kek_info("acme"))
    assert admin.kek == admin_kek(KEY.reveal(), "acme")
    assert record.kek == record_kek(KEY.reveal(), "acme")
    assert admin.kek != record.kek
    assert admin.request_id is None


async def test_it_says_that_the_settings_show_the_key() -> None:
    description = await LocalMasterKey(KEY).describe()
    assert description.provider == "local"
    assert description.exportable
