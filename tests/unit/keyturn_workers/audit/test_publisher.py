"""A record is signed like an event and published on the trail's routing key (SPEC 15.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aio_pika import DeliveryMode

from keyturn.crypto import VerifyKey
from keyturn.errors import BrokerUnavailableError
from keyturn.publisher.connection import BrokerConnection
from keyturn.topology import AUDIT_RECORDED, EVENT_KEY_HEADER, SIGNATURE_HEADER
from keyturn_workers.audit.publisher import AuditPublisher
from tests.unit.keyturn_workers.audit.memory import EVENT_KEY

if TYPE_CHECKING:
    from aio_pika import Message

_NOBODY = "amqp://nobody@127.0.0.1:1/"


async def test_a_record_is_signed_for_its_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, Message]] = []

    async def publish(self: Any, routing_key: str, message: Message) -> None:
        del self
        sent.append((routing_key, message))

    monkeypatch.setattr(BrokerConnection, "publish", publish)
    publisher = AuditPublisher(_NOBODY, "test", EVENT_KEY)
    await publisher.publish("an-id", b"{}")
    ((routing_key, message),) = sent
    assert (routing_key, message.message_id) == (AUDIT_RECORDED, "an-id")
    assert message.delivery_mode is DeliveryMode.PERSISTENT
    # No publisher's stream may take it.
    assert set(message.headers) == {SIGNATURE_HEADER, EVENT_KEY_HEADER}
    assert message.headers[EVENT_KEY_HEADER] == EVENT_KEY.id
    signature = str(message.headers[SIGNATURE_HEADER])
    VerifyKey.from_bytes(EVENT_KEY.public_bytes).verify_event("test", b"{}", signature)


@pytest.mark.slow
async def test_a_broker_that_is_away_is_an_error() -> None:
    publisher = AuditPublisher(_NOBODY, "test", EVENT_KEY, timeout_s=1)
    with pytest.raises(BrokerUnavailableError):
        await publisher.connect()
    with pytest.raises(BrokerUnavailableError):
        await publisher.publish("an-id", b"{}")
    await publisher.close()
