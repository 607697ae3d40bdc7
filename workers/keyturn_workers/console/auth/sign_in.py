"""The pages that sign a person in and out (SPEC 16.3).

Before the sign-in, a separate cookie keeps its state: the token of the form, and the state, nonce
and PKCE verifier of the provider's flow. It ends with the sign-in, or after ten minutes. A link,
not a form, leads to the provider: browsers apply `form-action` to each redirect that follows a
form, and the provider may redirect to other hosts.
"""

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from keyturn.crypto.keys import Secret
from keyturn_workers.console.auth.link import TOKEN, SignInLink
from keyturn_workers.console.auth.passwords import (
    PasswordFile,
    Passwords,
    TooManyAttemptsError,
    User,
)
from keyturn_workers.console.auth.person import CSRF_FIELD, SESSION_SCOPE, Role, session_of
from keyturn_workers.console.auth.protection import HOME, SIGN_IN, cookie_header, local_path
from keyturn_workers.console.auth.provider import (
    ClaimRules,
    Provider,
    ProviderError,
    SignInRefusedError,
)
from keyturn_workers.console.auth.sessions import COOKIE, Account, Kind, Sessions, stamp
from keyturn_workers.console.settings import ConsoleSettings

PRE_COOKIE: Final = "__Host-keyturn-console-sign-in"
PROVIDER: Final = f"{SIGN_IN}/provider"
CALLBACK: Final = f"{SIGN_IN}/callback"
LINK: Final = f"{SIGN_IN}/link"
SIGN_OUT: Final = "/sign-out"
SIGNED_OUT: Final = "/signed-out"
OPEN_PATHS: Final = frozenset({SIGN_IN, PROVIDER, CALLBACK, LINK, SIGNED_OUT})
_PRE_COOKIE_S: Final = 600
_RETRY_AFTER: Final = {"Retry-After": "15"}
_NEXT: Final = "next"
Render = Callable[..., Response]

_log = structlog.get_logger()


class Accounts:
    """Makes accounts, and checks that they still exist.

    A user's stamp changes with the password and the role; a provider account's stamp with the
    provider and the rules for roles. A change at the provider counts from the next sign-in on.
    """

    def __init__(
        self,
        settings: ConsoleSettings,
        users: PasswordFile | None,
        link: SignInLink | None = None,
    ) -> None:
        self._users = users
        has_accounts = settings.console_oidc_issuer is not None or _has_users(users)
        self._link = None if has_accounts else link
        self.rules = ClaimRules(
            role_claim=settings.console_oidc_role_claim,
            view_roles=settings.console_oidc_view_roles,
            operate_roles=settings.console_oidc_operate_roles,
            name_claim=settings.console_oidc_name_claim,
        )
        self._provider_stamp = (
            None
            if settings.console_oidc_issuer is None
            else stamp(
                settings.console_oidc_issuer, str(settings.console_oidc_client_id), repr(self.rules)
            )
        )

    @property
    def link(self) -> SignInLink | None:
        """The one-time link; None for good once anyone has an account."""
        if self._link is not None and _has_users(self._users):
            self._link = None
        return self._link

    def stamp_of(self, kind: Kind, account: str, role: Role) -> str | None:
        """Return the stamp of an account with this role; None if there is no such account."""
        if kind == "link":
            return None if self.link is None else self.link.account.stamp
        if kind == "oidc":
            return self._provider_stamp
        user = None if self._users is None else self._users.user(account)
        return None if user is None or user.role != role else _stamp_of(user)

    def is_user(self, name: str) -> bool:
        """Return whether the password file has this name."""
        return self._users is not None and self._users.user(name) is not None

    def of_user(self, user: User) -> Account:
        """Return the account of a line in the password file."""
        return Account("password", user.name, user.name, user.role, _stamp_of(user))

    def of_claims(self, claims: Mapping[str, Any]) -> Account | None:
        """Return the account of a person at the provider; None if they have no role here."""
        role = self.rules.role_of(claims)
        if role is None or self._provider_stamp is None:
            return None
        name = self.rules.name_of(claims)
        return Account("oidc", claims["sub"], name, role, self._provider_stamp)


def _has_users(file: PasswordFile | None) -> bool:
    return file is not None and file.has_users()


def _stamp_of(user: User) -> str:
    return stamp(user.hash, user.role)


@dataclass(frozen=True, slots=True)
class SignIn:
    """The routes, and their dependencies.

    `key` signs the cookie of a sign-in. `passwords` is None without a password file, `provider`
    without a provider.
    """

    key: Secret
    sessions: Sessions
    accounts: Accounts
    passwords: Passwords | None
    provider: Provider | None
    render: Render

    @property
    def routes(self) -> list[Route]:
        """All routes of sign-in and sign-out."""
        key = hmac.digest(self.key.reveal(), b"keyturn/console/sign-in/v1", "sha256").hex()
        kept = [
            Middleware(
                SessionMiddleware,
                secret_key=key,
                session_cookie=PRE_COOKIE,
                max_age=_PRE_COOKIE_S,
                https_only=True,
            )
        ]
        routes = [
            Route(SIGN_IN, self.page, methods=["GET"], middleware=kept),
            Route(SIGN_OUT, self.sign_out, methods=["POST"]),
            Route(SIGNED_OUT, self.signed_out, methods=["GET"]),
        ]
        if self.passwords is not None:
            routes.append(Route(SIGN_IN, self.check_password, methods=["POST"], middleware=kept))
        if self.accounts.link is not None:
            routes.append(Route(LINK, self.open_link, methods=["GET"], middleware=kept))
        if self.provider is not None:
            routes += [
                Route(PROVIDER, self.go_to_provider, methods=["GET"], middleware=kept),
                Route(CALLBACK, self.come_back, methods=["GET"], middleware=kept),
            ]
        return routes

    async def page(self, request: Request) -> Response:
        """Show the form, and the link to the provider."""
        target = local_path(request.query_params.get(_NEXT))
        if SESSION_SCOPE in request.scope:
            return RedirectResponse(target, HTTPStatus.SEE_OTHER)
        return self._form(request, target)

    async def check_password(self, request: Request) -> Response:
        """Sign in by name and password."""
        form = await request.form()
        name, password, target, token = (
            str(form.get(field, "")) for field in ("name", "password", _NEXT, CSRF_FIELD)
        )
        target = local_path(target)
        if not _is_own_form(request, token):
            return self._form(request, target, name, "expired", HTTPStatus.FORBIDDEN)
        if self.passwords is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        try:
            user = await self.passwords.check(name, password)
        except TooManyAttemptsError:
            _refused("password", "too many attempts")
            return self._form(request, target, name, "busy", HTTPStatus.TOO_MANY_REQUESTS)
        if user is None:
            # A name that is not in the file may be a password in the wrong field.
            _refused("password", "wrong", name if self.accounts.is_user(name) else None)
            return self._form(request, target, name, "wrong", HTTPStatus.FORBIDDEN)
        return self._begin(request, self.accounts.of_user(user), target)

    async def open_link(self, request: Request) -> Response:
        """Sign in by the one-time link, and lead to an address without its token."""
        link = self.accounts.link
        # A HEAD request may be a preview of the link: it does not use it up.
        if (
            link is not None
            and request.method == "GET"
            and link.redeem(request.query_params.get(TOKEN, ""))
        ):
            return self._begin(request, link.account, HOME)
        if SESSION_SCOPE in request.scope:
            return RedirectResponse(HOME, HTTPStatus.SEE_OTHER)
        _refused("link", "not valid")
        return self._form(request, HOME, problem="link", status=HTTPStatus.FORBIDDEN)

    async def go_to_provider(self, request: Request) -> Response:
        """Begin a sign-in at the provider."""
        if self.provider is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        session = request.session
        session[_NEXT] = local_path(request.query_params.get(_NEXT))
        try:
            url = await self.provider.begin(request)
        except ProviderError as exc:
            return self._provider_failed(request, exc)
        return RedirectResponse(url, HTTPStatus.SEE_OTHER)

    async def come_back(self, request: Request) -> Response:
        """End a sign-in: the provider sent the browser back."""
        if self.provider is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        target = local_path(request.session.get(_NEXT))
        try:
            claims = await self.provider.finish(request)
        except ProviderError as exc:
            return self._provider_failed(request, exc)
        except SignInRefusedError as exc:
            _refused("oidc", str(exc))
            return self._refuse(request, "refused", HTTPStatus.FORBIDDEN, reason=str(exc))
        account = self.accounts.of_claims(claims)
        if account is None:
            name = self.accounts.rules.name_of(claims)
            _refused("oidc", "no role", name)
            return self._refuse(
                request,
                "no_role",
                HTTPStatus.FORBIDDEN,
                name=name,
                rules=self.accounts.rules,
                claims=sorted(claims),
            )
        return self._begin(request, account, target)

    async def sign_out(self, request: Request) -> Response:
        """End the session, here and in every copy of its cookie."""
        session = session_of(request)
        self.sessions.end(session)
        _log.info("signed out", person=session.person.name, session=session.id)
        response = RedirectResponse(SIGNED_OUT, HTTPStatus.SEE_OTHER)
        response.headers.append("Set-Cookie", f"{cookie_header(COOKIE, '')}; Max-Age=0")
        return response

    async def signed_out(self, request: Request) -> Response:
        """Show the remaining step: to end the session at the provider."""
        url = None if self.provider is None else await self.provider.end_session_url()
        return self.render(request, "sign_in/signed_out.html", provider_url=url)

    def _form(
        self,
        request: Request,
        target: str,
        name: str = "",
        problem: str | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> Response:
        token = request.session.setdefault(CSRF_FIELD, secrets.token_urlsafe())
        return self.render(
            request,
            "sign_in/form.html",
            status_code=status,
            headers=_RETRY_AFTER if status == HTTPStatus.TOO_MANY_REQUESTS else None,
            csrf=token,
            target=target,
            name=name,
            problem=problem,
            has_link=self.accounts.link is not None,
            has_passwords=self.passwords is not None and self.accounts.link is None,
            has_provider=self.provider is not None,
        )

    def _begin(self, request: Request, account: Account, target: str) -> Response:
        """Begin a new session, always: an earlier cookie counts for nothing."""
        if SESSION_SCOPE in request.scope:
            self.sessions.end(session_of(request))
        request.session.clear()
        cookie = self.sessions.begin(account)
        _log.info("signed in", person=account.name, role=account.role, method=account.kind)
        response = RedirectResponse(target, HTTPStatus.SEE_OTHER)
        response.headers.append("Set-Cookie", cookie_header(COOKIE, cookie))
        return response

    def _provider_failed(self, request: Request, exc: ProviderError) -> Response:
        cause = exc.__cause__
        _log.error("provider failed", reason=str(exc), error=type(cause).__name__)
        return self._refuse(request, "provider", HTTPStatus.BAD_GATEWAY, reason=str(exc))

    def _refuse(
        self, request: Request, kind: str, status: HTTPStatus, **values: object
    ) -> Response:
        target = local_path(request.session.get(_NEXT))
        shown = {"reason": "", "name": "", "rules": None, "claims": (), **values}
        return self.render(
            request,
            "sign_in/refused.html",
            status_code=status,
            kind=kind,
            target=target,
            has_passwords=self.passwords is not None,
            **shown,
        )


def _is_own_form(request: Request, token: str) -> bool:
    expected = str(request.session.get(CSRF_FIELD, ""))
    return bool(expected) and hmac.compare_digest(token.encode(), expected.encode())


def _refused(method: str, reason: str, name: str | None = None) -> None:
    _log.warning("sign-in refused", method=method, reason=reason, name=name)
