"""The settings that `keyturn init` writes for a master key that an HSM or a KMS holds (SPEC 11)."""

import asyncio
import json
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from keyturn.settings import PREFIX
from keyturn_workers.cli.create_key import create_if_missing
from keyturn_workers.cli.errors import note
from keyturn_workers.key_uris import KeyUri
from keyturn_workers.settings import KmsSettings

# The settings of each provider, by the scheme of its URIs; and those of all of them.
_SETTINGS: Final = {"pkcs11": "pkcs11_", "awskms": "aws_kms_", "vault": "vault_"}
_ALL: Final = "kms_"


def held_key_settings(name: str, uri: KeyUri) -> dict[str, str]:
    """Make sure that the key derives, and return the settings by which a process uses it.

    Raises:
        CommandError: it does not derive, and could not be generated.
        SettingsError: a setting of its provider is missing or malformed.
    """
    settings = KmsSettings.read()
    if asyncio.run(create_if_missing(settings, uri)):
        note(f"generated {uri.location}")
    return {
        "KEYTURN_MASTER_KEYS": json.dumps({name: uri.location}),
        "KEYTURN_ACTIVE_MASTER_KEY": name,
        **_provider_settings(settings, uri),
    }


def _provider_settings(settings: KmsSettings, uri: KeyUri) -> dict[str, str]:
    """What the environment says about this provider; a secret only where it is given as a value."""
    prefixes = (_SETTINGS[uri.location.partition(":")[0]], _ALL)
    return {
        f"{PREFIX}{field.upper()}": _text(getattr(settings, field))
        for field in type(settings).model_fields
        if field in settings.model_fields_set and field.startswith(prefixes)
    }


def _text(value: SecretStr | Path | str | float) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
