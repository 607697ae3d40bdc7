"""Programs of another Debian release: fetched once by this machine's apt, with their own /usr."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tools.servers import packages
from tools.servers.other_release import OtherRelease
from tools.servers.packages import AptSource, MissingPackagesError, debian_sources, fetch_options

if TYPE_CHECKING:
    from pathlib import Path


# The sources and options of this machine's apt.


_MAIN = "http://mirror.example/debian/"
_SECURITY = "http://mirror.example/debian-security/"
_TARGETS = f"""\
Debian|{_MAIN}|trixie|main
Debian|{_MAIN}|trixie|contrib
Debian|{_MAIN}|trixie-updates|main
Debian|{_SECURITY}|trixie-security|main
Debian|file:/srv/mirror/|trixie|main
Vendor|https://vendor.example/apt/|trixie|main
"""


def test_a_release_comes_with_its_updates_from_debians_archives_alone() -> None:
    assert debian_sources(_TARGETS, "trixie") == [
        AptSource(_SECURITY, "trixie-security", "main"),
        AptSource(_MAIN, "trixie", "main"),
        AptSource(_MAIN, "trixie-updates", "main"),
    ]
    assert str(debian_sources(_TARGETS, "trixie")[1]) == f"deb {_MAIN} trixie main"


def test_another_release_is_looked_for_in_the_main_archive() -> None:
    targets = _TARGETS.replace("trixie", "bookworm")
    assert debian_sources(targets, "trixie") == [AptSource(_MAIN, "trixie", "main")]


def test_without_an_archive_of_debians_there_is_no_source() -> None:
    assert debian_sources("", "trixie") == []
    assert debian_sources("Ubuntu|http://mirror.example/ubuntu/|noble|main\n", "trixie") == []
    assert debian_sources("Debian|file:/srv/mirror/|trixie|main\n", "trixie") == []


def test_only_options_for_fetching_are_kept() -> None:
    dump = """\
APT::Architecture "amd64";
DPkg::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb || true";
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3128/";
Acquire::http::Proxy-Auto-Detect "/usr/bin/detect";
Acquire::IndexTargets::deb::Packages::MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
Acquire::cdrom::mount "/media/cdrom/";
Acquire::Check-Valid-Until "false";
"""
    assert fetch_options(dump).splitlines() == [
        'Acquire::http::Proxy "http://proxy.example:3128/";',
        'Acquire::Check-Valid-Until "false";',
    ]


# The packages.


_EXTRACTS = """\
#!/bin/sh
for argument; do case "$argument" in */root) mkdir -p "$argument/usr/bin";; esac; done
echo "$@" >>"$CALLS"
"""
_FAILS = "#!/bin/sh\necho 'E: 404 Not Found' >&2; exit 25\n"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that records the calls of a fake `mmdebstrap`, which extracts."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages, "ensure", lambda _programs: None)
    monkeypatch.setattr(
        packages, "apt_sources", lambda name: [AptSource("http://a/", name, "main")]
    )
    monkeypatch.setattr(packages, "apt_options", lambda: 'Acquire::Check-Valid-Until "false";\n')
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    _install(tmp_path, _EXTRACTS)
    return tmp_path / "calls"


def _install(folder: Path, script: str) -> None:
    program = folder / "bin" / "mmdebstrap"
    program.write_text(script)
    program.chmod(0o755)


def _release(folder: Path) -> OtherRelease:
    return OtherRelease("forky", ("radosgw", "ceph-mon"), cache=folder / "cache")


def test_packages_are_extracted_once(calls: Path, tmp_path: Path) -> None:
    release = _release(tmp_path)
    release.ensure()
    assert (release.root / "usr" / "bin").is_dir()
    release.ensure()
    (call,) = calls.read_text().splitlines()
    assert "--include=radosgw,ceph-mon forky" in call
    assert call.endswith("deb http://a/ forky main")
    assert list((tmp_path / "cache").iterdir()) == [release.root]


def test_what_cannot_be_fetched_is_reported_and_leaves_nothing(calls: Path, tmp_path: Path) -> None:
    _install(tmp_path, _FAILS)
    with pytest.raises(MissingPackagesError, match="404 Not Found"):
        _release(tmp_path).ensure()
    assert list((tmp_path / "cache").iterdir()) == []
    assert not calls.exists()


@pytest.mark.usefixtures("calls")
def test_a_machine_without_debians_archive_or_root_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "apt_sources", lambda _name: [])
    with pytest.raises(MissingPackagesError, match="no archive of Debian forky"):
        _release(tmp_path).ensure()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MissingPackagesError, match="root"):
        _release(tmp_path).ensure()


def test_another_choice_of_packages_has_a_folder_of_its_own(tmp_path: Path) -> None:
    release = _release(tmp_path)
    assert release.root == OtherRelease("forky", ("ceph-mon", "radosgw"), release.cache).root
    others = [OtherRelease("forky", ("radosgw",), release.cache),
              OtherRelease("sid", release.packages, release.cache)]  # fmt: skip
    assert len({release.root, *(other.root for other in others)}) == 3


def test_a_program_gets_its_own_usr_and_one_folder_to_write_to(tmp_path: Path) -> None:
    release = _release(tmp_path)
    command = release.command(tmp_path / "data", "radosgw", "-f")
    assert command[0] == "bwrap"
    assert command[-3:] == ["--", "radosgw", "-f"]
    bound = [command[at : at + 3] for at, word in enumerate(command) if word.endswith("bind")]
    assert bound == [
        ["--ro-bind", f"{release.root}/usr", "/usr"],
        ["--bind", f"{tmp_path}/data", f"{tmp_path}/data"],
    ]
