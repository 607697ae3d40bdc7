"""How this machine's apt reaches Debian's packages: for base images and for other releases.

Taken from apt's own configuration, so that no mirror, proxy or option has to be configured twice.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Final

_INDEX_FORMAT: Final = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
_SUITES: Final = ("", "-updates", "-security")
# Options that do not affect fetching: these describe the index files themselves.
_NOT_FETCHING: Final = (
    *("Acquire::IndexTargets", "Acquire::Changelogs", "Acquire::cdrom"),
    # These run programs of this machine.
    *("Acquire::http::Proxy-Auto-Detect", "Acquire::http::ProxyAutoDetect"),
)


@dataclass(frozen=True, order=True)
class Source:
    """One line of apt's sources."""

    uri: str
    suite: str
    component: str

    def __str__(self) -> str:
        return f"deb {self.uri} {self.suite} {self.component}"


def debian_sources(index_targets: str, release: str) -> list[Source]:
    """The sources from which apt gets one release of Debian.

    Args:
        index_targets: Lines of `origin|uri|suite|component`, as apt knows its sources.
        release: The release's code name. If this machine runs another release of Debian, the same
            archives are used.

    Returns:
        The release itself, its updates and its security updates; empty if apt has no archive of
        Debian over HTTP, which a container can also reach.
    """
    found = set()
    for line in index_targets.splitlines():
        origin, uri, suite, component = line.split("|")
        if origin == "Debian" and component == "main" and uri.startswith(("http://", "https://")):
            found.add(Source(uri, suite, component))
    suites = {release + suffix for suffix in _SUITES}
    same = sorted(source for source in found if source.suite in suites)
    if any(source.suite == release for source in same):
        return same
    # A main archive has every release, and its suites have no suffix.
    return sorted(Source(s.uri, release, s.component) for s in found if "-" not in s.suite)[:1]


def apt_sources(release: str) -> list[Source]:
    """`debian_sources` for this machine; empty without apt."""
    return debian_sources(
        _output("apt-get", "indextargets", "--format", _INDEX_FORMAT, "Created-By: Packages"),
        release,
    )


def fetch_options(dump: str) -> str:
    """The options for fetching from `apt-config dump`, as a configuration file for another apt."""
    kept = [
        line
        for line in dump.splitlines()
        if line.startswith("Acquire::")
        and not line.endswith('"";')
        and not line.startswith(_NOT_FETCHING)
    ]
    return "".join(f"{line}\n" for line in kept)


def apt_options() -> str:
    """`fetch_options` for this machine."""
    return fetch_options(_output("apt-config", "dump"))


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
