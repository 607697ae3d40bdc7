"""Dead letters are replayed and discarded by the console, on real workers (SPEC 12, 15.3, 16.2).

All tests use one deployment, so each has a project of its own.
"""

from __future__ import annotations

import asyncio
import re
import struct
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import aio_pika
import pytest
import pytest_asyncio
from pamqp import encode
from playwright.async_api import expect

from keyturn.topology import CODE_HEADER, DEAD_AT_HEADER, DETAIL_HEADER
from keyturn_workers.process.property_tolerance import tolerate_odd_properties
from keyturn_workers.reports.dead_letters.letters import describe
from keyturn_workers.reports.dead_letters.queue import QueueBrowser, exclusive
from tools.harness import console_letters
from tools.harness import requests as rq
from tools.harness.console_client import console_client, forms_of
from tools.harness.console_letters import CONTROL, UPLOADS, Letter
from tools.harness.console_site import OPERATOR

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from aio_pika.abc import AbstractIncomingMessage

    from tools.harness.console_browser import ConsoleVisit
    from tools.harness.console_client import Answer, ConsoleClient
    from tools.harness.console_site import ConsoleSite

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="package"),
]

_TIMEOUT_S: Final = 60


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def client(site: ConsoleSite) -> AsyncIterator[ConsoleClient]:
    """One session for all tests: sign-ins are limited."""
    async with console_client(site.url, OPERATOR) as signed_in:
        yield signed_in


def _letter(
    site: ConsoleSite, document: dict[str, Any], code: str, queue: str = UPLOADS, **headers: Any
) -> Letter:
    """A signed request as a worker leaves it."""
    body = rq.encode(document)
    signed = rq.headers(body, site.deployment.publisher_key)
    worker = {CODE_HEADER: code, DETAIL_HEADER: "as tested", DEAD_AT_HEADER: rq.now()}
    request_id = document.get("upload_id") or document.get("request_id")
    return Letter(queue, body, {**signed, **worker, **headers}, request_id)


async def _bury(site: ConsoleSite, letters: Iterable[Letter]) -> None:
    async with await aio_pika.connect(site.deployment.amqp_url) as connection:
        await console_letters.publish(await connection.channel(), letters)


async def _read(site: ConsoleSite, queue: str = UPLOADS) -> list[AbstractIncomingMessage]:
    """What is in a dead-letter queue, which keeps it."""
    async with (
        await aio_pika.connect(site.deployment.amqp_url) as connection,
        exclusive(connection),  # the console reads them too
    ):
        channel = await connection.channel()
        browser = QueueBrowser(channel, await channel.get_queue(queue, ensure=False))
        batches = [batch async for batch in browser.batches(lambda message: message)]
        await browser.requeue()
        return [message for batch in batches for message in batch]


async def _listed(client: ConsoleClient, text: str, count: int) -> list[str]:
    """The pages of letters that have this text, once so many are there."""
    async with asyncio.timeout(_TIMEOUT_S):
        while True:
            page = await client.get(f"/dead?text={text}")
            paths = re.findall(r'href="(/dead/keyturn[^"]+)"', page.text)
            if len(paths) == count:
                return paths
            await asyncio.sleep(0.2)


async def _moved(client: ConsoleClient, page: Answer, **fields: str) -> Answer:
    """The outcome of a confirmation, once a worker has answered."""
    outcome = await client.submit(page, "/dead/move", **fields)
    assert outcome.path.startswith("/actions/"), outcome
    return await client.until(outcome.path, " replayed<", " discarded<")


async def test_a_letter_is_replayed_after_its_cause_was_mended(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    project = "replayed"
    made = rq.upload(site.deployment, project, "k", b"a body")
    await _bury(site, [_letter(site, made.document, "unknown_project", own="kept")])
    (path,) = await _listed(client, made.upload_id, 1)
    letter = await client.get(path)
    assert "as tested" in letter.text
    assert "goes back to <code>keyturn.upload</code>" in letter.text
    assert made.document["sealed_key"]["ciphertext"] not in letter.text
    assert made.document["body"]["inline"] not in letter.text
    enroll = f"/projects/{project}/enroll"
    assert f'href="{enroll}"' in letter.text
    fresh_key = await client.submit(await client.get(enroll), f"{enroll}/key")
    enrolled = await client.submit(fresh_key, enroll, saved="yes", typed=project)
    await client.until(enrolled.path, "has a keyring")
    confirmation = await client.submit(letter, "/dead/confirm", move="replay")
    outcome = await _moved(client, confirmation, reason="Grüße \u202e x\u200cy")
    assert "<strong>1 replayed</strong>" in outcome.text
    stored = await site.wire.outcome(made.upload_id)
    assert stored["type"] == "upload.stored"
    audit = await client.until(f"/audit?text={made.upload_id}", "Grüße")
    assert "Dead letter replayed" in audit.text
    assert OPERATOR.name in audit.text
    await _listed(client, made.upload_id, 0)
    gone = await client.get(path)
    assert (gone.status, "Replayed" in gone.text) == (404, True)
    assert OPERATOR.name in gone.text


async def test_all_letters_of_a_code_are_discarded_also_those_that_are_not_shown(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    project, count, code = "discarded", 1200, "unknown_algorithm"
    kept = rq.upload(site.deployment, project, "kept", b"x").document
    await _bury(site, [*_many(site, project, count, code), _letter(site, kept, "bad_seal")])
    await client.until("/dead", "Not all letters are shown")
    path = f"/dead/confirm?move=discard&queue={UPLOADS}&code={code}"
    page = await client.get(path)
    assert "there may be more than" in page.text
    known = re.search(r"permanently discards ([\d,]+) dead letters", page.text)
    assert known is not None
    assert (await client.submit(page, "/dead/move", typed="1")).status == 422
    outcome = await _moved(client, page, typed=known[1], reason="of no use")
    assert f"<strong>{count:,} discarded</strong>" in outcome.text
    # Again from the same confirmation: its outcome is shown, and nothing is done twice.
    assert (await client.submit(page, "/dead/move", typed=known[1])).path == outcome.path
    left = [describe(message, UPLOADS) for message in await _read(site)]
    assert [each.message_id for each in left if each.project == project] == [kept["upload_id"]]


async def test_a_letter_of_several_with_one_id_is_chosen_by_its_body(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    first = rq.upload(site.deployment, "same-id", "k", b"x").document
    second = first | {"requested_at": rq.now(), "key": "other"}
    await _bury(site, [_letter(site, first, "bad_seal"), _letter(site, second, "bad_seal")])
    paths = await _listed(client, "same-id", 2)
    letter = await client.get(paths[0])
    confirmation = await client.submit(letter, "/dead/confirm", move="discard")
    assert "1 discarded" in (await _moved(client, confirmation, typed="1")).text
    assert await _listed(client, "same-id", 1) == paths[1:]


async def test_what_cannot_be_replayed_says_why_and_stays(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    document = rq.upload(site.deployment, "obstacle", "k", b"x").document
    dropped = {"keyturn-body-dropped": "0" * 64}
    await _bury(site, [_letter(site, document, "already_exists", **dropped)])
    (path,) = await _listed(client, "obstacle", 1)
    letter = await client.get(path)
    assert "Its body was not kept" in letter.text
    assert 'value="replay"' not in letter.text
    confirmation = await client.submit(letter, "/dead/confirm", move="replay")
    outcome = await _moved(client, confirmation)
    assert "1 could not be replayed, and stays where it is." in outcome.text
    await _listed(client, "obstacle", 1)


async def test_a_ticked_box_keeps_its_letter_while_others_arrive(
    site: ConsoleSite, client: ConsoleClient, operator: ConsoleVisit
) -> None:
    project = "ticked"
    await _bury(site, _many(site, project, 3))
    await _listed(client, project, 3)
    page = operator.page
    await page.goto(f"{site.url}/dead?text={project}")
    boxes = page.locator("input[name=letter]")
    ticked = await boxes.nth(1).get_attribute("value")
    await boxes.nth(1).check()
    await _bury(site, _many(site, project, 2))
    await expect(boxes).to_have_count(5, timeout=30_000)
    checked = page.locator("input[name=letter]:checked")
    await expect(checked).to_have_count(1)
    assert await checked.get_attribute("value") == ticked
    await page.get_by_role("button", name="Discard selected").first.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Discard 1 dead letter")
    assert await operator.findings() == []


async def test_hostile_letters_are_shown_and_discarded(
    site: ConsoleSite, client: ConsoleClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    giant = {f"h{n}": "x" * 1000 for n in range(90)}
    odd = Letter(UPLOADS, b'{"project": "hostile"}', {"a": {"b": [1, None]}, **giant}, "odd")
    await _bury(site, [*console_letters.hostile_letters(site.deployment), odd])
    await _bury_undecodable(site, monkeypatch)
    await _listed(client, "hostile", 1)
    letters = [
        (queue, sha256(message.body).hexdigest())
        for queue in (UPLOADS, CONTROL, console_letters.SWEEPS, "keyturn.unsigned.dead")
        for message in await _read(site, queue)
        if _is_hostile(message)
    ]
    assert len(letters) > 20
    for queue, digest in dict.fromkeys(letters):
        page = await client.get(f"/dead/{queue}/{digest}")
        assert page.status == 200, page
        for line in page.text.splitlines():
            assert "<script>" not in line
            assert "\u202e" not in line
    front = await client.get("/dead")
    fields = [("csrf", forms_of(front.text)[0].fields["csrf"]), ("move", "discard")]
    fields += [("letter", f"{queue}/{digest}") for queue, digest in letters]
    headers = {"Origin": client.url}
    url = f"{client.url}/dead/confirm"
    async with client.session.post(url, data=fields, headers=headers) as response:
        assert response.status == 200
        page_text = await response.text()
    for form in forms_of(page_text):
        if form.action == "/dead/move":
            digests = re.findall(
                rf'value="{re.escape(form.fields["form"])}">\s*((?:<input[^>]*>\s*)*)', page_text
            )
            chosen = re.findall(r'name="letter" value="([0-9a-f]+)"', digests[0])
            sent = [*form.fields.items(), *(("letter", each) for each in chosen[:-1])]
            sent = [(name, value) for name, value in sent if name != "typed"]
            sent.append(("typed", str(len(chosen))))
            async with client.session.post(
                f"{client.url}/dead/move", data=sent, headers=headers
            ) as response:
                assert response.status == 200, await response.text()
                path = response.url.path
            assert "could not be" not in (await client.until(path, " discarded<")).text


async def _bury_undecodable(site: ConsoleSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letters with properties that aio-pika cannot read by itself (ADR 0013)."""
    tolerate_odd_properties()
    year_56_000 = struct.pack(">Q", 1_700_000_000_000_000)
    async with await aio_pika.connect(site.deployment.amqp_url) as connection:
        channel = await connection.channel()
        with monkeypatch.context() as patched:
            patched.setitem(encode.METHODS, "timestamp", lambda _: year_56_000)
            odd = aio_pika.Message(b"{}", timestamp=1, headers={"n": 1})
            await channel.default_exchange.publish(odd, UPLOADS)
        with monkeypatch.context() as patched:
            patched.setitem(encode.METHODS, "shortstr", _undecodable)
            odd = aio_pika.Message(b"{}", app_id="\udcff\udcfe", headers={"n": 2})
            await channel.default_exchange.publish(odd, UPLOADS)


def _undecodable(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    return bytes([len(raw)]) + raw


def _is_hostile(message: AbstractIncomingMessage) -> bool:
    """Whether it is none of those that the tests or the deployment's history left."""
    return (
        message.message_id == "odd"
        or DETAIL_HEADER not in message.headers
        or ("enc-algo is" in str(message.headers[DETAIL_HEADER]) or "x-nested" in message.headers)
    )


def _many(site: ConsoleSite, project: str, count: int, code: str = "bad_seal") -> Iterable[Letter]:
    """Uploads that are refused again: their sealed keys are another upload's."""
    template = rq.upload(site.deployment, "acme", "template", b"x").document
    for number in range(count):
        document = {
            **template,
            "upload_id": rq.new_id(),
            "project": project,
            "key": f"{number:04}",
            "requested_at": rq.now(),
        }
        yield _letter(site, document, code)
