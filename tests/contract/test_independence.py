"""A service needs `keyturn` alone; a reader of stored objects needs nothing of Keyturn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, new_api_key, new_dek, seal, to_base64, user_kek, wrap_dek
from keyturn.metadata import COBBLESTONE

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]

_SCRIPT = """
import importlib, pkgutil, sys

class Refuse:
    barred = ("keyturn_workers", "faststream", "aioboto3", "aiobotocore", "botocore", "boto3",
              "aiohttp", "opentelemetry", "structlog", "typer", "rich", "stamina", "uvloop", "yaml")
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.barred:
            raise ModuleNotFoundError(f"barred: {name}", name=name)
        return None

sys.meta_path.insert(0, Refuse())
import keyturn
# Each is the part of an extra, and is imported only where that is used.
of_extras = {"keyturn.s3", "keyturn.tracing"}
found = {m.name for m in pkgutil.walk_packages(keyturn.__path__, "keyturn.")}
assert of_extras < found
names = sorted(found - of_extras)
for name in names:
    importlib.import_module(name)
assert "keyturn.publisher.client" in sys.modules

import asyncio
from keyturn.publisher import BrokerUnavailableError, Publisher
from keyturn.crypto import IntakeKey, SigningKey, VerifyKey
from keyturn.errors import SettingsError
from keyturn.settings import NamedIntakeKey, PublisherSettings, S3Settings

key = SigningKey.from_seed(bytes(32))
settings = PublisherSettings(
    amqp_url="amqp://guest:sesame@127.0.0.1:1/", publisher_name="p", publisher_key=key,
    intake_public_key=NamedIntakeKey("main", IntakeKey.from_seed(bytes(32)).public_key),
    event_public_key=VerifyKey.from_bytes(key.public_bytes),
)

async def attempt(s3, expected):
    try:
        async with Publisher.open(settings, s3=s3, publish_timeout_s=5):
            raise SystemExit("opened")
    except expected as exc:
        print(type(exc).__name__, exc)

asyncio.run(attempt(None, BrokerUnavailableError))
asyncio.run(attempt(S3Settings(s3_bucket="bucket"), SettingsError))
"""


@pytest.mark.slow
def test_keyturn_works_without_the_workers_and_what_only_they_need() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(_SCRIPT)],
        cwd=ROOT,
        env={"PATH": "", "PYTHONPATH": str(ROOT / "contracts")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("BrokerUnavailableError the broker cannot be")
    assert "keyturn[staging]" in done.stdout.splitlines()[1]
    assert "sesame" not in done.stdout + done.stderr


# examples/open_by_spec.py opens what is stored, and imports nothing of Keyturn.


_BY_SPEC = ROOT / "examples" / "open_by_spec.py"
_ALONE = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("keyturn", "keyturn_workers"):
            raise ModuleNotFoundError(f"barred: {name}", name=name)

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_PROJECT, _KEY, _PEPPER = "acme", "reports/größe.pdf", "hot"
_CHUNK = 16384


def _open(
    folder: Path, body: bytes, dek: bytes, api_key: str
) -> subprocess.CompletedProcess[bytes]:
    wrap = wrap_dek(
        user_kek(api_key, _PROJECT, _PEPPER),
        "user",
        algorithm=COBBLESTONE,
        project=_PROJECT,
        object_key=_KEY,
        generation=3,
        dek=dek,
    )
    names = {"enc-algo": COBBLESTONE, "enc-kek-user": "3:0", "enc-dek-user": to_base64(wrap)}
    (folder / "link.json").write_text(json.dumps({"url": "", "metadata": names}))
    (folder / "body").write_bytes(body)
    arguments = [_PROJECT, _KEY, str(folder / "link.json"), str(folder / "body")]
    return subprocess.run(
        [sys.executable, "-c", _ALONE, str(_BY_SPEC), *arguments],
        env={"PATH": os.environ["PATH"], "KEYTURN_API_KEY": _API_KEY, "KEYTURN_PEPPER": _PEPPER},
        capture_output=True,
        check=False,
    )


_API_KEY = new_api_key()


@pytest.mark.parametrize("size", [0, 5, _CHUNK - 1, _CHUNK, _CHUNK + 1, 3 * 2**20 + 7])
def test_open_by_spec_opens_what_is_stored(tmp_path: Path, size: int) -> None:
    plaintext, dek = os.urandom(size), new_dek()
    done = _open(tmp_path, seal(dek, BODY_CONTEXT, plaintext), dek, _API_KEY)
    assert (done.returncode, done.stdout, done.stderr) == (0, plaintext, b"")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda body: body[:-1], id="one byte less"),
        pytest.param(lambda body: body[: -(16 + 1)], id="without its last chunk"),
        pytest.param(lambda body: body + b"\0", id="one byte more"),
        pytest.param(lambda body: body[:100] + bytes([body[100] ^ 1]) + body[101:], id="changed"),
        pytest.param(lambda body: bytes(len(body)), id="another body"),
    ],
)
def test_open_by_spec_fails_on_a_body_that_is_not_whole(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    dek = new_dek()
    body = seal(dek, BODY_CONTEXT, b"x" * (2 * _CHUNK + 1))
    assert _open(tmp_path, damage(body), dek, _API_KEY).returncode == 1


def test_open_by_spec_fails_with_another_key(tmp_path: Path) -> None:
    dek = new_dek()
    done = _open(tmp_path, seal(dek, BODY_CONTEXT, b"x"), dek, new_api_key())
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"this key does not open the object\n"


def test_open_by_spec_is_short() -> None:
    lines = _BY_SPEC.read_text().partition("def opened")[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 30
