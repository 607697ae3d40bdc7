"""People sign in to a real console, by a real provider and by password, in Chromium (SPEC 16.3).

The broker is away meanwhile: nobody needs it to sign in.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keyturn_workers.console.auth.sessions import COOKIE
from tools.harness.console import Account, ConsoleDeployment, write_passwords
from tools.harness.console_browser import NARROW, ConsoleVisit, visiting
from tools.harness.console_client import console_client
from tools.harness.process import GatewayProcess, console
from tools.servers import S3Server
from tools.servers.oidc_provider import CLIENT_ID, OidcProviderProcess
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

    from tools.harness.console_client import ConsoleClient

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

_ADA: Final = Account("ada", "operate")
_VERA: Final = Account("vera", "view")
_PEOPLE: Final[dict[str, dict[str, Any]]] = {
    "subject-1": {"preferred_username": "kim", "realm_access": {"roles": ["operators"]}},
    "subject-2": {"preferred_username": "lee", "realm_access": {"roles": ["staff"]}},
    "subject-3": {"preferred_username": "mallory (subject-1)", "realm_access": {"roles": []}},
}


@dataclass(repr=False)
class _Site:
    """The settings of a console, its password file and its provider."""

    env: dict[str, str]
    passwords: Path
    provider: OidcProviderProcess

    @asynccontextmanager
    async def console(self, **more: str) -> AsyncIterator[GatewayProcess]:
        """Run it; `more` without the prefix. Its log has neither a traceback nor a secret."""
        env = self.env | {f"KEYTURN_{name}": value for name, value in more.items()}
        async with console(env) as running:
            yield running
            log = "\n".join(running.lines)
            assert "Traceback" not in log
            secrets = [env["KEYTURN_CONSOLE_SESSION_KEY"], self.provider.secret, "csrf", "code="]
            secrets += [COOKIE, *(account.password for account in (_ADA, _VERA))]
            assert [each for each in secrets if each in log] == []


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[_Site]:
    """A provider, and the settings of a console that uses it."""
    s3 = S3Server("http://127.0.0.1:1", "access", "secret", "us-east-1", "given")
    deployment = ConsoleDeployment(f"amqp://127.0.0.1:{free_port()}/", s3, "bucket")
    folder = tmp_path_factory.mktemp("sign-in")
    passwords = folder / "passwords"
    write_passwords(passwords, [_ADA, _VERA])
    with OidcProviderProcess(_PEOPLE) as provider:
        env = deployment.console_env(
            passwords,
            CONSOLE_OIDC_ISSUER=provider.issuer,
            CONSOLE_OIDC_CLIENT_ID=CLIENT_ID,
            CONSOLE_OIDC_CLIENT_SECRET=provider.secret,
            CONSOLE_OIDC_ROLE_CLAIM="realm_access.roles",
            CONSOLE_OIDC_VIEW_ROLES='["staff"]',
            CONSOLE_OIDC_OPERATE_ROLES='["operators"]',
            LOG_LEVEL="debug",
            CONSOLE_SIGNED_OUT_FILE=str(folder / "signed-out"),
        )
        yield _Site(env, passwords, provider)


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def running(site: _Site) -> AsyncIterator[GatewayProcess]:
    """One console for what does not change it."""
    async with site.console() as process:
        yield process


@asynccontextmanager
async def _visit(browser: Browser, url: str, **options: Any) -> AsyncIterator[ConsoleVisit]:
    """A visit that may go to the provider."""
    context = await browser.new_context(**options)
    try:
        yield await ConsoleVisit.begin(url, context)
    finally:
        await context.close()


async def _by_provider(visit: ConsoleVisit, subject: str) -> None:
    await visit.page.get_by_role("link", name="Sign in with single sign-on").click()
    await visit.page.get_by_role("link", name=subject).click()


async def _session_cookie(visit: ConsoleVisit) -> dict[str, Any] | None:
    found = [each for each in await visit.page.context.cookies() if each.get("name") == COOKIE]
    return dict(found[0]) if found else None


async def test_single_sign_on_leads_back_and_ends_everywhere(
    site: _Site, running: GatewayProcess, browser: Browser
) -> None:
    async with _visit(browser, running.url) as visit:
        page = visit.page
        await visit.goto("/projects?text=acme")
        await _by_provider(visit, "subject-1")
        await page.wait_for_url(f"{running.url}/projects?text=acme")
        assert "kim (subject-1)" in await page.inner_text("header")
        assert "operate" in await page.inner_text("header")
        cookies = await page.context.cookies(running.url)
        cookie = await _session_cookie(visit)
        # The cookie of the sign-in itself is gone.
        assert [each.get("name") for each in cookies] == [COOKIE]
        assert cookie is not None
        assert (cookie["domain"], cookie["path"], cookie["expires"]) == ("127.0.0.1", "/", -1)
        assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Lax")
        assert await page.evaluate("document.cookie") == ""
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("heading", name="Signed out").wait_for()
        assert await _session_cookie(visit) is None
        await page.get_by_role("link", name="Sign out at the provider").click()
        await page.wait_for_url(f"{site.provider.issuer}/logout?client_id={CLIENT_ID}")
    async with console_client(running.url) as client:
        copy = f"{COOKIE}={cookie['value']}"
        assert (await client.get("/projects", Cookie=copy)).path.startswith("/sign-in")


async def test_roles_come_from_the_provider_and_from_the_file(
    running: GatewayProcess, browser: Browser
) -> None:
    for account, subject, name in ((None, "subject-2", "lee (subject-2)"), (_VERA, "", "vera")):
        async with _visit(browser, running.url) as visit:
            if account is None:
                await visit.goto("/")
                await _by_provider(visit, subject)
            else:
                await visit.sign_in(account)
            header = await visit.page.inner_text("header")
            assert name in header
            assert "view" in header


async def test_who_is_refused_reads_why(
    site: _Site, running: GatewayProcess, browser: Browser
) -> None:
    """And each of these pages is accessible, in the dark and on a phone too."""
    async with _visit(browser, running.url, viewport=NARROW, color_scheme="dark") as visit:
        page = visit.page

        async def reads(*texts: str) -> None:
            shown = await page.inner_text("main")
            for text in texts:
                assert text in shown
            assert await visit.findings() == []
            assert await visit.overflow_px() == 0
            assert await _session_cookie(visit) is None

        await visit.goto("/sign-in?next=/projects")
        await reads("Sign in with single sign-on", "Password")
        await page.get_by_label("Name").fill("ada")
        await page.get_by_label("Password").fill("a wrong password")
        await page.get_by_role("button", name="Sign in").click()
        await reads("The name or the password is wrong.")
        assert await page.get_by_label("Password").input_value() == ""
        await _by_provider(visit, "subject-3")
        await reads(
            "no role in this console", "mallory subject-1 (subject-3)", "realm_access.roles"
        )
        for faults, text in (
            ({"algorithm": "none"}, "its ID token is not valid"),
            ({"foreign_key": True}, "the signature of its ID token is wrong"),
            ({"claims": {"exp": 1}}, "its ID token is not valid"),
            ({"claims": {"nonce": "another"}}, "its ID token is not valid"),
            ({"callback": {"state": "another"}}, "it was not started in this browser"),
            ({"callback": {"code": None, "error": "access_denied"}}, "access_denied"),
        ):
            site.provider.set_faults(**faults)
            await page.get_by_role("link", name="Back to sign-in").click()
            await _by_provider(visit, "subject-1")
            await reads("This sign-in was refused.", text)
        site.provider.set_faults()
        site.provider.rotate()
        await page.get_by_role("link", name="Back to sign-in").click()
        await _by_provider(visit, "subject-1")
        await page.get_by_role("button", name="Sign out").wait_for()


async def test_a_provider_that_is_away_is_a_page_and_comes_back(
    site: _Site, browser: Browser
) -> None:
    async with site.console() as fresh, _visit(browser, fresh.url) as visit:
        site.provider.stop()
        await visit.goto("/sign-in")
        await visit.page.get_by_role("link", name="Sign in with single sign-on").click()
        assert "The provider cannot be reached." in await visit.page.inner_text("main")
        await fresh.logged("provider failed")
        await visit.sign_in(_ADA)  # passwords need no provider
        await visit.page.get_by_role("button", name="Sign out").click()
        site.provider.start()
        await visit.goto("/sign-in")
        await _by_provider(visit, "subject-1")
        await visit.page.get_by_role("button", name="Sign out").wait_for()


async def test_a_session_outlives_a_restart_but_neither_its_person_nor_its_key(
    site: _Site,
) -> None:
    port = str(free_port())
    async with console_client(f"http://127.0.0.1:{port}") as client:
        async with site.console(CONSOLE_PORT=port) as first:
            await client.sign_in(_VERA)
            copy = f"{COOKIE}={_cookie(client)}"
            await client.submit(await client.get("/projects"), "/sign-out")
            await client.sign_in(_VERA)
            first.process.terminate()
            assert await first.ended() == 0
        async with site.console(CONSOLE_PORT=port):
            assert (await client.get("/projects")).path == "/projects"
            async with console_client(client.url) as thief:
                assert (await thief.get("/projects", Cookie=copy)).path.startswith("/sign-in")
            write_passwords(site.passwords, [_ADA])
            await asyncio.sleep(1.1)  # the file is looked at once a second
            assert (await client.get("/projects")).path.startswith("/sign-in")
            write_passwords(site.passwords, [_ADA, _VERA])
            await asyncio.sleep(1.1)  # the file is looked at once a second
            await client.sign_in(_VERA)
        key = "bm93IGFub3RoZXIga2V5IG9mIDMyIGJ5dGVzIGhlcmU="
        async with site.console(CONSOLE_PORT=port, CONSOLE_SESSION_KEY=key):
            assert (await client.get("/projects")).path.startswith("/sign-in")


def _cookie(client: ConsoleClient) -> str:
    (value,) = [each.value for each in client.session.cookie_jar if each.key == COOKIE]
    return value


async def test_behind_a_proxy_with_tls_the_cookie_is_for_that_host_alone(
    site: _Site, browser: Browser, tmp_path: Path
) -> None:
    backend, frontend = free_port(), free_port()
    url = f"https://localhost:{frontend}"
    async with (
        _tls_proxy(tmp_path, frontend, backend),
        site.console(CONSOLE_PORT=str(backend), CONSOLE_PUBLIC_URL=url),
        visiting(browser, url, ignore_https_errors=True) as visit,
    ):
        await visit.sign_in(_ADA, "/projects")
        cookie = await _session_cookie(visit)
        assert cookie is not None
        assert (cookie["domain"], cookie["secure"]) == ("localhost", True)
        response = await visit.page.goto(f"{url}/queues")
        assert response is not None
        assert response.headers["strict-transport-security"] == "max-age=31536000"
        visit.expected.append("status of 400")
        other = await visit.page.goto(f"https://127.0.0.1:{frontend}/")
        assert other is not None
        assert other.status == 400
        await visit.goto("/")
        visit.requests.clear()


@asynccontextmanager
async def _tls_proxy(folder: Path, frontend: int, backend: int) -> AsyncIterator[None]:
    """End TLS as a proxy does; it passes on the host that the browser asked for."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward = await asyncio.open_connection("127.0.0.1", backend)
        await asyncio.gather(copy(reader, onward[1]), copy(onward[0], writer))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(folder))
    server = await asyncio.start_server(serve, "127.0.0.1", frontend, ssl=context)
    try:
        yield
    finally:
        server.close()


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
