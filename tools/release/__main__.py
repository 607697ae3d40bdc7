"""`python -m tools.release [--tag TAG]`: check all that a release publishes, and fill `dist/`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tools import typescript
from tools.release.build import DIST, SBOM, ReleaseError, build, run
from tools.release.install import install, use
from tools.servers.packages import MissingPackagesError
from tools.servers.process import ServerError
from tools.supply.lock import ROOT
from tools.supply.sbom import faults as sbom_faults


def check(scratch: Path, tag: str) -> None:
    """Build, check and use everything; print a line for each result.

    Raises:
        ReleaseError: something must not be released.
        NpmError: npm failed.
    """
    commit = run("git", "log", "-1", "--format=%h %s", cwd=ROOT).strip()
    _say(f"commit {commit}")
    if run("git", "status", "--porcelain", "--untracked-files=no", cwd=ROOT):
        _say("changes that are not committed are not part of it")
    for name, digest in build(scratch / "build", tag=tag).items():
        _say(f"built twice, the same bytes: {name}  sha256 {digest[:16]}…")
    if found := sbom_faults((DIST / SBOM).read_text()):
        raise ReleaseError("\n".join(found))
    _say("the SBOM is CycloneDX 1.5, and lists what the image holds")
    distributions = [*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")]
    run(sys.executable, "-m", "twine", "check", "--strict", *distributions, cwd=DIST)
    _say(f"twine check --strict: {len(distributions)} distributions passed")
    tree = scratch / "build/first/tree"
    typescript.npm("run", "package", folder=tree / typescript.PACKAGE.relative_to(ROOT))
    _say("publint --strict and attw: the npm package passed")
    install(scratch)
    _say("each package installs into an empty environment")
    for name, text in asyncio.run(use(scratch)).items():
        _say(f"{name}: {text.strip()}")


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Check the release of the last commit."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    parser.add_argument("--tag", default="", help="the tag that is being released")
    tag: str = parser.parse_args().tag
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="keyturn-release-") as scratch:
            check(Path(scratch), tag)
    except (ReleaseError, typescript.NpmError, MissingPackagesError, ServerError) as exc:
        print(f"not to be released: {exc}", file=sys.stderr)
        return 1
    print(f"release-check passed in {time.monotonic() - began:.0f} s; {DIST} has what it built")
    return 0


if __name__ == "__main__":
    sys.exit(main())
