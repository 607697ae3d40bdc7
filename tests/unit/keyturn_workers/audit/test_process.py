"""Who a process is comes from the kernel, and is one line (SPEC 15.3)."""

from __future__ import annotations

import os
import pwd
import socket

import pytest

from keyturn.identifiers import is_uuid
from keyturn_workers.audit.process import AuditProcess, one_line


def test_each_run_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("USER", "somebody")
    one, other = AuditProcess.start("download"), AuditProcess.start("download")
    assert one.id != other.id
    assert is_uuid(one.id)
    assert one.host == socket.gethostname()
    assert one.actor == f"{pwd.getpwuid(os.getuid()).pw_name}@{one.host}"


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_001)
    assert AuditProcess.start("download").actor.startswith("4000000001@")


@pytest.mark.parametrize(
    ("text", "line"),
    [("kim@bastion", "kim@bastion"), ("", "?"), ("a\nb\x1b", "a?b?"), ("x" * 300, "x" * 200)],
)
def test_a_name_is_one_line(text: str, line: str) -> None:
    assert one_line(text) == line
