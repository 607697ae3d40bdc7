"""Requests from elsewhere, and ways out of the site, are recognized (SPEC 16.3)."""

from __future__ import annotations

import pytest

from keyturn_workers.console.auth.requests import OwnOrigins, local_path, without_odd_cookies

_PROXIED = OwnOrigins.of("https://console.example.com", 8090)


@pytest.mark.parametrize(
    "host",
    [
        "console.example.com",
        "CONSOLE.example.com",
        "127.0.0.1:8090",
        "localhost:8090",
        "[::1]:8090",
    ],
)
def test_the_public_host_and_this_machine_are_its_own(host: str) -> None:
    assert _PROXIED.is_own_host(host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "console.example.com:8090",
        "console.example.com.evil.example",
        "127.0.0.1:9000",
        "127.0.0.1",
        "127.0.0.1:8090@evil.example",
    ],
)
def test_another_name_for_this_machine_is_refused(host: str | None) -> None:
    """An attacker's name can resolve to it (DNS rebinding)."""
    assert not _PROXIED.is_own_host(host)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://console.example.com"},
        {"origin": "http://127.0.0.1:8090"},
        {"sec-fetch-site": "same-origin"},
        {"origin": "https://console.example.com", "sec-fetch-site": "same-origin"},
    ],
)
def test_its_own_pages_may_change_something(headers: dict[str, str]) -> None:
    assert _PROXIED.is_own_page(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "null"},
        {"origin": "null", "sec-fetch-site": "same-origin"},
        {"origin": "https://evil.example"},
        {"origin": "http://console.example.com"},
        {"origin": "https://console.example.com.evil.example"},
        {"origin": "http://127.0.0.1:9000"},
        {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "none"},
    ],
)
def test_pages_of_other_origins_may_not(headers: dict[str, str]) -> None:
    assert not _PROXIED.is_own_page(headers)


@pytest.mark.parametrize("path", ["/", "/projects", "/sweeps/_all/1?view=all&page=2", "/a%2Fb"])
def test_a_path_of_this_site_is_gone_back_to(path: str) -> None:
    assert local_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        None,
        "",
        "projects",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "/a\\b",
        "\\\\evil.example",
        "https://evil.example/",
        "javascript:alert(1)",
        "/\t/evil.example",
        "/\n//evil.example",
        " /projects",
        "/a b",
        "/" + "a" * 1000,
    ],
)
def test_no_other_site_is_gone_to(path: str | None) -> None:
    assert local_path(path) == "/"


def test_after_a_form_one_goes_back_to_its_page() -> None:
    page_of = _PROXIED.page_of
    assert page_of("https://console.example.com/projects/acme?tab=1") == "/projects/acme?tab=1"
    assert page_of("http://localhost:8090/keys") == "/keys"
    assert page_of("https://evil.example/projects") == "/"
    assert page_of(None) == "/"
    assert page_of("http://[") == "/"


@pytest.mark.parametrize("blank", [b"\xa0", b"\x85", b"\x0b", b"\t", b"\xe2\x80\x80"])
def test_only_cookies_with_plain_names_are_read(blank: bytes) -> None:
    headers = [(b"host", b"a"), (b"cookie", b"a=1;" + blank + b"__Host-b=2; __Host-b=3;c")]
    assert without_odd_cookies(headers) == [(b"host", b"a"), (b"cookie", b"a=1; __Host-b=3; c")]
