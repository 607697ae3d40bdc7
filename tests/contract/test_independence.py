"""A service in another process needs the distribution `keyturn` alone."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

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
