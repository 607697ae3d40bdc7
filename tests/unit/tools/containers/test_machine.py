"""How this machine reaches packages, as a base image made here gets it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.containers.images import (
    CA_BUNDLE,
    ca_bundle,
    image_environment,
    pip_config,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_pips_index_is_read_from_its_files_and_the_environment(tmp_path: Path) -> None:
    first, second = tmp_path / "machine.conf", tmp_path / "user.conf"
    first.write_text("[global]\nindex_url = https://a.example/\ncert = /etc/a.pem\n")
    second.write_text(
        "[install]\nindex_url = https://b.example/\ntrusted-host = b\nfind-links = /opt/wheels\n"
    )
    assert pip_config([first], {}) == "[global]\nindex_url = https://a.example/\n"
    both = "[global]\nindex_url = https://b.example/\ntrusted_host = b\n"
    assert pip_config([first, second], {}) == both
    given = {"PIP_INDEX_URL": "https://c.example/", "PIP_TRUSTED_HOST": "c.example", "OTHER": "x"}
    given["PIP_TIMEOUT"] = "9"
    assert pip_config([first, second], given).splitlines() == [
        "[global]",
        "index_url = https://c.example/",
        "timeout = 9",
        "trusted_host = c.example",
    ]


def test_the_certificates_are_those_that_the_environment_names(tmp_path: Path) -> None:
    own = tmp_path / "own.pem"
    own.write_text("PEM")
    assert ca_bundle({"SSL_CERT_FILE": str(own)}) == own
    assert ca_bundle({"SSL_CERT_FILE": str(tmp_path / "none")}) in (CA_BUNDLE, None)


def test_an_image_gets_no_variable_but_those_of_its_indexes() -> None:
    environ = {"UV_DEFAULT_INDEX": "https://a.example/", "UV_INDEX": "", "AWS_SECRET": "x"}
    assert image_environment(environ, with_cas=False) == {"UV_DEFAULT_INDEX": "https://a.example/"}
    assert image_environment({}, with_cas=True) == {
        "SSL_CERT_FILE": str(CA_BUNDLE),
        "PIP_CERT": str(CA_BUNDLE),
    }
