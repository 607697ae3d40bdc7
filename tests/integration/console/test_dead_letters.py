"""Dead letters are replayed and discarded by the console, on real workers (SPEC 12, 15.3, 16.2).

All tests use one deployment, so each has a project of its own.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import aio_pika
import pytest
import pytest_asyncio
from pamqp import encode
from playwright.async_api import expect

from keyturn.topology import CODE_HEADER, DEAD_AT_HEADER, DETAIL_HEADER
from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties
from keyturn_workers.dead_letters.letters import describe, digest_of
from keyturn_workers.dead_letters.queue import QueueBrowser, exclusive
from tools.harness import console_letters
from tools.harness import requests as rq
from tools.harness.console_client import console_client
from tools.harness.console_history import Publisher
from tools.harness.console_letters import CONTROL, UPLOADS, Letter
from tools.harness.console_site import OPERATOR, VIEWER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from aio_pika.abc import AbstractIncomingMessage

    from tools.harness.console_browser import ConsoleVisit
    from tools.harness.console_client import Answer, ConsoleClient
    from tools.harness.console_site import ConsoleSite

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="package"),
]

_TIMEOUT_S: Final = 60
_ENDED: Final = (">Done<", ">Done, not all<", ">Failed<", ">Stopped<")


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
        await browser.requeue(browser.received)
        return [message for batch in batches for message in batch]


async def _until(client: ConsoleClient, path: str, *words: str) -> Answer:
    """The page at this path, once it says one of these."""
    async with asyncio.timeout(_TIMEOUT_S):
        while True:
            page = await client.get(path)
            if page.status == 200 and any(each in page.text for each in words):
                return page
            await asyncio.sleep(0.1)


async def _listed(client: ConsoleClient, query: str, count: int) -> Answer:
    """The list, once it has read so many letters that match."""
    await client.submit(await client.get("/dead"), "/dead/read")
    return await _until(client, f"/dead?{query}", f"all {count:,} that match")


async def _confirmation(client: ConsoleClient, move: str, project: str) -> Answer:
    form = {"scope": "filter", "project": project, "move": move, "csrf": await _csrf(client)}
    page = await client.post("/dead/plans", form)
    assert page.path.startswith("/dead/plans/"), page
    return page


async def _csrf(client: ConsoleClient) -> str:
    page = await client.get("/dead/jobs")
    match = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert match is not None
    return match[1]


async def _move(
    client: ConsoleClient, move: str, project: str, count: int, reason: str = ""
) -> Answer:
    """The page of a job that has begun."""
    page = await _confirmation(client, move, project)
    job = await client.submit(page, page.path, typed=str(count), reason=reason)
    assert job.path.startswith("/dead/jobs/"), job
    return job


async def _ended(client: ConsoleClient, job: Answer) -> dict[str, int]:
    """The counts of a job that has ended."""
    page = await _until(client, job.path, *_ENDED)
    shown = re.findall(r"<dt>(\w+)[^<]*</dt><dd>([\d,]+)</dd>", page.text)
    return {name: int(number.replace(",", "")) for name, number in shown}


async def test_a_letter_is_replayed_after_its_cause_was_mended(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    project = "replayed"
    made = rq.upload(site.deployment, project, "k", b"a body")
    await _bury(site, [_letter(site, made.document, "unknown_project", own="kept")])
    publisher = Publisher(site.deployment, site.wire)
    enrolled = await publisher.publish_and_wait(rq.enroll(site.deployment, project))
    assert enrolled["type"] == "project.enrolled"
    await _listed(client, f"project={project}", 1)
    page = await client.get(f"/dead?project={project}")
    path = re.search(r'href="(/dead/keyturn[^"]+)"', page.text)
    assert path is not None
    letter = await client.get(path[1])
    assert "as tested" in letter.text
    assert "goes back to <code>keyturn.upload</code>" in letter.text
    assert made.document["sealed_key"]["ciphertext"] not in letter.text
    assert made.document["body"]["inline"] not in letter.text
    confirmation = await client.submit(letter, "/dead/plans", move="replay")
    job = await client.submit(confirmation, confirmation.path, reason="it is enrolled now")
    assert await _ended(client, job) == {"Replayed": 1, "Kept": 0, "Gone": 0, "Left": 0}
    stored = await site.wire.outcome(made.upload_id)
    assert stored["type"] == "upload.stored"
    audit = await _until(client, f"/audit?text={made.upload_id}", "it is enrolled now")
    assert "Dead letter replayed" in audit.text
    assert OPERATOR.name in audit.text
    gone = await client.get(path[1])
    assert (gone.status, "This letter is gone" in gone.text) == (404, True)


async def test_what_matches_a_filter_is_discarded_and_nothing_else(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    mine, other = "discarded", "left-alone"
    names = [rq.upload(site.deployment, mine, f"k{n}", b"x").document for n in range(20)]
    kept = [rq.upload(site.deployment, other, f"k{n}", b"x").document for n in range(5)]
    letters = [_letter(site, each, "bad_seal") for each in (*names[:10], *kept, *names[10:])]
    await _bury(site, letters)
    await _listed(client, f"project={mine}", 20)
    page = await _confirmation(client, "discard", mine)
    assert "permanently discards 20 dead letters" in page.text
    assert (await client.submit(page, page.path, typed="19")).status == 422
    job = await client.submit(page, page.path, typed="20", reason="of no use")
    assert await _ended(client, job) == {"Discarded": 20, "Kept": 0, "Gone": 0, "Left": 0}
    left = [describe(message, UPLOADS) for message in await _read(site)]
    assert [each.message_id for each in left if each.project in (mine, other)] == [
        each["upload_id"] for each in kept
    ]
    await _until(client, f"/audit?text={names[0]['upload_id']}", "Dead letter discarded")
    # Again from the same confirmation: the job is shown, and nothing is done twice.
    assert (await client.get(page.path)).path == job.path
    assert (await client.submit(page, page.path, typed="20")).path == job.path


async def test_a_letter_of_several_with_one_id_is_chosen_by_its_digest(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    document = rq.upload(site.deployment, "same-id", "k", b"x").document
    letters = [_letter(site, document, code) for code in ("bad_seal", "unknown_intake_key")]
    await _bury(site, letters)
    await _listed(client, "project=same-id", 2)
    page = await client.get("/dead?project=same-id&code=bad_seal")
    path = re.search(r'href="(/dead/keyturn[^"]+)"', page.text)
    assert path is not None
    letter = await client.get(path[1])
    confirmation = await client.submit(letter, "/dead/plans", move="discard")
    job = await client.submit(confirmation, confirmation.path, typed="1")
    assert (await _ended(client, job))["Discarded"] == 1
    left = [describe(message, UPLOADS) for message in await _read(site)]
    assert [each.code for each in left if each.project == "same-id"] == ["unknown_intake_key"]


async def test_what_cannot_be_replayed_is_left_out_with_its_reason(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    project = "obstacles"
    documents = [rq.upload(site.deployment, project, f"k{n}", b"x").document for n in range(2)]
    dropped = {"keyturn-body-dropped": "0" * 64}
    await _bury(
        site,
        [
            _letter(site, documents[0], "request_expired"),
            _letter(site, documents[1], "already_exists", **dropped),
        ],
    )
    await _listed(client, f"project={project}", 2)
    page = await _confirmation(client, "replay", project)
    assert "keyturn dead replay --resign" in page.text
    assert "Its body was not kept" in page.text
    assert "Nothing to do" in page.text


async def test_a_refused_replay_comes_back_and_is_not_replayed_twice(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    (letter,) = _many(site, "refused-again", 1)
    await _bury(site, [letter])
    await _listed(client, "project=refused-again", 1)
    job = await _move(client, "replay", "refused-again", 1)
    assert (await _ended(client, job))["Replayed"] == 1
    answer = await site.wire.outcome(str(letter.message_id))
    assert answer["type"] == "upload.rejected"
    await _back(site, UPLOADS, {letter.message_id})


async def test_a_broker_that_is_lost_in_the_middle_costs_nothing(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    project, count = "lost-broker", 1500
    await _bury(site, _many(site, project, count))
    await _listed(client, f"project={project}", count)
    job = await _move(client, "discard", project, count)
    await _begun(client, job)
    site.broker.stop()
    await _until(client, job.path, "the broker was lost", "cannot be")
    site.broker.resume()
    counts = await _ended(client, job)
    assert counts["Discarded"] + counts["Gone"] == count, counts
    assert await _ids(site, project) == Counter()


async def test_a_killed_console_leaves_letters_twice_at_worst(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    project, count = "killed", 1500
    await _bury(site, _many(site, project, count))
    names = set(await _ids(site, project))
    async with (
        site.another_console() as console,
        console_client(console.url, OPERATOR) as operator,
    ):
        await _listed(operator, f"project={project}", count)
        job = await _move(operator, "replay", project, count)
        await _begun(operator, job)
        await console.kill()
    # Each is refused again: it comes back, unless it was never gone.
    await _back(site, UPLOADS, names)
    left = await _settled(site, project)
    assert set(left.values()) <= {1, 2}
    await _listed(client, f"project={project}", left.total())
    job = await _move(client, "discard", project, left.total())
    assert (await _ended(client, job))["Discarded"] == left.total()


async def test_a_job_is_stopped_and_a_viewer_sees_it(
    site: ConsoleSite, client: ConsoleClient
) -> None:
    project, count = "stopped", 1500
    await _bury(site, _many(site, project, count))
    await _listed(client, f"project={project}", count)
    job = await _move(client, "discard", project, count)
    await client.submit(await _begun(client, job), "/stop")
    counts = await _ended(client, job)
    assert 0 < counts["Left"] < count
    assert (await _ids(site, project)).total() == counts["Left"]
    async with console_client(site.url, VIEWER) as viewer:
        assert "Stopped" in (await viewer.get(job.path)).text
        page = await viewer.get(f"/dead?project={project}")
        assert "Discard all" not in page.text
        csrf = await _csrf(viewer)
        for path in ("/dead/plans", "/dead/read", f"{job.path}/stop"):
            form = {"csrf": csrf, "move": "discard", "scope": "filter"}
            assert (await viewer.post(path, form)).status == 403
    await _listed(client, f"project={project}", counts["Left"])
    rest = await _move(client, "discard", project, counts["Left"])
    assert (await _ended(client, rest))["Left"] == 0


async def test_a_ticked_box_keeps_its_letter_while_others_arrive(
    site: ConsoleSite, client: ConsoleClient, operator: ConsoleVisit
) -> None:
    project = "ticked"
    await _bury(site, _many(site, project, 3))
    await _listed(client, f"project={project}", 3)
    page = operator.page
    await page.goto(f"{site.url}/dead?project={project}")
    boxes = page.locator("input[name=letter]")
    ticked = await boxes.nth(1).get_attribute("value")
    await boxes.nth(1).check()
    await _bury(site, _many(site, project, 2))
    await client.submit(await client.get("/dead"), "/dead/read")
    await expect(boxes).to_have_count(5)
    checked = page.locator("input[name=letter]:checked")
    await expect(checked).to_have_count(1)
    assert await checked.get_attribute("value") == ticked
    await page.get_by_role("button", name="Discard selected").first.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Discard 1 dead letter")
    assert await operator.findings() == []
    job = await _move(client, "discard", project, 5)
    assert (await _ended(client, job))["Discarded"] == 5


async def test_hostile_letters_are_shown_and_discarded(
    site: ConsoleSite, client: ConsoleClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    giant = {f"h{n}": "x" * 1000 for n in range(90)}
    odd = Letter(UPLOADS, b'{"project": "hostile"}', {"a": {"b": [1, None]}, **giant}, "odd")
    await _bury(site, [*console_letters.hostile_letters(site.deployment), odd])
    await _bury_undecodable(site, monkeypatch)
    letters = [
        (queue, digest_of(message))
        for queue in (UPLOADS, CONTROL, console_letters.SWEEPS, "keyturn.unsigned.dead")
        for message in await _read(site, queue)
        if _is_hostile(message)
    ]
    assert len(letters) > 20
    await _listed(client, "project=hostile", 1)
    # Together: each queue is read once for all who ask.
    pages = await asyncio.gather(
        *(client.get(f"/dead/{queue}/{digest}") for queue, digest in letters)
    )
    for page in pages:
        assert page.status == 200, page
        for line in page.text.splitlines():
            assert "<script>" not in line
            assert "\u202e" not in line
    form = [("csrf", await _csrf(client)), ("move", "discard")]
    fields = [*form, *(("letter", f"{queue}/{digest}") for queue, digest in letters)]
    headers = {"Origin": client.url}
    async with client.session.post(
        f"{client.url}/dead/plans", data=fields, headers=headers
    ) as response:
        assert response.status == 200
        path = response.url.path
    page = await client.get(path)
    match = re.search(r"discards ([\d,]+) dead", page.text)
    assert match is not None
    job = await client.submit(page, path, typed=match[1])
    counts = await _ended(client, job)
    assert (counts["Discarded"], counts["Left"]) == (int(match[1]), 0)


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


def _many(site: ConsoleSite, project: str, count: int) -> Iterable[Letter]:
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
        yield _letter(site, document, "bad_seal")


async def _ids(site: ConsoleSite, project: str) -> Counter[str | None]:
    """The ids of a project's dead letters, and how often each is there."""
    described = [describe(message, UPLOADS) for message in await _read(site)]
    return Counter(each.message_id for each in described if each.project == project)


async def _back(site: ConsoleSite, queue: str, ids: set[str | None]) -> None:
    """Wait until letters with these ids are in a dead-letter queue."""
    async with asyncio.timeout(_TIMEOUT_S):
        while True:
            if ids <= {message.message_id for message in await _read(site, queue)}:
                return
            await asyncio.sleep(0.2)


async def _settled(site: ConsoleSite, project: str) -> Counter[str | None]:
    """What is there of a project once no more comes back."""
    left: Counter[str | None] = Counter()
    async with asyncio.timeout(_TIMEOUT_S):
        while True:
            now = await _ids(site, project)
            if now and now == left:
                return now
            left = now
            await asyncio.sleep(2)


async def _begun(client: ConsoleClient, job: Answer) -> Answer:
    """The page of a job once it has moved something and goes on."""
    async with asyncio.timeout(_TIMEOUT_S):
        while True:
            page = await client.get(job.path)
            done = re.search(r"<dt>(?:Replayed|Discarded)</dt><dd>([\d,]+)</dd>", page.text)
            assert done is not None
            assert not any(word in page.text for word in _ENDED), "it ended too soon"
            if done[1] != "0":
                return page
            await asyncio.sleep(0.01)
