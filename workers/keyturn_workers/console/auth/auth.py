"""Sign-in and protection as one value, made from the settings (SPEC 16.3).

auth = Auth(settings, public_url, port)
app = auth.protect(create_app(ConsoleContext(…, auth=auth, …)))
"""

from collections.abc import Sequence
from typing import Final

import httpx2
from starlette.middleware import Middleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from keyturn.errors import SettingsError
from keyturn_workers.console.auth.link import TOKEN, SignInLink
from keyturn_workers.console.auth.passwords import Hasher, PasswordFile, Passwords
from keyturn_workers.console.auth.protection import (
    AccessLog,
    ErrorPage,
    OwnOrigins,
    Protection,
    SecurityHeaders,
)
from keyturn_workers.console.auth.provider import Provider
from keyturn_workers.console.auth.sessions import Sessions, SignedOut
from keyturn_workers.console.auth.sign_in import (
    CALLBACK,
    LINK,
    OPEN_PATHS,
    Accounts,
    Render,
    SignIn,
)
from keyturn_workers.console.rendering.templates import http_error_page
from keyturn_workers.console.rendering.templates import render as render_page
from keyturn_workers.console.settings import ConsoleSettings


class Auth:
    """Sign-in to a console, and the protection of its requests."""

    def __init__(
        self,
        settings: ConsoleSettings,
        public_url: str,
        port: int,
        *,
        link: SignInLink | None = None,
        render: Render = render_page,
        error_page: ErrorPage = http_error_page,
        hasher: Hasher | None = None,
        provider_transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Read the files that the settings name.

        `public_url` is the origin as browsers see it, `port` the console's own. `link` signs in
        while no one has an account. By default `hasher` is argon2's, and the provider is reached
        over the network.

        Raises:
            SettingsError: a file cannot be used, or there is no way to sign in.
        """
        path = settings.console_password_file
        if path is None and settings.console_oidc_issuer is None and link is None:
            raise SettingsError(
                "KEYTURN_CONSOLE_OIDC_ISSUER or KEYTURN_CONSOLE_PASSWORD_FILE is missing: one of "
                "them is required for signing in; on your own machine, --sign-in-link replaces them"
            )
        users = None if path is None else PasswordFile(path)
        self._accounts = accounts = Accounts(settings, users, link)
        self.sessions: Final = Sessions(
            settings.console_session_key,
            accounts.stamp_of,
            SignedOut(settings.console_signed_out_file),
            session_s=settings.console_session_s,
            idle_s=settings.console_idle_s,
        )
        self._origins = OwnOrigins.of(public_url, port, settings.console_scheme)
        self._sign_in = SignIn(
            settings.console_session_key,
            self.sessions,
            accounts,
            None if users is None else Passwords(users, hasher),
            None
            if settings.console_oidc_issuer is None
            else Provider(
                settings, accounts.rules, public_url + CALLBACK, transport=provider_transport
            ),
            render,
        )
        self._error_page = error_page

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """The routes of sign-in and sign-out."""
        return self._sign_in.routes

    def new_link(self) -> str | None:
        """Return the URL of a new one-time link; None if there is no link, or anyone's account."""
        link = self._accounts.link
        return None if link is None else f"{self._origins.public}{LINK}?{TOKEN}={link.new_token()}"

    @property
    def middleware(self) -> Sequence[Middleware]:
        """The middleware that admits only signed-in people to the pages."""
        return [
            Middleware(
                Protection,
                sessions=self.sessions,
                origins=self._origins,
                open_paths=OPEN_PATHS,
                error_page=self._error_page,
            )
        ]

    def protect(self, app: ASGIApp) -> ASGIApp:
        """Add security headers and a log line to every response, also to errors."""
        is_https = self._origins.public.startswith("https://")
        return AccessLog(SecurityHeaders(app, is_https=is_https))
