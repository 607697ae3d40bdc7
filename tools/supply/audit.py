"""`make audit`: are there known vulnerabilities in what is shipped?

Checks the hashed, locked requirements against the OSV database with pip-audit. A finding fails.
Where the database cannot be reached, or does not answer in time, one line says so and it passes: an
audit must not stop a build because of an outage elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_CONNECT_TIMEOUT_S = 4
_WHOLE_TIMEOUT_S = 15.0
# How pip-audit, or requests below it, says that it got no answer.
_OUTAGES = ("ConnectionError", "Timeout", "ServiceError", "HTTPError", "JSONDecodeError")
_NOT_AUDITED = "audit: not done, the vulnerability database {}; nothing is known either way"


def audit(
    requirements: Path, *, url: str | None = None, timeout_s: float = _WHOLE_TIMEOUT_S
) -> int:
    """Run the audit, print a few lines, and return the exit status.

    Args:
        requirements: Pinned, with hashes, as `uv export` writes them.
        url: Of another OSV service.
        timeout_s: For the whole audit, in seconds.
    """
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", str(requirements)),
        *("--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json"),
        *("--vulnerability-service", "osv", "--timeout", str(_CONNECT_TIMEOUT_S)),
        *(("--osv-url", url) if url else ()),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(_NOT_AUDITED.format(f"did not answer within {timeout_s:g} s"))
        return 0
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return _without_answer(done.stderr)
    return _report(found)


def _without_answer(reason: str) -> int:
    last = reason.strip().splitlines()[-1] if reason.strip() else "reason nothing"
    if any(name in last for name in _OUTAGES):
        print(_NOT_AUDITED.format("could not be reached"))
        return 0
    # Not the database's fault: requirements without hashes, say.
    print(f"audit: failed: {last}", file=sys.stderr)
    return 1


def _report(found: list[dict[str, Any]]) -> int:
    bad = [dependency for dependency in found if dependency.get("vulns")]
    for dependency in bad:
        for vulnerability in dependency["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            print(
                f"audit: {dependency['name']} {dependency['version']}: {vulnerability['id']}, "
                f"fixed in {fixed}",
                file=sys.stderr,
            )
    unknown = [dependency["name"] for dependency in found if "skip_reason" in dependency]
    if unknown:
        print(f"audit: not known there: {', '.join(unknown)}", file=sys.stderr)
    print(f"audit: {len(found) - len(unknown)} packages, {len(bad)} with known vulnerabilities")
    return 1 if bad else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.supply.audit", description=__doc__)
    parser.add_argument("requirements", type=Path)
    sys.exit(audit(parser.parse_args().requirements))
