"""Customer keys in two imitations of AWS KMS and in a real OpenBao (SPEC 2.6).

Who gets a secret, and when not.
"""

from __future__ import annotations

import secrets as random
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import botocore.session
import pytest

from keyturn.errors import CustomerKeyRefusedError, CustomerKeyUnavailableError
from keyturn_workers.core.customer_keys import KeyName
from keyturn_workers.core.erasure import KeyState
from keyturn_workers.core.keyring import rotate
from keyturn_workers.keys.customer_keys.providers import open_customer_keys
from keyturn_workers.keys.customer_keys.secrets import IN_GATEWAYS, CachedCustomerKeys
from keyturn_workers.process.settings import CustomerKeySettings
from tests.unit.keyturn_workers.factories import AT, ORIGIN, keyring
from tools.servers import MotoKms
from tools.servers.emulators import is_installed, localstack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from keyturn_workers.core.customer_keys import CustomerKey
    from keyturn_workers.core.keyring import Keyring
    from tools.servers import OpenBao

pytestmark = pytest.mark.servers
_KEYS: Final = [f"arn:aws:kms:{region}:*" for region in ("eu-central-1", "eu-west-1")]
_SYMMETRIC: Final = {"KeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT"}


@asynccontextmanager
async def _process(
    fields: dict[str, Any], deployment: str = "rig"
) -> AsyncIterator[CachedCustomerKeys]:
    """A process that has no secret in memory yet."""
    values = {**CustomerKeySettings.read().model_dump(), "customer_key_stores": {"kms": fields}}
    settings = CustomerKeySettings.model_validate(values)
    async with open_customer_keys(settings, deployment, IN_GATEWAYS) as keys:
        yield keys


def _ring(key: CustomerKey, project: str = "acme") -> Keyring:
    rotation_id = "2f6c9a0e-1111-4111-8111-111111110002"
    before = keyring(project)
    return rotate(
        before, rotation_id=rotation_id, requested_at=AT, at=AT, origin=ORIGIN, customer_key=key
    )


async def _outcome(fields: dict[str, Any], ring: Keyring, deployment: str = "rig") -> str:
    """What a process that is new gets: nothing, or the error."""
    async with _process(fields, deployment) as keys:
        try:
            (await keys.unlock(ring)).require(2)
        except (CustomerKeyRefusedError, CustomerKeyUnavailableError) as exc:
            return str(exc)
    return ""


async def _create(fields: dict[str, Any], key: str) -> CustomerKey:
    async with _process(fields) as keys:
        return await keys.create("acme", KeyName("kms", key))


# AWS KMS, as moto and LocalStack imitate it. Each test is moto's; some are LocalStack's as well.


@dataclass(frozen=True)
class _Aws:
    """A KMS: the variables of a process that uses it, and a client of its administrator."""

    env: Mapping[str, str]
    client: Any

    def new(self) -> str:
        """The ARN of a new key."""
        return str(self.client.create_key(**_SYMMETRIC)["KeyMetadata"]["Arn"])


@contextmanager
def _localstack() -> Iterator[_Aws]:
    if not is_installed("localstack"):
        pytest.skip("LocalStack, of 350 MB, is not installed: `make doctor` installs it")
    with localstack("kms") as running:
        url = running.server.endpoint_url
        client = botocore.session.get_session().create_client(
            "kms",
            region_name="eu-central-1",
            endpoint_url=url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        env = {
            "KEYTURN_AWS_KMS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        with closing(client):
            yield _Aws(env, client)


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoKms]:
    with MotoKms() as running:
        yield running


@pytest.fixture(scope="module", params=["moto", "localstack"])
def kms(request: pytest.FixtureRequest) -> Iterator[_Aws]:
    if request.param == "localstack":
        with _localstack() as running:
            yield running
        return
    moto: MotoKms = request.getfixturevalue("moto")
    with moto.client() as client:
        yield _Aws(moto.env, client)


def _fields(env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return {"kind": "awskms", "projects": ["acme", "globex"], "keys": _KEYS}


@pytest.fixture
def of_kms(kms: _Aws, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return _fields(kms.env, monkeypatch)


@pytest.fixture
def aws(moto: MotoKms, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return _fields(moto.env, monkeypatch)


def _new(moto: MotoKms) -> str:
    return moto.new_key(**_SYMMETRIC).removeprefix("awskms:")


async def test_aws_gives_the_secret_back_for_its_place_alone(
    kms: _Aws, of_kms: dict[str, Any]
) -> None:
    made = await _create(of_kms, kms.new())
    assert await _outcome(of_kms, _ring(made)) == ""
    text = "did not encrypt this for this place"
    assert text in await _outcome(of_kms, _ring(made), "another-deployment")
    assert text in await _outcome(of_kms, _ring(made, "globex"))
    assert text in await _outcome(of_kms, _ring(replace(made, secret_id="0" * 16)))


async def test_aws_ends_and_gives_access_with_the_key(kms: _Aws, of_kms: dict[str, Any]) -> None:
    arn = kms.new()
    ring, key_id = _ring(await _create(of_kms, arn)), arn.rpartition("/")[2]
    for operation, more, text, state in (
        (kms.client.disable_key, {}, "is disabled", KeyState.DISABLED),
        (kms.client.enable_key, {}, "", KeyState.GIVEN),
        (
            kms.client.schedule_key_deletion,
            {"PendingWindowInDays": 7},
            "scheduled for deletion",
            KeyState.PENDING_DELETION,
        ),
    ):
        operation(KeyId=key_id, **more)
        outcome = await _outcome(of_kms, ring)
        assert text in outcome
        assert bool(outcome) is bool(text)
        async with _process(of_kms) as keys:
            assert set((await keys.ask(ring)).values()) == {state}
    with pytest.raises(CustomerKeyRefusedError, match="scheduled for deletion"):
        await _create(of_kms, arn)


async def test_another_key_or_region_of_aws_is_refused(kms: _Aws, of_kms: dict[str, Any]) -> None:
    arn = kms.new()
    made = await _create(of_kms, arn)
    for other in (kms.new(), arn.replace(":eu-central-1:", ":eu-west-1:")):
        assert other != arn
        key = replace(made, name=KeyName("kms", other))
        assert (await _outcome(of_kms, _ring(key))).startswith("customer_key_refused: ")


async def test_expired_credentials_of_ones_own_are_a_refusal(
    moto: MotoKms, aws: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = _ring(await _create(aws, _new(moto)))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.refused_env["AWS_ACCESS_KEY_ID"])
    assert (await _outcome(aws, ring)).startswith("customer_key_refused: ")


async def test_aws_that_is_cut_off_is_no_refusal(moto: MotoKms, aws: dict[str, Any]) -> None:
    ring = _ring(await _create(aws, _new(moto)))
    async with _process(aws) as keys:
        await keys.unlock(ring)
        moto.stop()
        try:
            assert (await _outcome(aws, ring)).startswith("customer_key_unavailable: ")
            await keys.unlock(ring)  # in memory
        finally:
            moto.start()


# OpenBao.


@pytest.fixture
def name(openbao: OpenBao) -> str:
    """A transit key of the test's own."""
    name = f"keyturn-{random.token_hex(6)}"
    openbao.call("POST", f"transit/keys/{name}", {})
    return name


def _store(bao: OpenBao, token_file: Path, token: str) -> dict[str, Any]:
    token_file.write_text(token)
    return {
        "kind": "vault",
        "address": bao.url,
        "mount": "transit",
        "projects": ["acme", "globex"],
        "keys": ["*"],
        "token_file": str(token_file),
    }


def _policy(bao: OpenBao, key: str) -> str:
    """The policy of the guide."""
    rules = "\n".join(
        f'path "transit/{operation}/{key}" {{ capabilities = ["update"] }}'
        for operation in ("encrypt", "decrypt")
    )
    bao.call("PUT", f"sys/policies/acl/{key}", {"policy": rules})
    return key


@pytest.fixture
def bao(openbao: OpenBao, name: str, tmp_path: Path) -> dict[str, Any]:
    token = openbao.make_token(_policy(openbao, name))
    return _store(openbao, tmp_path / "token", token)


async def test_openbao_gives_the_secret_back_for_its_place_alone(
    bao: dict[str, Any], name: str
) -> None:
    made = await _create(bao, name)
    assert await _outcome(bao, _ring(made)) == ""
    for ring, deployment in (
        (_ring(made), "another-deployment"),
        (_ring(made, "globex"), "rig"),
        (_ring(replace(made, secret_id="0" * 16)), "rig"),
    ):
        assert "did not encrypt this for this place" in await _outcome(bao, ring, deployment)


async def test_a_version_that_the_customer_adds_changes_nothing(
    openbao: OpenBao, bao: dict[str, Any], name: str
) -> None:
    ring = _ring(await _create(bao, name))
    openbao.rotate_key(name)
    assert await _outcome(bao, ring) == ""
    openbao.configure_key(name, min_decryption_version=2)
    assert "below its min_decryption_version" in await _outcome(bao, ring)


async def test_a_key_that_is_deleted_or_denied_is_a_refusal(
    openbao: OpenBao, bao: dict[str, Any], name: str
) -> None:
    ring = _ring(await _create(bao, name))
    openbao.call("PUT", f"sys/policies/acl/{name}", {"policy": 'path "x" { capabilities = [] }'})
    denied = await _outcome(bao, ring)
    assert denied.startswith("customer_key_refused: ")
    assert "may not use transit/decrypt/" in denied
    _policy(openbao, name)
    assert await _outcome(bao, ring) == ""
    openbao.configure_key(name, deletion_allowed=True)
    openbao.call("DELETE", f"transit/keys/{name}")
    gone = await _outcome(bao, ring)
    assert gone.startswith("customer_key_refused: ")


async def test_a_type_without_associated_data_is_refused(
    openbao: OpenBao, tmp_path: Path, name: str
) -> None:
    openbao.call("POST", f"transit/keys/{name}-rsa", {"type": "rsa-2048"})
    fields = _store(openbao, tmp_path / "token", openbao.root_token)
    with pytest.raises(CustomerKeyRefusedError, match="does not authenticate associated_data"):
        await _create(fields, f"{name}-rsa")


async def test_openbao_that_is_sealed_or_cut_off_is_no_refusal(
    own_openbao: OpenBao, tmp_path: Path
) -> None:
    own_openbao.call("POST", "transit/keys/k1", {})
    fields = _store(own_openbao, tmp_path / "token", own_openbao.root_token)
    ring = _ring(await _create(fields, "k1"))
    own_openbao.seal()
    assert "sealed" in await _outcome(fields, ring)
    own_openbao.stop()
    away = await _outcome(fields, ring)
    assert away.startswith("customer_key_unavailable: ")
    assert "cannot be reached" in away
    own_openbao.start()
    assert await _outcome(fields, ring) == ""
