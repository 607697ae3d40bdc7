"""Certificates for servers on loopback, by a CA of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path

    from tools.servers.certificates import Certificate


def make_certificate(folder: Path) -> Certificate:
    """Write a certificate for `localhost` and 127.0.0.1, its key, and its CA's certificate."""
    return Authority(folder).issue()
