"""Sign-in at a provider: what it may answer, and what is refused (SPEC 16.3).

The provider is that of `tools.servers`, in memory: the browser is this test.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from pydantic import TypeAdapter
from starlette.requests import Request

from keyturn.errors import SettingsError
from keyturn.messages.fields import Actor
from keyturn_workers.console.auth.provider import (
    ClaimRules,
    Provider,
    ProviderError,
    SignInRefusedError,
)
from tests.unit.keyturn_workers.console.console_env import CLIENT_SECRET, console_settings
from tools.servers.oidc_provider import Faults, OidcProvider

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn_workers.console.auth.person import Role


_ISSUER: Final = "https://sso.example.com"
_CALLBACK: Final = "https://console.example.com/sign-in/callback"
_PEOPLE: Final[dict[str, dict[str, Any]]] = {
    "kim": {"preferred_username": "kim", "roles": ["operate"]},
    "lee": {"userinfo": {"roles": ["view"], "iss": "elsewhere"}},
}
_RULES: Final = ClaimRules("roles", ("view",), ("operate",), "preferred_username")


@dataclass
class _Flow:
    """A browser with one session, a console's side and a provider."""

    real: OidcProvider = field(
        default_factory=lambda: OidcProvider(_ISSUER, _CALLBACK, CLIENT_SECRET, _PEOPLE)
    )
    now: float = 0.0
    session: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.http: httpx2.AsyncBaseTransport = httpx2.ASGITransport(app=self.real.app)
        self.provider = self.made()

    def made(self, **settings: str) -> Provider:
        """The console's side."""
        return Provider(
            console_settings(None, _ISSUER, **settings),
            _RULES,
            _CALLBACK,
            clock=lambda: self.now,
            transport=self.http,
        )

    def _request(self, query: str = "") -> Request:
        scope = {"type": "http", "method": "GET", "query_string": query.encode(), "headers": []}
        return Request({**scope, "session": self.session})

    async def begin(self) -> str:
        """What the browser is sent to."""
        return await self.provider.begin(self._request())

    async def at_provider(self, url: str, person: str = "kim") -> str:
        """The query that the provider sends the browser back with."""
        async with httpx2.AsyncClient(transport=self.http) as browser:
            response = await browser.get(f"{url}&person={person}")
        assert response.status_code == 302, response.text
        return urlsplit(response.headers["location"]).query

    async def finish(self, query: str) -> Mapping[str, Any]:
        """The claims for that query."""
        return await self.provider.finish(self._request(query))

    async def sign_in(self, person: str = "kim") -> Mapping[str, Any]:
        """All of it."""
        return await self.finish(await self.at_provider(await self.begin(), person))


@pytest.fixture
def flow() -> _Flow:
    return _Flow()


async def test_a_person_signs_in(flow: _Flow) -> None:
    claims = await flow.sign_in()
    assert (claims["sub"], claims["roles"]) == ("kim", ["operate"])
    assert flow.session == {}


async def test_the_request_asks_for_pkce_state_and_nonce(flow: _Flow) -> None:
    query = parse_qs(urlsplit(await flow.begin()).query)
    assert query["response_type"] == ["code"]
    assert query["code_challenge_method"] == ["S256"]
    assert len(query["code_challenge"][0]) == 43
    assert len(query["state"][0]) >= 20
    assert len(query["nonce"][0]) >= 20
    assert query["redirect_uri"] == [_CALLBACK]
    assert set(query["scope"][0].split()) == {"openid", "profile", "email"}
    assert "code_verifier" not in query


async def test_the_provider_wants_the_verifier_of_this_browser(flow: _Flow) -> None:
    """A code that was stolen on its way is of no use."""
    query = await flow.at_provider(await flow.begin())
    thief = _Flow(flow.real)
    await thief.begin()
    (state,) = thief.session
    stolen = query.replace(parse_qs(query)["state"][0], state.removeprefix("_state_provider_"))
    with pytest.raises(SignInRefusedError, match="invalid_grant"):
        await thief.finish(stolen)


async def test_a_response_counts_once(flow: _Flow) -> None:
    query = await flow.at_provider(await flow.begin())
    await flow.finish(query)
    with pytest.raises(SignInRefusedError, match="not started in this browser"):
        await flow.finish(query)


async def test_a_response_in_another_browser_is_refused(flow: _Flow) -> None:
    """Somebody could sign a victim in with the attacker's account otherwise."""
    query = await flow.at_provider(await flow.begin())
    flow.session.clear()
    with pytest.raises(SignInRefusedError, match="not started in this browser"):
        await flow.finish(query)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"callback": {"state": "other"}}, "not started in this browser"),
        ({"callback": {"state": None}}, "not started in this browser"),
        ({"callback": {"iss": "https://evil.example"}}, "not come from the configured provider"),
        ({"callback": {"iss": None}}, "not come from the configured provider"),
        ({"callback": {"code": "other"}}, "invalid_grant"),
        ({"callback": {"code": None, "error": "access_denied"}}, "reported access_denied"),
        ({"callback": {"error": "<b>"}}, "refused it"),
        ({"claims": {"nonce": "other"}}, "not valid"),
        ({"claims": {"nonce": None}}, "not valid"),
        ({"claims": {"iss": "https://evil.example"}}, "not valid"),
        ({"claims": {"iss": None}}, "not valid"),
        ({"claims": {"aud": "another-client"}}, "not valid"),
        ({"claims": {"aud": ["another-client", "third"], "azp": "keyturn-console"}}, "not valid"),
        ({"claims": {"aud": None}}, "not valid"),
        ({"claims": {"azp": "another-client"}}, "not valid"),
        ({"claims": {"exp": 1}}, "not valid"),
        ({"claims": {"exp": None}}, "not valid"),
        ({"claims": {"iat": 9_999_999_999}}, "not valid"),
        ({"claims": {"nbf": 9_999_999_999}}, "not valid"),
        ({"claims": {"sub": None}}, "not valid"),
        ({"claims": {"sub": ""}}, "no ID token that names a person"),
        ({"claims": {"sub": 7}}, "not valid"),
        ({"algorithm": "none"}, "not valid"),
        ({"algorithm": "HS256"}, "not valid"),
        ({"foreign_key": True}, "signature"),
        ({"token": '{"access_token": "a", "token_type": "Bearer"}'}, "no ID token"),
    ],
)
async def test_a_response_that_is_not_right_is_refused(
    flow: _Flow, faults: dict[str, Any], reason: str
) -> None:
    flow.real.faults = Faults(**faults)
    with pytest.raises(SignInRefusedError, match=reason) as refused:
        await flow.sign_in()
    assert "<" not in str(refused.value)
    flow.real.faults = Faults()
    assert (await flow.sign_in())["sub"] == "kim"


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"status": 500}, "responded with status 500"),
        (
            {"description": {"issuer": "https://evil.example"}},
            "issuer is not KEYTURN_CONSOLE_OIDC_ISSUER",
        ),
        ({"description": {"token_endpoint": "http://sso.example.com/token"}}, "not https"),
        ({"description": {"jwks_uri": None}}, "not https"),
        ({"description": {"issuer": None}}, "issuer is not"),
        (
            {"description": {"id_token_signing_alg_values_supported": ["none"]}},
            "accepted algorithm",
        ),
    ],
)
async def test_a_provider_that_is_wrong_is_one_line(
    flow: _Flow, faults: dict[str, Any], reason: str
) -> None:
    flow.real.faults = Faults(**faults)
    with pytest.raises(ProviderError, match=reason):
        await flow.begin()
    flow.real.faults = Faults()
    assert (await flow.begin()).startswith(f"{_ISSUER}/authorize?")


@pytest.mark.parametrize("token", ["<html>", "[]", "null", '{"id_token": 7, "access_token": "a"}'])
async def test_a_token_that_is_none_is_one_line(flow: _Flow, token: str) -> None:
    flow.real.faults = Faults(token=token)
    with pytest.raises((ProviderError, SignInRefusedError), match=r"^[^<]*$"):
        await flow.sign_in()


async def test_a_provider_that_is_away_is_one_line() -> None:
    def away(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("all about the network", request=request)

    flow = _Flow()
    flow.http = httpx2.MockTransport(away)
    flow.provider = flow.made()
    with pytest.raises(ProviderError, match=r"^The provider cannot be reached\.$"):
        await flow.begin()
    assert await flow.provider.end_session_url() is None


async def test_the_clock_may_differ_by_a_little(flow: _Flow) -> None:
    now = int(time.time())
    flow.real.faults = Faults(claims={"iat": now + 30, "exp": now - 30})
    assert (await flow.sign_in())["sub"] == "kim"


async def test_keys_may_change_while_it_runs(flow: _Flow) -> None:
    await flow.sign_in()
    flow.real.rotate()
    assert (await flow.sign_in())["sub"] == "kim"


async def test_its_description_is_read_again_after_an_hour(flow: _Flow) -> None:
    await flow.begin()
    flow.real.faults = Faults(description={"authorization_endpoint": f"{_ISSUER}/new"})
    assert (await flow.begin()).startswith(f"{_ISSUER}/authorize?")
    flow.now = 3600
    assert (await flow.begin()).startswith(f"{_ISSUER}/new?")


async def test_roles_may_come_with_the_user_info(flow: _Flow) -> None:
    """But it replaces nothing that the signed token says."""
    claims = await flow.sign_in("lee")
    assert (claims["roles"], claims["iss"]) == (["view"], _ISSUER)
    flow.real.faults = Faults(claims={"sub": "kim2"})
    with pytest.raises(SignInRefusedError, match="another person"):
        await flow.sign_in("lee")


async def test_a_session_at_the_provider_can_be_ended(flow: _Flow) -> None:
    assert await flow.provider.end_session_url() == f"{_ISSUER}/logout?client_id=keyturn-console"
    for url in (None, "javascript:alert(1)", "http://sso.example.com/logout"):
        flow.real.faults = Faults(description={"end_session_endpoint": url})
        flow.now += 3600
        assert await flow.provider.end_session_url() is None


async def test_the_secret_goes_by_basic_unless_only_a_form_is_taken(flow: _Flow) -> None:
    methods = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    flow.real.faults = Faults(description=methods)
    with pytest.raises(SignInRefusedError, match="invalid_client"):
        await flow.sign_in()  # this provider takes only Basic
    flow.provider = flow.made()
    flow.real.faults = Faults(
        description={"token_endpoint_auth_methods_supported": ["client_secret_basic"]}
    )
    assert (await flow.sign_in())["sub"] == "kim"


def test_a_file_of_ca_certificates_must_exist(flow: _Flow) -> None:
    with pytest.raises(SettingsError, match="KEYTURN_CONSOLE_OIDC_CA_FILE cannot be used"):
        flow.made(CONSOLE_OIDC_CA_FILE="/nowhere/ca.pem")


def _rules(claim: str = "roles", name: str = "preferred_username") -> ClaimRules:
    return ClaimRules(claim, ("view", "staff"), ("operate",), name)


@pytest.mark.parametrize(
    ("claim", "claims", "role"),
    [
        ("roles", {"roles": "view"}, "view"),
        ("roles", {"roles": ["other", "staff"]}, "view"),
        ("roles", {"roles": ["view", "operate"]}, "operate"),
        ("roles", {"roles": ["operator"]}, None),
        ("roles", {"roles": "operate view"}, None),
        ("roles", {"roles": [{"name": "operate"}, 1, None]}, None),
        ("roles", {"roles": {"operate": True}}, None),
        ("roles", {"roles": []}, None),
        ("roles", {}, None),
        ("realm_access.roles", {"realm_access": {"roles": ["operate"]}}, "operate"),
        ("realm_access.roles", {"realm_access.roles": ["operate"]}, "operate"),
        ("realm_access.roles", {"realm_access": ["operate"]}, None),
        ("https://a.example/roles", {"https://a.example/roles": ["view"]}, "view"),
        ("resource.keyturn.roles", {"resource": {"keyturn": {"roles": "view"}}}, "view"),
    ],
)
def test_the_role_is_what_the_claim_says(
    claim: str, claims: dict[str, Any], role: Role | None
) -> None:
    assert _rules(claim).role_of(claims) == role


@pytest.mark.parametrize(
    ("verified", "role"), [(True, "view"), (False, None), ("true", None), (None, None)]
)
def test_an_address_is_a_role_only_if_it_was_verified(verified: object, role: Role | None) -> None:
    """Some providers let people enter any address."""
    rules = ClaimRules("email", ("kim@example.com",), (), "email")
    assert rules.role_of({"email": "kim@example.com", "email_verified": verified}) == role


def test_an_empty_role_is_there_all_the_same() -> None:
    assert _rules().has_roles({"roles": []})
    assert not _rules().has_roles({"role": ["operate"]})


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"sub": "7", "preferred_username": "kim"}, "kim (7)"),
        ({"sub": "7"}, "(7)"),
        ({"sub": "7", "preferred_username": ["kim"]}, "(7)"),
        ({"sub": "kim", "preferred_username": "kim"}, "(kim)"),
        ({"sub": "7", "preferred_username": "lee (8)"}, "lee 8 (7)"),
        ({"sub": "7", "preferred_username": "a\u202eb\x1b[31m\n\u200bc"}, "a b [31m c (7)"),
        ({"sub": "7", "preferred_username": "\ud800"}, "(7)"),
        ({"sub": "7", "preferred_username": "x" * 500}, "x" * 79 + "… (7)"),
    ],
)
def test_a_name_has_the_subject_that_nobody_chooses(claims: dict[str, Any], name: str) -> None:
    assert _rules().name_of(claims) == name
    TypeAdapter(Actor).validate_python(name)


@pytest.mark.parametrize("subject", ["s" * 255, "a\nb", "7)(8", "\ud800"])
def test_a_subject_that_cannot_be_shown_is_a_digest(subject: str) -> None:
    name = _rules().name_of({"sub": subject, "preferred_username": "k" * 500})
    assert "(sha256:" in name
    TypeAdapter(Actor).validate_python(name)
