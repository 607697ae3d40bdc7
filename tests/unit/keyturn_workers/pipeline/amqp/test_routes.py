"""A queue of requests as FastStream runs it: codec, middlewares, handler (SPEC 6.2, 6.3)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from faststream.rabbit import RabbitBroker, TestRabbitBroker
from faststream.rabbit.subscriber import RabbitSubscriber

from keyturn_workers.core.authorization import Rules
from keyturn_workers.pipeline.amqp import settlement
from keyturn_workers.pipeline.amqp.outcomes import Handled, ReturnedError
from keyturn_workers.pipeline.amqp.requests import RequestQueue, request_route
from tests.unit.keyturn_workers.pipeline.amqp.deliveries import (
    RULES,
    FakeHandler,
    Scene,
    context,
    message,
    settled,
)

if TYPE_CHECKING:
    from keyturn.messages import Request, RequestOrigin


async def _deliver(scene: Scene, headers: dict[str, Any] | None = None) -> list[str]:
    """The steps of a delivery through FastStream's own test broker."""
    queue = RequestQueue(FakeHandler(scene), RULES, context(scene))
    broker = RabbitBroker(apply_types=False, logger=None)
    broker.include_router(request_route(queue, prefetch=3).router())
    delivery = message(scene, headers=headers)
    async with TestRabbitBroker(broker) as tested:
        await tested.publish(delivery.body, "keyturn.upload", headers=delivery.headers)
    return scene.steps


async def test_a_request_is_served_and_its_event_published() -> None:
    assert await _deliver(Scene()) == ["served", "published", "after"]


async def test_a_message_that_its_codec_refuses_is_a_dead_letter() -> None:
    steps = await _deliver(Scene(), {"keyturn-signature": "forged"})
    assert steps == ["dead", "keyturn.upload bad_signature"]


async def test_a_delivery_that_cannot_be_settled_ends_with_an_error() -> None:
    """The outermost middleware then gives it back."""
    with pytest.raises(ReturnedError):
        await _deliver(Scene("published"))


@pytest.mark.parametrize(("one_at_a_time", "prefetch"), [(False, 3), (True, 1)])
def test_its_prefetch_limits_what_is_handled_at_once(one_at_a_time: bool, prefetch: int) -> None:
    scene = Scene()
    queue = RequestQueue(FakeHandler(scene), RULES, context(scene))
    router = request_route(queue, prefetch=3).router(one_at_a_time=one_at_a_time)
    (subscriber,) = router.subscribers
    assert isinstance(subscriber, RabbitSubscriber)
    assert subscriber.channel is not None
    assert subscriber.channel.prefetch_count == prefetch


async def test_each_attempt_is_authorized_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher may lose its grants while a delivery is kept, because nothing is confirmed."""
    monkeypatch.setattr(settlement, "hold_s", lambda _: 60)
    monkeypatch.setattr(settlement, "_PAUSE_S", 0)
    scene, grants = Scene("published", failures=1), dict(RULES.publishers)

    class Revoking(FakeHandler):
        async def serve(self, request: Request, origin: RequestOrigin, **how: Any) -> Handled:
            grants.clear()
            return await super().serve(request, origin, **how)

    rules = Rules("test", grants, timedelta(days=7))
    steps = await settled(RequestQueue(Revoking(scene), rules, context(scene)), message(scene))
    expected = ["served", "published failed", "dead", "keyturn.upload bad_signature", "ack"]
    assert steps == expected
