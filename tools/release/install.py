"""Installs what was built into empty environments, and uses it there as its README says.

Worker, gateway and commands run from the wheel of `keyturn-workers`, the README's program from the
wheel of `keyturn`, and a reader from the npm package, on a real broker and a real storage. Nothing
of the checkout is imported there; other packages come from their index, the newest that fit.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

from dotenv import dotenv_values

from tools import typescript
from tools.harness.process import gateway, worker
from tools.release.build import DIST, NPM, ReleaseError, run, uv
from tools.servers import Servers
from tools.supply.lock import EXTRAS, ROOT

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN: Final = re.compile(r"<!-- example: publish -->\n```python\n(.*?)```", re.DOTALL)
_READ: Final = """
const keyturn = new Keyturn({
  url: process.env.KEYTURN_GATEWAY_URL,
  project: "acme",
  apiKey: process.env.KEYTURN_API_KEY,
});
(async () => {
  for await (const entry of keyturn.list()) {
    console.log(`${entry.key}: ${await (await keyturn.get(entry.key)).text()}`);
  }
})();
"""
_READERS: Final = {
    "read.mjs": f'import {{ Keyturn }} from "keyturn";{_READ}',
    "read.cjs": f'const {{ Keyturn }} = require("keyturn");{_READ}',
}


def install(scratch: Path) -> None:
    """Install each package into an empty environment: the folders `workers`, `publisher`, `node`.

    Raises:
        ReleaseError: one cannot be installed.
    """
    version = next(DIST.glob("keyturn-*.whl")).name.split("-")[1]
    packages = {"workers": f"keyturn-workers[{','.join(EXTRAS)}]", "publisher": "keyturn[staging]"}
    for name, package in packages.items():
        run(uv(), "venv", "--quiet", "--python", sys.executable, scratch / name, cwd=DIST)
        # Named with its version, this one may be a pre-release, and no other package.
        wheel = ("--find-links", DIST, f"{package}=={version}")
        run(uv(), "pip", "install", "--quiet", "--python", scratch / name, *wheel, cwd=DIST)
    (scratch / "node").mkdir()
    run(NPM, "init", "--yes", cwd=scratch / "node")
    tarball = next(DIST.glob("*.tgz"))
    run(NPM, "install", "--no-audit", "--no-fund", tarball, cwd=scratch / "node")


async def use(scratch: Path) -> dict[str, str]:
    """Run a deployment of what is installed; return what each program printed.

    Raises:
        ReleaseError: a program failed, or printed nothing.
    """
    program = _SHOWN.search((ROOT / "README.md").read_text())
    if program is None:
        raise ReleaseError("README.md has no program `<!-- example: publish -->`")
    (scratch / "publish.py").write_text(program[1])
    keyturn, python = scratch / "workers/bin/keyturn", scratch / "publisher/bin/python"
    with Servers("ceph") as servers:
        addresses = servers.s3.environment(servers.new_bucket())
        run(keyturn, "init", cwd=scratch, env={**addresses, "KEYTURN_AMQP_URL": servers.amqp_url})
        publisher = _settings(scratch / "publisher.env")
        served = {"KEYTURN_LOG_FORMAT": "json", "KEYTURN_GATEWAY_PORT": "0"}
        async with (
            worker(_settings(scratch / "keyturn.env") | served, program=(str(keyturn),)),
            gateway(_settings(scratch / "gateway.env") | served, program=(str(keyturn),)) as web,
        ):
            enroll = ("enroll", "acme", "--generate", "--save-to", "acme.key")
            run(keyturn, *enroll, cwd=scratch, env=publisher)
            said = {"README": run(python, "publish.py", cwd=scratch, env=publisher)}
            api_key = (scratch / "acme.key").read_text().strip()
            reading = {"KEYTURN_GATEWAY_URL": web.url, "KEYTURN_API_KEY": api_key}
            for name, text in _READERS.items():
                (scratch / "node" / name).write_text(text)
                said[name] = run(typescript.NODE, name, cwd=scratch / "node", env=reading)
    if silent := [name for name, text in said.items() if not text.strip()]:
        raise ReleaseError(f"printed nothing: {', '.join(silent)}")
    return said


def _settings(file: Path) -> dict[str, str]:
    return {name: value or "" for name, value in dotenv_values(file).items()}
