"""Publishes signed records of the audit trail, each confirmed by the broker (SPEC 15.3).

On a connection of its own: a process without consumers, such as a command, records in the same
way as a worker.
"""

from typing import Final

from keyturn.crypto import SigningKey
from keyturn.publisher.connection import Broker, BrokerConnection, persistent_json
from keyturn.topology import AUDIT_RECORDED, EVENT_KEY_HEADER, SIGNATURE_HEADER

PUBLISH_TIMEOUT_S: Final = 30.0


class AuditPublisher:
    """Signs and publishes records.

    Args:
        broker: The broker's address.
        deployment: The installation that the records are signed for.
        event_key: Signs them, like events.
        timeout_s: How long one publish may take, connecting included.
    """

    def __init__(
        self,
        broker: Broker,
        deployment: str,
        event_key: SigningKey,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        self._connection = BrokerConnection(broker, publish_timeout_s=timeout_s)
        self._deployment = deployment
        self._event_key = event_key

    async def connect(self) -> None:
        """Connect now.

        Raises:
            BrokerUnavailableError: the broker refuses, or does not respond in time.
        """
        await self._connection.connect()

    async def publish(self, audit_id: str, body: bytes) -> None:
        """Publish one record; returns once the broker has it on disk.

        Raises:
            PublisherError: it is not on the stream, or perhaps not.
        """
        headers = {
            SIGNATURE_HEADER: self._event_key.sign_event(self._deployment, body),
            EVENT_KEY_HEADER: self._event_key.id,
        }
        message = persistent_json(body, audit_id, headers)
        await self._connection.publish(AUDIT_RECORDED, message)

    async def close(self) -> None:
        """Abandon what is being published, and disconnect."""
        await self._connection.close()
