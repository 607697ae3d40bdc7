"""Which class serves which kind of master key."""

import pytest

from keyturn.crypto import Secret
from keyturn_workers.key_uris import parse_key_uri
from keyturn_workers.master_keys import awskms
from keyturn_workers.master_keys.awskms import AwsKmsMasterKey
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.port import MasterKey
from keyturn_workers.master_keys.providers import (
    generate_master_key,
    import_master_key,
    open_master_key,
    open_master_keys,
)
from keyturn_workers.settings import KmsSettings, MasterKeySource

KEY = Secret(bytes(32))
AWS = parse_key_uri("awskms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd")


@pytest.mark.parametrize(("source", "kind"), [(KEY, LocalMasterKey), (AWS, AwsKmsMasterKey)])
def test_a_setting_has_its_class(source: MasterKeySource, kind: type[MasterKey]) -> None:
    assert isinstance(open_master_key(source, KmsSettings()), kind)


def test_keys_keep_their_ids() -> None:
    assert list(open_master_keys({"m1": KEY, "m2": KEY}, KmsSettings())) == ["m1", "m2"]


async def test_an_import_goes_to_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = []

    async def import_prk(*given: object) -> None:
        imported.append(given)

    monkeypatch.setattr(awskms, "import_prk", import_prk)
    settings = KmsSettings()
    await import_master_key(AWS, settings, KEY)
    assert imported == [(AWS, settings, KEY)]


async def test_a_key_in_the_settings_takes_no_import_and_is_not_generated() -> None:
    with pytest.raises(ValueError, match="cannot be imported"):
        await import_master_key(KEY, KmsSettings(), KEY)
    with pytest.raises(ValueError, match="cannot be generated"):
        await generate_master_key(KEY, KmsSettings())


async def test_aws_chooses_the_name_of_a_new_key() -> None:
    with pytest.raises(ValueError, match="aws kms create-key"):
        await generate_master_key(AWS, KmsSettings())
