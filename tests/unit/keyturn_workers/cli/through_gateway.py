"""Commands through a fake gateway, which the test's own loop serves."""

from __future__ import annotations

import asyncio

from typer.testing import CliRunner, Result

from keyturn_workers.cli.app import app
from tests.unit.keyturn.gateway.gateway import API_KEY


async def run(*arguments: str, stdin: str | None = None, **env: str) -> Result:
    """Run a command in a thread, with the API key in its environment."""
    variables = {"KEYTURN_API_KEY": API_KEY} | {f"KEYTURN_{n}": v for n, v in env.items()}
    invoke = CliRunner().invoke
    return await asyncio.to_thread(invoke, app, list(arguments), env=variables, input=stdin)
