"""`keyturn link`: the URL alone on standard output, and in nothing else (SPEC 9.3, 14)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.unit.keyturn.gateway.gateway import (
    TOKEN,
    FakeGateway,
    ciphertext_link_document,
    json_always,
    link_document,
    problem,
    serving,
)
from tests.unit.keyturn.gateway.test_upload_links import upload_document
from tests.unit.keyturn_workers.cli.through_gateway import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_KEY = "a b/é"
_UNTIL = "2026-11-24T11:00:00Z"


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with serving(json_always(201, link_document(_KEY))) as running:
        yield running


async def test_standard_output_gets_the_url_alone(gateway: FakeGateway) -> None:
    result = await run("link", "acme", _KEY, "--gateway", gateway.url)
    assert (result.exit_code, result.stdout) == (0, link_document(_KEY)["url"] + "\n")
    assert result.stderr == f"keyturn: valid until {_UNTIL}\n"
    assert json.loads(gateway.seen[0].body or b"") == {"expires_s": 3600, "inline": False}


async def test_the_options_are_those_of_the_link(gateway: FakeGateway) -> None:
    gateway.answer = json_always(201, link_document(_KEY, inline=True))
    arguments = ("link", "acme", _KEY, "--inline", "--expires", "2d", "--json")
    result = await run(*arguments, GATEWAY_URL=gateway.url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == link_document(_KEY, inline=True)
    assert json.loads(gateway.seen[0].body or b"") == {"expires_s": 172_800, "inline": True}


async def test_a_link_to_ciphertext_has_its_metadata_in_json_alone(gateway: FakeGateway) -> None:
    document = ciphertext_link_document()
    gateway.answer = json_always(201, document)
    arguments = ("link", "acme", "k", "--ciphertext", "--gateway", gateway.url)
    assert (await run(*arguments)).stdout == document["url"] + "\n"
    result = await run(*arguments, "--expires", "60", "--json")
    assert json.loads(result.stdout) == document
    bodies = [json.loads(seen.body or b"") for seen in gateway.seen]
    assert bodies == [{"kind": "ciphertext", "expires_s": seconds} for seconds in (900, 60)]


async def test_an_upload_link_has_its_bounds(gateway: FakeGateway) -> None:
    document = upload_document(_KEY, 10, "image/png")
    gateway.answer = json_always(201, document)
    arguments = ("link", "acme", _KEY, "--put", "--max-bytes", "10", "--content-type", "image/png")
    result = await run(*arguments, "--expires", "2d", GATEWAY_URL=gateway.url)
    assert (result.exit_code, result.stdout) == (0, document["url"] + "\n")
    assert result.stderr == f"keyturn: valid until {_UNTIL}\n"
    assert json.loads(gateway.seen[0].body or b"") == {
        "method": "PUT",
        "expires_s": 172_800,
        "max_bytes": 10,
        "content_type": "image/png",
    }
    result = await run(*arguments, "--json", GATEWAY_URL=gateway.url)
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
    gateway: FakeGateway, arguments: tuple[str, ...], message: str
) -> None:
    result = await run("link", "acme", _KEY, *arguments, GATEWAY_URL=gateway.url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert gateway.seen == []


async def test_without_a_gateway_there_are_no_links() -> None:
    result = await run("link", "acme", _KEY)
    assert result.exit_code == 2
    assert "use --gateway or set KEYTURN_GATEWAY_URL" in result.stderr


async def test_a_refusal_is_one_line_and_shows_no_link(gateway: FakeGateway) -> None:
    gateway.answer = problem(401, "unauthorized", "not this project's key")
    result = await run("link", "acme", _KEY, "--gateway", gateway.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "keyturn: unauthorized: not this project's key\n"
    gateway.answer = json_always(201, link_document("another"))
    result = await run("link", "acme", _KEY, "--gateway", gateway.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert TOKEN not in result.stderr
