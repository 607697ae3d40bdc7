"""The demo's end: the files come back through the gateway, completely and in part.

What is checked is what an HTTP client got. The commands that are shown are those that were
run; on a terminal the gateway stays until Enter is pressed, so that they can be pasted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shlex
import shutil
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from keyturn.crypto import to_base64
from keyturn_workers.gateway.paths import object_path
from tools.demo.rotation import QUICK
from tools.harness.process import gateway

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console

    from tools.demo.rotation import Keys
    from tools.harness.deployment import Deployment

_RANGE = 32
_TIMEOUT_S = 120


async def read_all(
    deployment: Deployment,
    keys: tuple[Keys, Keys],
    project: str,
    plain: Mapping[str, str],
    scratch: Path,
    console: Console,
) -> bool:
    """Read everything by HTTP; whether all is as it should be.

    `keys` are those from before the turns and those of now; `plain` holds the SHA-256 of what
    was uploaded, by key.
    """
    before, now = keys
    held = json.dumps({name: to_base64(key) for name, key in now.master_keys.items()})
    env = deployment.gateway_env(MASTER_KEYS=held, KEYRING_CACHE_S=QUICK["KEYRING_CACHE_S"])
    console.print("\n[bold]7.[/] The gateway starts: the holder of the current API key can read.")
    async with gateway(env) as running:
        good = True
        for key, expected in plain.items():
            url = running.url + object_path(project, key)
            status, found = await asyncio.to_thread(_sha256, url, now.api_key)
            refused, _ = await asyncio.to_thread(_sha256, url, before.api_key)
            right = (status, found, refused) == (200, expected, 401)
            outcome = "[green]the file[/]" if found == expected else f"[red]{status}[/]"
            console.print(f"   {key}: {outcome} {found[:12]}; with the old key: {refused}")
            good &= right
        good &= await _by_curl(running.url, now.api_key, project, plain, scratch, console)
        if sys.stdin.isatty():
            console.print("   Paste them into another terminal. Press Enter to end the demo.")
            with contextlib.suppress(KeyboardInterrupt):
                await asyncio.to_thread(sys.stdin.readline)
        return good & (await running.terminate() == 0)


def _sha256(url: str, api_key: str) -> tuple[int, str]:
    """The status of a GET, and the SHA-256 of what came."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {api_key}"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # ours
            return answer.status, hashlib.file_digest(answer, "sha256").hexdigest()
    except urllib.error.HTTPError as refusal:
        return refusal.code, ""


async def _by_curl(
    url: str,
    api_key: str,
    project: str,
    plain: Mapping[str, str],
    scratch: Path,
    console: Console,
) -> bool:
    """A download and a range of it, as one would type them."""
    if shutil.which("curl") is None:
        console.print("   (curl is not on this machine)")
        return True
    header = scratch / "authorization"
    header.touch(mode=0o600)
    header.write_text(f"Authorization: Bearer {api_key}\n")
    key, expected = next(iter(plain.items()))
    place = shlex.quote(url + object_path(project, key))
    download = f"curl -sS -H @{shlex.quote(str(header))} {place}"
    part = f"{download} -r 0-{_RANGE - 1}"
    gone = "" if sys.stdin.isatty() else " (of a gateway that ends with this demo)"
    console.print(f"   A download, and its first bytes{gone}:")
    for command in (f"{download} -o copy", part):
        console.print(f"     {command}", markup=False, soft_wrap=True)
    body, head = await _run(download), await _run(part)
    console.print(f"   {len(body):,} bytes; {head!r}", markup=False)
    return hashlib.sha256(body).hexdigest() == expected and head == body[:_RANGE]


async def _run(command: str) -> bytes:
    process = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output
