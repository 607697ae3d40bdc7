"""The commands of docs/howto/master-key-in-hsm.md for Vault and OpenBao, as they are written."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import admin_kek, admin_kek_info
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.key_uris import parse_key_uri
from keyturn_workers.keys.master_keys.providers import open_master_key
from keyturn_workers.process.settings import KmsSettings
from tests.support.documents import code_blocks, run_shell

if TYPE_CHECKING:
    from tools.servers import OpenBao

pytestmark = pytest.mark.servers

_PAGE = Path(__file__).parents[3] / "docs/howto/master-key-in-hsm.md"
MASTER_KEY = bytes(range(32))


def _blocks(language: str) -> list[str]:
    """The section's blocks of code in one language."""
    section = _PAGE.read_text().partition("\n## Vault and OpenBao\n")[2].partition("\n## ")[0]
    found = code_blocks(section, language)
    assert len(found) == {"sh": 3, "hcl": 2}[language]
    return found


async def test_a_key_and_a_role_that_may_only_derive(own_openbao: OpenBao, tmp_path: Path) -> None:
    own_openbao.call("DELETE", "sys/mounts/transit")
    own_openbao.call("DELETE", "sys/auth/approle")
    (tmp_path / "keyturn-m2.hcl").write_text(_blocks("hcl")[0])
    env = {"BAO_ADDR": own_openbao.url, "BAO_TOKEN": own_openbao.root_token}
    printed = ""
    for block in _blocks("sh"):
        status, printed = await run_shell(block, tmp_path, env)
        assert status == 0, printed
    settings = KmsSettings(
        vault_role_id=printed.splitlines()[-1], vault_secret_id_file=tmp_path / "secret-id"
    )
    assert (tmp_path / "secret-id").stat().st_mode & 0o077 == 0
    key = open_master_key(parse_key_uri(own_openbao.uri("keyturn-m2")), settings)
    try:
        assert (await key.derive(admin_kek_info("acme"))).request_id
        assert "may not read" in " ".join((await key.describe()).warnings)
    finally:
        await key.aclose()
    own_openbao.create_hmac_key("keyturn-m3")
    other = open_master_key(parse_key_uri(own_openbao.uri("keyturn-m3")), settings)
    try:
        with pytest.raises(KmsUnavailableError, match="may not use"):
            await other.derive(admin_kek_info("acme"))
    finally:
        await other.aclose()


async def test_what_the_operator_may_is_enough_to_create_and_to_import(
    openbao: OpenBao, vhost_url: str, tmp_path: Path
) -> None:
    policies = []
    for name in ("created", "imported"):
        rules = _blocks("hcl")[1].replace("keyturn-m2", name)
        openbao.call("PUT", f"sys/policies/acl/operator-{name}", {"policy": rules})
        policies.append(f"operator-{name}")
    keys = json.dumps({"m1": base64.b64encode(MASTER_KEY).decode()})
    env = {
        "KEYTURN_SECRETS_DIR": str(tmp_path),
        "KEYTURN_MASTER_KEYS": keys,
        # An import is recorded in the audit trail.
        "KEYTURN_AMQP_URL": vhost_url,
        "KEYTURN_EVENT_KEY": base64.b64encode(MASTER_KEY).decode(),
    }
    env |= openbao.environment(openbao.make_token(*policies))
    created, imported = openbao.uri("created"), openbao.uri("imported")
    expectations = (
        (0, "It can derive KEKs", "create", created),
        (1, "exists already", "create", created),
        (0, "derives the same KEKs", "import", "m1", imported),
        (0, "derives the same KEKs", "import", "m1", imported),
        (1, "differs from the local one", "import", "m1", created),
    )
    for expected, text, *arguments in expectations:
        status, output = await run_shell(shlex.join(("keyturn", "keys", *arguments)), tmp_path, env)
        assert (status, text in output) == (expected, True), output
    settings = KmsSettings(vault_token_file=Path(env["KEYTURN_VAULT_TOKEN_FILE"]))
    key = open_master_key(parse_key_uri(imported), settings)
    try:
        derivation = await key.derive(admin_kek_info("acme"))
        assert derivation.kek == admin_kek(MASTER_KEY, "acme")
        assert (await key.describe()).warnings == ()
    finally:
        await key.aclose()
