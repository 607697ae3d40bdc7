"""The vector of docs/reference/key-providers.md, recomputed from the formula (SPEC 2.2).

With `hmac` alone, and none of the product's derivations: it is what a provider is held against.
"""

from __future__ import annotations

import hmac
import re
import subprocess
from pathlib import Path

import pytest

from keyturn.crypto import admin_kek, record_kek

_TEXT = (Path(__file__).parents[3] / "docs" / "reference" / "key-providers.md").read_text()
_ROWS = dict(re.findall(r"^\| ([^|]+?) \| `([^`|]+)` \|$", _TEXT, re.MULTILINE))
_MASTER_KEY = bytes.fromhex(_ROWS["master key"])
_PRK = bytes.fromhex(_ROWS["PRK: the key's value"])
_PROJECT = _ROWS["project"]


def test_the_prk_is_that_of_the_master_key() -> None:
    assert bytes(range(32)) == _MASTER_KEY
    assert hmac.digest(bytes(32), _MASTER_KEY, "sha256") == _PRK


@pytest.mark.parametrize("kind", ["admin", "record"])
def test_each_kek_is_one_hmac_of_its_message(kind: str) -> None:
    message = f"keyturn/v1/{kind}-kek\0{_PROJECT}\x01".encode()
    assert bytes.fromhex(_ROWS[f"message for the {kind} KEK"]) == message
    assert bytes.fromhex(_ROWS[f"{kind} KEK"]) == hmac.digest(_PRK, message, "sha256")


@pytest.mark.parametrize(("kind", "derive"), [("admin", admin_kek), ("record", record_kek)])
def test_the_product_derives_the_same(kind: str, derive: object) -> None:
    assert callable(derive)
    assert derive(_MASTER_KEY, _PROJECT).reveal() == bytes.fromhex(_ROWS[f"{kind} KEK"])


def test_the_command_line_prints_the_admin_kek() -> None:
    found = re.search(r"```sh\n(printf .*?)```", _TEXT, re.DOTALL)
    assert found is not None
    done = subprocess.run(["/bin/sh", "-c", found[1]], capture_output=True, check=True)
    assert done.stdout.decode().split()[-1] == _ROWS["admin KEK"]


def test_the_longest_message_is_as_long_as_the_page_says() -> None:
    longest = len(b"keyturn/v1/record-kek\0" + b"p" * 63 + b"\x01")
    assert f"at most {longest} bytes" in _TEXT
