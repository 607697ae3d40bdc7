"""The queues hold together: no message is lost between two of them (SPEC 6.1, 6.2)."""

from __future__ import annotations

from itertools import chain
from typing import Final

import pytest

from keyturn.messages import EVENT_MODELS, REQUEST_MODELS
from keyturn.topology import (
    ALL_DELAYS_S,
    AUDIT_RECORDED,
    CONTROL_QUEUE,
    DEAD_QUEUES,
    EVENTS,
    EVENTS_STREAM,
    KEYRING_MARKED,
    MARKS_STREAM,
    NOTIFICATIONS,
    PLAN_QUEUE,
    PUBLISHER_EVENTS,
    PUBLISHER_HEADER,
    REJECTED_EVENTS,
    REQUEST_ID_FIELDS,
    REQUESTS,
    RETRY_DELAYS_S,
    STATUS_REPORTED,
    SWEEP_QUEUE,
    UPLOAD_QUEUE,
    WORKER_REPORTED,
    WORKERS_STREAM,
    audit_queue,
    dead_letter_name,
    publisher_binding,
    publisher_queue,
    queues,
    retry_name,
)

WORK: Final = (UPLOAD_QUEUE, CONTROL_QUEUE, SWEEP_QUEUE, PLAN_QUEUE)
QUEUES: Final = {queue.name: queue for queue in queues()}


def test_each_request_goes_to_one_queue_and_each_event_to_the_stream() -> None:
    bound = list(chain.from_iterable(queue.bindings for queue in queues()))
    assert sorted(bound) == sorted((*REQUESTS, *EVENTS, WORKER_REPORTED, KEYRING_MARKED))
    assert QUEUES[EVENTS_STREAM].bindings == EVENTS
    assert QUEUES[UPLOAD_QUEUE].bindings == ("upload.requested",)


def test_a_queue_is_declared_after_the_one_that_its_messages_go_to() -> None:
    """Retry queues return to their work queue, which a message cannot leave before it exists."""
    order = [queue.name for queue in queues()]
    assert len(order) == len(set(order))
    for name in WORK:
        target = QUEUES[name].arguments["x-dead-letter-routing-key"]
        assert target == dead_letter_name(name)
        assert order.index(str(target)) < order.index(name)
    assert order[-1] == EVENTS_STREAM


def test_what_is_dead_lettered_on_its_way_is_kept_until_it_has_arrived() -> None:
    for queue in queues():
        if "x-dead-letter-exchange" in queue.arguments:
            assert queue.arguments["x-dead-letter-routing-key"] in QUEUES
            assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
            assert queue.arguments["x-overflow"] == "reject-publish"
            assert queue.arguments["x-queue-type"] == "quorum"


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("delay_s", ALL_DELAYS_S)
def test_a_retry_returns_to_its_queue_after_its_delay(name: str, delay_s: int) -> None:
    arguments = QUEUES[retry_name(name, delay_s)].arguments
    assert arguments["x-message-ttl"] == delay_s * 1000
    assert arguments["x-dead-letter-routing-key"] == name


def test_retries_wait_longer_each_time() -> None:
    assert sorted(set(RETRY_DELAYS_S)) == list(RETRY_DELAYS_S)


@pytest.mark.parametrize("name", DEAD_QUEUES)
def test_no_dead_letter_is_dropped_for_being_looked_at(name: str) -> None:
    assert QUEUES[name].arguments == {"x-queue-type": "quorum", "x-delivery-limit": -1}


def test_notifications_are_bounded_and_leave_nothing_behind() -> None:
    """Anyone whom the broker lets push them may flood them; what is dropped, a listing finds."""
    queue = QUEUES[NOTIFICATIONS]
    assert queue.bindings == ()  # its own exchange feeds it
    assert queue.arguments["x-max-length-bytes"] == 64 * 1024**2
    assert queue.arguments["x-overflow"] == "drop-head"
    assert queue.arguments["x-delivery-limit"] == 5
    assert "x-dead-letter-exchange" not in queue.arguments


def test_every_request_has_an_id_and_a_refusal() -> None:
    assert set(REQUESTS) == set(REQUEST_ID_FIELDS) == set(REQUEST_MODELS)
    assert set(PUBLISHER_EVENTS) == set(EVENT_MODELS)
    for request in REQUESTS:
        assert REQUEST_ID_FIELDS[request] in REQUEST_MODELS[request].model_fields
        refusal = EVENT_MODELS[REJECTED_EVENTS[request]]
        assert REQUEST_ID_FIELDS[request] in refusal.model_fields


def test_a_publishers_stream_takes_its_own_events_alone() -> None:
    stream = publisher_queue("billing")
    assert stream.name == "keyturn.events.billing"
    assert stream.arguments["x-queue-type"] == "stream"
    assert stream.bindings == ()
    assert publisher_binding("billing") == {"x-match": "all", PUBLISHER_HEADER: "billing"}


def test_reports_of_status_go_to_streams_of_single_publishers_alone() -> None:
    """Nothing else may bind them: they would enter a stream that all operators read."""
    bound = chain.from_iterable(queue.bindings for queue in (*queues(), audit_queue()))
    assert STATUS_REPORTED not in bound
    assert {*PUBLISHER_EVENTS} - {*EVENTS} == {STATUS_REPORTED}


def test_reports_of_workers_go_to_their_stream_alone() -> None:
    stream = QUEUES[WORKERS_STREAM]
    assert stream.bindings == (WORKER_REPORTED,)
    assert stream.arguments["x-queue-type"] == "stream"
    # Each worker reports all the time: what they said a day ago must not fill a disk.
    assert stream.arguments["x-max-age"] == "1D"
    assert stream.arguments["x-max-length-bytes"] == 64 * 1024**2
    assert WORKER_REPORTED not in {*PUBLISHER_EVENTS, *REQUESTS, AUDIT_RECORDED}


def test_marks_are_kept_for_ever() -> None:
    stream = QUEUES[MARKS_STREAM]
    assert stream.bindings == (KEYRING_MARKED,)
    assert stream.arguments["x-queue-type"] == "stream"
    assert not {"x-max-age", "x-max-length-bytes"} & set(stream.arguments)
    assert KEYRING_MARKED not in {*PUBLISHER_EVENTS, *REQUESTS, AUDIT_RECORDED}


def test_records_of_the_audit_trail_go_to_its_stream_alone() -> None:
    stream = audit_queue(86400, 10**9)
    assert (stream.name, stream.bindings) == ("keyturn.audit", (AUDIT_RECORDED,))
    assert stream.arguments["x-queue-type"] == "stream"
    assert stream.arguments["x-max-age"] == "86400s"
    assert stream.arguments["x-max-length-bytes"] == 10**9
    elsewhere = chain.from_iterable(queue.bindings for queue in queues())
    assert AUDIT_RECORDED not in {*elsewhere, *EVENTS, *REQUESTS}
