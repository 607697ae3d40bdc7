"""Each letter goes back to the queue that it came from."""

from __future__ import annotations

import pytest

from keyturn.errors import MalformedRequestError
from keyturn.topology import CONTROL_QUEUE, DEAD_QUEUES, UNSIGNED_DEAD_QUEUE, UPLOAD_QUEUE
from keyturn_workers.dead_letters.errors import UnknownQueueError
from keyturn_workers.dead_letters.queues import dead_queue, work_queue
from tests.unit.keyturn_workers.dead_letters.letters import Letter, letter, upload
from tools.harness import requests


@pytest.mark.parametrize("queue", DEAD_QUEUES)
def test_a_queue_is_named_with_or_without_its_suffix(queue: str) -> None:
    assert dead_queue(queue) == dead_queue(queue.removesuffix(".dead")) == queue


@pytest.mark.parametrize("name", ["", "keyturn", "keyturn.upload.dead.dead", "keyturn.events"])
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(UnknownQueueError, match="is not one of"):
        dead_queue(name)


@pytest.mark.parametrize("queue", [q for q in DEAD_QUEUES if q != UNSIGNED_DEAD_QUEUE])
def test_a_letter_goes_back_to_its_own_work_queue_whatever_it_claims(queue: str) -> None:
    assert work_queue(letter(upload()).message, queue) == queue.removesuffix(".dead")


def test_an_unsigned_letter_goes_to_the_queue_of_its_type() -> None:
    to = [
        work_queue(letter(document).message, UNSIGNED_DEAD_QUEUE)
        for document in (upload(), requests.delete("acme", "k"))
    ]
    assert to == [UPLOAD_QUEUE, CONTROL_QUEUE]


@pytest.mark.parametrize("body", [b"{}", b"\xff", b'{"type": "upload.stored"}'])
def test_an_unsigned_letter_of_no_request_type_goes_nowhere(body: bytes) -> None:
    with pytest.raises(MalformedRequestError, match="no queue to replay it to"):
        work_queue(Letter(body, {}).message, UNSIGNED_DEAD_QUEUE)
