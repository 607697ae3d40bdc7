"""Settings of a console that talks to nothing, for tests of its sign-in."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from keyturn_workers.console.settings import ConsoleSettings
from tools.harness.console import ConsoleDeployment
from tools.servers import S3Server

_S3 = S3Server("http://127.0.0.1:1", "access", "secret", "us-east-1", "given")
_DEPLOYMENT = ConsoleDeployment("amqp://127.0.0.1:1/", _S3, "bucket")
CLIENT_SECRET = "of the client at its provider, long enough"


def console_env(passwords: Path, **more: str) -> dict[str, str]:
    """The environment of a console; `more` without the prefix."""
    return _DEPLOYMENT.console_env(passwords, **more)


def console_settings(
    passwords: Path | None, issuer: str | None = None, **more: str
) -> ConsoleSettings:
    """Settings with a password file, a provider, or both; `more` without the prefix."""
    env = console_env(passwords or Path(), **more)
    if passwords is None:
        del env["KEYTURN_CONSOLE_PASSWORD_FILE"]
    if issuer is not None:
        provider = {
            "KEYTURN_CONSOLE_OIDC_ISSUER": issuer,
            "KEYTURN_CONSOLE_OIDC_CLIENT_ID": "keyturn-console",
            "KEYTURN_CONSOLE_OIDC_CLIENT_SECRET": CLIENT_SECRET,
        }
        env = provider | env
    with mock.patch.dict(os.environ, env, clear=True):
        return ConsoleSettings.read()
