"""Builds the last commit twice, in folders and with settings that differ, and compares the bytes.

Wheels and sdists of both distributions (each wheel from its sdist), the npm package, the SBOM of
what the image holds, and the release notes. `SOURCE_DATE_EPOCH` is the commit's time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tools import typescript
from tools.release import versions
from tools.supply.lock import EXTRAS, ROOT, SHIPPED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DIST: Final = ROOT / "dist"
SBOM: Final = "keyturn.cdx.json"
NOTES: Final = "notes.md"
SUMS: Final = "SHA256SUMS"
NPM: Final = typescript.NODE.with_name("npm")
_TIMEOUT_S: Final = 600
_OUTPUT_CHARACTERS: Final = 4000
# Where and by whom something is built must not show in it: folder, umask and settings.
_BUILDERS: Final = {
    "first": (0o022, {"TZ": "UTC", "LC_ALL": "C.UTF-8"}),
    "the-second": (0o077, {"TZ": "Pacific/Auckland", "LC_ALL": "POSIX"}),
}


class ReleaseError(Exception):
    """Something must not be released; the text says what is wrong with it."""


def run(
    *command: str | Path, cwd: Path, umask: int = -1, env: Mapping[str, str] | None = None
) -> str:
    """Run a command, with these additions to the environment, and return its output.

    Raises:
        ReleaseError: it failed; the text is the end of its output.
    """
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**typescript.env(), **(env or {})},
        umask=umask,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        output = (done.stdout + done.stderr)[-_OUTPUT_CHARACTERS:]
        raise ReleaseError(f"{command[0]} {command[1]} failed:\n{output}")
    return done.stdout


def uv() -> str:
    """The program uv: from PATH, else the checkout's own."""
    found = shutil.which("uv", path=f"{os.environ['PATH']}:{ROOT / '.tools/bin'}")
    if found is None:
        raise ReleaseError("uv is missing: `make setup` installs it")
    return found


def build(scratch: Path, *, tag: str = "") -> dict[str, str]:
    """Replace `dist/` by what the last commit builds; return the SHA-256 of each file.

    Args:
        scratch: An empty folder for the two builds.
        tag: The tag that is being released, if there is one.

    Raises:
        ReleaseError: versions or changelog do not agree, a build failed, or the two differ.
        NpmError: npm failed.
    """
    typescript.install()
    first, second = (_one(scratch / name, *by, tag) for name, by in _BUILDERS.items())
    sums, others = _sums(first), _sums(second)
    if differ := sorted({name for name, _ in sums.items() ^ others.items()}):
        raise ReleaseError(f"two builds of the same commit differ: {', '.join(differ)}")
    (first / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    shutil.rmtree(DIST, ignore_errors=True)
    shutil.copytree(first, DIST)
    return sums


def _one(folder: Path, umask: int, settings: Mapping[str, str], tag: str) -> Path:
    """Build all from a fresh copy of the last commit; return the folder that has it."""
    tree, dist, archive = folder / "tree", folder / "dist", folder / "tree.tar"
    for made in (tree, dist):
        made.mkdir(parents=True)
    run("git", "archive", f"--output={archive}", "HEAD", cwd=ROOT)
    run("tar", "-xf", archive, "--no-same-permissions", cwd=tree, umask=umask)
    if found := versions.faults(tree, tag=tag):
        raise ReleaseError("\n".join(found))
    seconds = run("git", "log", "-1", "--format=%ct", cwd=ROOT).strip()
    env = {"SOURCE_DATE_EPOCH": seconds, **settings}
    every = ("--all-packages", "--no-create-gitignore", "--out-dir", dist)
    run(uv(), "build", "--quiet", *every, cwd=tree, umask=umask, env=env)
    client = tree / typescript.PACKAGE.relative_to(ROOT)
    (client / "node_modules").symlink_to(typescript.PACKAGE / "node_modules")
    run(NPM, "run", "build", cwd=client, umask=umask, env=env)
    # npm packs the modes that files have here, which depend on the umask.
    run("chmod", "-R", "u=rwX,go=rX", ".", cwd=client)
    run(NPM, "pack", "--pack-destination", dist, cwd=client, env=env)
    _write_sbom(tree, dist / SBOM, int(seconds))
    (dist / NOTES).write_text(versions.notes(tree))
    return dist


def _write_sbom(tree: Path, target: Path, seconds: int) -> None:
    """The SBOM of the image. Its serial number and its time are the commit's, not of this run."""
    extras = [f"--extra={extra}" for extra in sorted(EXTRAS)]
    shipped = ("--locked", "--quiet", "--no-default-groups", "--package", SHIPPED, *extras)
    bom = json.loads(run(uv(), "export", *shipped, "--format", "cyclonedx1.5", cwd=tree))
    bom["metadata"]["timestamp"] = datetime.fromtimestamp(seconds, UTC).isoformat()
    del bom["serialNumber"]
    content = json.dumps(bom, sort_keys=True)
    bom["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, versions.REPOSITORY + content).urn
    target.write_text(json.dumps(bom, indent=2) + "\n")


def _sums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }
