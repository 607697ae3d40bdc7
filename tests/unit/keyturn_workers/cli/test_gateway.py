"""`keyturn download` and `link` through a gateway, which get no bucket and show no key."""

from __future__ import annotations

import json
import os
import warnings
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from keyturn.errors import SettingsError
from keyturn_workers.cli.gateway_access import GatewayAccess, gateway_access, gateway_client
from tests.unit.keyturn.gateway.gateway import (
    API_KEY,
    TOKEN,
    FakeGateway,
    ciphertext_link_document,
    cut,
    json_always,
    link_document,
    object_of,
    problem,
    serving,
)
from tests.unit.keyturn.gateway.test_links import upload_document
from tests.unit.keyturn_workers.cli.through_gateway import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from typer.testing import Result

BODY = os.urandom(200_000)
_KEY = "a b/é"
_UNTIL = "2026-11-24T11:00:00Z"
_URL = "https://files.example.com"


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with serving(object_of(BODY)) as running:
        yield running


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


async def _download(*arguments: str, **env: str) -> Result:
    return await run("download", "acme", "reports/q 3.bin", *arguments, **env)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_file_is_written_whole_and_for_its_owner_alone(
    gateway: FakeGateway, here: Path
) -> None:
    result = await _download("--gateway", gateway.url)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "keyturn: written to q 3.bin\n"
    assert (here / "q 3.bin").read_bytes() == BODY
    assert (here / "q 3.bin").stat().st_mode & 0o777 == 0o600
    assert gateway.seen[0].target == "/v1/projects/acme/objects/reports/q%203.bin"
    assert gateway.seen[0].headers["Authorization"] == f"Bearer {API_KEY}"


async def test_the_key_may_come_from_a_file(gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "acme.key"
    file.write_text("another-key-that-is-long-enough-to-be-one\n")
    result = await _download("--gateway", gateway.url, "--api-key-file", str(file))
    assert result.exit_code == 0
    assert gateway.seen[0].headers["Authorization"].endswith(" " + file.read_text().strip())


async def test_standard_output_gets_the_body_alone(gateway: FakeGateway, here: Path) -> None:
    result = await _download("--gateway", gateway.url, "-o", "-")
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, BODY, "")
    assert _names(here) == []


async def test_the_setting_names_the_gateway_and_the_option_wins(gateway: FakeGateway) -> None:
    assert (await _download("-o", "-", GATEWAY_URL=gateway.url)).exit_code == 0
    assert len(gateway.seen) == 1
    result = await _download(
        "-o", "-", "--gateway", gateway.url + "/other", GATEWAY_URL="http://127.0.0.1:1"
    )
    assert result.exit_code == 0
    assert gateway.seen[1].target.startswith("/other/v1/")


async def test_a_body_that_is_cut_leaves_no_file_and_fails(
    gateway: FakeGateway, here: Path
) -> None:
    gateway.answer = cut(BODY[:100_000], len(BODY))
    (here / "old").write_bytes(b"old")
    for arguments in ((), ("-o", "old", "--force")):
        result = await _download("--gateway", gateway.url, *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("keyturn: the body ended before its length")
        assert result.stderr.count("\n") == 1
    assert _names(here) == ["old"]
    assert (here / "old").read_bytes() == b"old"


async def test_a_body_that_is_cut_on_its_way_to_standard_output_fails(gateway: FakeGateway) -> None:
    gateway.answer = cut(BODY[:100_000], len(BODY))
    result = await _download("--gateway", gateway.url, "-o", "-")
    assert result.exit_code == 1
    assert BODY.startswith(result.stdout_bytes)


async def test_a_refusal_is_one_line_with_its_code(gateway: FakeGateway, here: Path) -> None:
    gateway.answer = problem(401, "unauthorized", "not this project's key")
    result = await _download("--gateway", gateway.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "keyturn: unauthorized: not this project's key\n"
    assert _names(here) == []


async def test_a_gateway_that_is_not_there_is_one_line(here: Path) -> None:
    result = await _download("--gateway", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.startswith("keyturn: the gateway did not respond (connection refused: ")
    assert result.stderr.count("\n") == 1
    assert _names(here) == []


async def test_an_existing_file_is_replaced_by_force_alone(
    gateway: FakeGateway, here: Path
) -> None:
    (here / "q 3.bin").write_bytes(b"old")
    result = await _download("--gateway", gateway.url)
    assert result.exit_code == 1
    assert "use --force to replace it" in result.stderr
    assert gateway.seen == []
    assert (await _download("--gateway", gateway.url, "--force")).exit_code == 0
    assert (here / "q 3.bin").read_bytes() == BODY


async def test_a_folder_that_does_not_exist_is_named(gateway: FakeGateway) -> None:
    result = await _download("--gateway", gateway.url, "-o", "none/x")
    assert (result.exit_code, result.stderr) == (1, "keyturn: none: no such folder\n")
    assert gateway.seen == []


async def test_the_operator_never_reads_through_the_gateway(gateway: FakeGateway) -> None:
    result = await _download("--gateway", gateway.url, "--as-operator")
    assert result.exit_code == 2
    assert "--as-operator and --gateway cannot be used together" in result.stderr
    result = await _download("--as-operator", "--reason", "why", GATEWAY_URL=gateway.url)
    assert result.exit_code == 2
    assert "KEYTURN_S3_BUCKET is missing" in result.stderr
    assert gateway.seen == []


async def test_the_operator_says_why_and_nobody_else_does(gateway: FakeGateway) -> None:
    for arguments in (("--as-operator",), ("--reason", "why", "--gateway", gateway.url)):
        result = await _download(*arguments)
        assert result.exit_code == 2
        text = "--as-operator requires --reason, and --reason requires --as-operator"
        assert text in result.stderr
    for reason in (" ", "two\nlines", "x" * 501):
        result = await _download("--as-operator", "--reason", reason)
        assert result.exit_code == 2
        assert "one line of 1 to 500 characters" in result.stderr
    assert gateway.seen == []


@pytest.mark.parametrize("url", ["files.example.com", "http://a:sesame@b", "http://b/?q=sesame"])
async def test_a_url_of_no_gateway_is_wrong_usage_and_not_shown(url: str) -> None:
    result = await _download("--gateway", url)
    assert result.exit_code == 2
    assert "must be http://host or https://host" in result.stderr
    assert "sesame" not in result.stderr
    result = await _download(GATEWAY_URL=url)
    assert result.exit_code == 2
    assert "KEYTURN_GATEWAY_URL is malformed: must be http://host" in result.stderr
    assert "sesame" not in result.stderr


async def test_a_key_that_would_leave_the_machine_unencrypted_is_warned_of() -> None:
    """One line, and no Python warning; the name resolves nowhere (RFC 2606)."""
    result = await _download("--gateway", "http://gateway.invalid:8080")
    assert result.exit_code == 1
    first, *others = result.stderr.splitlines()
    assert first == "keyturn: the API key is sent to the gateway unencrypted; use https://"
    assert "UnencryptedGatewayWarning" not in result.stderr
    assert len(others) == 1


@pytest.fixture
async def linking() -> AsyncIterator[FakeGateway]:
    async with serving(json_always(201, link_document(_KEY))) as running:
        yield running


async def test_standard_output_gets_the_url_alone(linking: FakeGateway) -> None:
    result = await run("link", "acme", _KEY, "--gateway", linking.url)
    assert (result.exit_code, result.stdout) == (0, link_document(_KEY)["url"] + "\n")
    assert result.stderr == f"keyturn: valid until {_UNTIL}\n"
    assert json.loads(linking.seen[0].body or b"") == {"expires_s": 3600, "inline": False}


async def test_the_options_are_those_of_the_link(linking: FakeGateway) -> None:
    linking.answer = json_always(201, link_document(_KEY, inline=True))
    arguments = ("link", "acme", _KEY, "--inline", "--expires", "2d", "--json")
    result = await run(*arguments, GATEWAY_URL=linking.url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == link_document(_KEY, inline=True)
    assert json.loads(linking.seen[0].body or b"") == {"expires_s": 172_800, "inline": True}


async def test_a_link_to_ciphertext_has_its_metadata_in_json_alone(linking: FakeGateway) -> None:
    document = ciphertext_link_document()
    linking.answer = json_always(201, document)
    arguments = ("link", "acme", "k", "--ciphertext", "--gateway", linking.url)
    assert (await run(*arguments)).stdout == document["url"] + "\n"
    result = await run(*arguments, "--expires", "60", "--json")
    assert json.loads(result.stdout) == document
    bodies = [json.loads(seen.body or b"") for seen in linking.seen]
    assert bodies == [{"kind": "ciphertext", "expires_s": seconds} for seconds in (900, 60)]


async def test_an_upload_link_has_its_bounds(linking: FakeGateway) -> None:
    document = upload_document(_KEY, 10, "image/png")
    linking.answer = json_always(201, document)
    arguments = ("link", "acme", _KEY, "--put", "--max-bytes", "10", "--content-type", "image/png")
    result = await run(*arguments, "--expires", "2d", GATEWAY_URL=linking.url)
    assert (result.exit_code, result.stdout) == (0, document["url"] + "\n")
    assert result.stderr == f"keyturn: valid until {_UNTIL}\n"
    assert json.loads(linking.seen[0].body or b"") == {
        "method": "PUT",
        "expires_s": 172_800,
        "max_bytes": 10,
        "content_type": "image/png",
    }
    result = await run(*arguments, "--json", GATEWAY_URL=linking.url)
    assert json.loads(result.stdout) == document


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--inline", "--ciphertext"), "cannot be used together"),
        (("--put", "--inline", "--max-bytes", "1"), "cannot be used together"),
        (("--put",), "--put requires --max-bytes"),
        (("--put", "--max-bytes", "-1"), "greater than or equal to 0"),
        (("--max-bytes", "10"), "require --put"),
        (("--content-type", "a/b"), "require --put"),
        (("--expires", "8d"), "--expires must be from 1s to 7d"),
        (("--expires", "0"), "--expires must be from 1s to 7d"),
        (("--expires", "1h", "--ciphertext"), "--expires must be from 1s to 15m"),
        (("--expires", "soon"), "must be seconds (90), or with a unit"),
        (("--gateway", "ftp://x"), "must be http://host or https://host"),
    ],
)
async def test_wrong_usage_exits_2_and_requests_nothing(
    linking: FakeGateway, arguments: tuple[str, ...], message: str
) -> None:
    result = await run("link", "acme", _KEY, *arguments, GATEWAY_URL=linking.url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert linking.seen == []


async def test_without_a_gateway_there_are_no_links() -> None:
    result = await run("link", "acme", _KEY)
    assert result.exit_code == 2
    assert result.stderr == "keyturn: KEYTURN_GATEWAY_URL is missing: set it or use --gateway\n"


async def test_a_refusal_is_one_line_and_shows_no_link(linking: FakeGateway) -> None:
    linking.answer = problem(401, "unauthorized", "not this project's key")
    result = await run("link", "acme", _KEY, "--gateway", linking.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "keyturn: unauthorized: not this project's key\n"
    linking.answer = json_always(201, link_document("another"))
    result = await run("link", "acme", _KEY, "--gateway", linking.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert TOKEN not in result.stderr


def test_the_option_wins_over_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYTURN_API_KEY", API_KEY)
    monkeypatch.setenv("KEYTURN_GATEWAY_URL", _URL)
    assert gateway_access("acme", None, None) == GatewayAccess(_URL, SecretStr(API_KEY))
    assert gateway_access("acme", "http://127.0.0.1", None).url == "http://127.0.0.1"
    monkeypatch.setenv("KEYTURN_GATEWAY_URL", "")
    with pytest.raises(SettingsError, match="KEYTURN_GATEWAY_URL is missing"):
        gateway_access("acme", None, None)
    monkeypatch.setenv("KEYTURN_GATEWAY_URL", "ftp://x")
    with pytest.raises(SettingsError, match="KEYTURN_GATEWAY_URL is malformed"):
        gateway_access("acme", None, None)


@pytest.mark.parametrize("url", [_URL, "http://127.0.0.1", "http://files.example.com"])
async def test_an_unencrypted_way_is_noted_and_no_python_warning(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with gateway_client(GatewayAccess(url, SecretStr(API_KEY))):
            pass
    noted = "keyturn: the API key is sent to the gateway unencrypted; use https://\n"
    assert capsys.readouterr().err == (noted if url == "http://files.example.com" else "")
