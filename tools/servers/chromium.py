"""Chromium, the browser of tests, from Debian's packages.

Playwright drives it (`executable_path`), or it is started by itself with `ARGUMENTS` and an empty
folder for its profile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tools.servers import packages

if TYPE_CHECKING:
    from pathlib import Path

ARGUMENTS: Final = (
    "--headless",
    "--no-sandbox",  # tests run as root, in containers too
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # No request to anything but what the test visits.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""What every start of it needs."""


def path() -> Path:
    """Return the browser's path; its package is installed where it is missing.

    Raises:
        packages.MissingPackagesError: it is missing and cannot be installed.
    """
    return packages.path_of("chromium", "chromium")
