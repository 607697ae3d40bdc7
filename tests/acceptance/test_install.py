"""What `pip install ./contracts` gives a service: one small package, and examples that run.

Each test runs in a fresh virtual environment that holds the built wheel and nothing of this
repository. Where no package index can be reached, they are skipped.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.documents import code_blocks
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.process import gateway, worker
from tools.harness.wire import SignedPublisher, open_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.servers import S3Server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
_MAX_DEPENDENCIES = 7  # python-dotenv is one of pydantic-settings as well
_MAX_INSTALLED = 20  # with the dependencies of dependencies
_NO_INDEX = re.compile(r"Failed to fetch|error sending request|dns error|Could not connect")
pytestmark = pytest.mark.timeout(900)

_DESCRIBE = """
import json
from importlib.metadata import distribution, distributions

keyturn = distribution("keyturn")
files = [str(path) for path in keyturn.files or () if "__pycache__" not in path.parts]
print(json.dumps({
    "files": files,
    "requires": [line for line in keyturn.requires or () if "extra ==" not in line],
    "installed": sorted({one.name.lower() for one in distributions()}),
}))
"""
_WITHOUT_EXTRAS = """
import asyncio
import keyturn
from keyturn import Publisher, PublisherSettings, S3Settings, SettingsError
from keyturn.crypto import IntakeKey, SigningKey, VerifyKey
from keyturn.gateway import Client
from keyturn.settings import NamedIntakeKey

for name in keyturn.__all__:
    getattr(keyturn, name)
key = SigningKey.from_seed(bytes(32))
settings = PublisherSettings(
    amqp_url="amqp://127.0.0.1:1/", publisher_name="p", publisher_key=key,
    intake_public_key=NamedIntakeKey("main", IntakeKey.from_seed(bytes(32)).public_key),
    event_public_key=VerifyKey.from_bytes(key.public_bytes),
)

async def attempt(opening):
    try:
        async with opening:
            raise SystemExit("opened")
    except SettingsError as exc:
        print(exc)

asyncio.run(attempt(Client.connect("https://files.example.com", "k" * 40)))
asyncio.run(attempt(Publisher.open(settings, s3=S3Settings(s3_bucket="bucket"))))
"""


def _uv(*arguments: str) -> None:
    """Run uv, which caches what pip would fetch and compile each time."""
    program = shutil.which("uv", path=f"{os.environ['PATH']}:{ROOT / '.tools' / 'bin'}")
    if program is None:
        pytest.skip("uv is missing: `make setup` installs it")
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode and _NO_INDEX.search(done.stderr):
        pytest.skip(f"no package index: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


class Environment:
    """A virtual environment of its own.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self._python = folder / "bin" / "python"
        _uv("venv", "--quiet", "--python", sys.executable, str(folder))

    def install(self, *requirements: str) -> None:
        """Install requirements, or skip the test if there is no index to install from."""
        _uv("pip", "install", "--python", str(self._python), *requirements)

    def output(self, program: str) -> str:
        """What a program prints that runs outside the repository, without warnings."""
        done = subprocess.run(
            [str(self._python), "-I", "-W", "error", "-c", program],
            cwd=self._python.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def run(self, program: Path, folder: Path, env: Mapping[str, str]) -> tuple[int, str]:
        """The exit status of a program that runs in `folder`, and what it printed."""
        process = await asyncio.create_subprocess_exec(
            str(self._python),
            str(program),
            cwd=folder,
            env={"PATH": os.environ["PATH"], **env},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(process.communicate(), timeout=120)
        assert process.returncode is not None
        return process.returncode, output.decode()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of `contracts/`, built as any installer builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    _uv("build", "--wheel", "--out-dir", str(folder), str(ROOT / "contracts"))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with the wheel, without extras."""
    environment = Environment(tmp_path_factory.mktemp("bare") / "env")
    environment.install(str(wheel))
    return environment


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with the wheel and both extras."""
    environment = Environment(tmp_path_factory.mktemp("complete") / "env")
    environment.install(f"{wheel}[staging,gateway]")
    return environment


def test_the_wheel_brings_one_import_name_with_types_and_nothing_else(bare: Environment) -> None:
    described: dict[str, Any] = json.loads(bare.output(_DESCRIBE))
    names = {Path(file).parts[0] for file in described["files"]}
    assert {name for name in names if not name.endswith(".dist-info")} == {"keyturn"}
    assert "keyturn/py.typed" in described["files"]
    kinds = {Path(file).suffix for file in described["files"] if file.startswith("keyturn/")}
    assert kinds == {".py", ".typed"}  # schemas, examples and AsyncAPI stay in the repository


def test_the_wheel_needs_few_packages(bare: Environment) -> None:
    described: dict[str, Any] = json.loads(bare.output(_DESCRIBE))
    assert len(described["requires"]) <= _MAX_DEPENDENCIES
    installed = set(described["installed"]) - {"pip", "setuptools", "wheel", "keyturn"}
    assert len(installed) <= _MAX_INSTALLED
    assert not installed & {"keyturn-workers", "faststream", "boto3", "aioboto3", "aiohttp"}


def test_a_missing_extra_is_named(bare: Environment) -> None:
    for_gateway, for_staging = bare.output(_WITHOUT_EXTRAS).splitlines()
    assert "keyturn[gateway]" in for_gateway
    assert "keyturn[staging]" in for_staging


def test_importing_keyturn_imports_nothing_heavy(bare: Environment) -> None:
    imported = bare.output("import sys, keyturn; print(*sys.modules)").split()
    heavy = {"aio_pika", "aiormq", "asyncio", "cryptography", "pydantic", "orjson"}
    assert not heavy & set(imported)


def test_the_readme_shows_the_publishers_example() -> None:
    (shown,) = code_blocks((ROOT / "README.md").read_text(), "python", example="publish")
    assert shown == (EXAMPLES / "publish.py").read_text()


@pytest.mark.servers
async def test_the_examples_run_on_a_real_broker(
    complete: Environment, vhost_url: str, ceph: S3Server, ceph_bucket: str, tmp_path: Path
) -> None:
    deployment = Deployment(vhost_url, ceph, ceph_bucket)
    publisher_env = deployment.publisher_env()
    async with (
        worker(deployment.worker_env(LEASE_S="1", KEYRING_CACHE_S="0.2")),
        gateway(deployment.gateway_env()) as served,
        open_wire(deployment) as wire,
    ):
        await SignedPublisher(deployment, wire).enroll("acme")
        published = await complete.run(EXAMPLES / "publish.py", tmp_path, publisher_env)
        assert published == (0, "stored: reports/q3.txt, 17 bytes, generation 1\n")
        reading = {"KEYTURN_GATEWAY_URL": served.url, "KEYTURN_API_KEY": deployment.api_key}
        read = await complete.run(EXAMPLES / "read.py", tmp_path, reading)
        assert read == (0, "stored\n18 bytes by kim\nthe fourth quarter\nb'fourth'\n")
        assert (
            stored_objects.decrypt(deployment, "acme", "reports/q3.txt", "user")
            == b"the third quarter"
        )
        status, printed = await complete.run(EXAMPLES / "share.py", tmp_path, reading)
        assert (status, printed.splitlines()[::2]) == (0, ["reports/q4.txt: 18 bytes", "deleted"])
        rotated = await complete.run(EXAMPLES / "rotate.py", tmp_path, publisher_env)
        assert rotated == (0, "accepted: generation 2\ncompleted: 2 objects, clean\n")
    new_key = tmp_path / "acme.new.key"
    assert new_key.stat().st_mode & 0o777 == 0o600
