"""Which class serves which kind of master key."""

from keyturn.crypto import Secret
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.providers import open_master_key, open_master_keys
from keyturn_workers.settings import KmsSettings

KEY = Secret(bytes(32))


def test_bytes_are_a_local_master_key() -> None:
    assert isinstance(open_master_key(KEY, KmsSettings()), LocalMasterKey)


def test_keys_keep_their_ids() -> None:
    assert list(open_master_keys({"m1": KEY, "m2": KEY}, KmsSettings())) == ["m1", "m2"]
