"""The sources and options of this machine's apt, for use by another one."""

from __future__ import annotations

from tools.servers.apt import Source, debian_sources, fetch_options

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
        Source(_SECURITY, "trixie-security", "main"),
        Source(_MAIN, "trixie", "main"),
        Source(_MAIN, "trixie-updates", "main"),
    ]
    assert str(debian_sources(_TARGETS, "trixie")[1]) == f"deb {_MAIN} trixie main"


def test_another_release_is_looked_for_in_the_main_archive() -> None:
    targets = _TARGETS.replace("trixie", "bookworm")
    assert debian_sources(targets, "trixie") == [Source(_MAIN, "trixie", "main")]


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
