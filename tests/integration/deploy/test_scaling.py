"""The queries by which KEDA scales give one value each, of what waits and of what is served.

A real Prometheus asks them; it scrapes a real broker and a real gateway on the paths, and with the
parameters, of the monitors beside them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aio_pika
import pytest

from keyturn.topology import PLAN_QUEUE, SWEEP_QUEUE, UPLOAD_QUEUE
from keyturn_workers.pipeline.amqp.declarations import declare
from tools.harness.deployment import Deployment
from tools.harness.process import gateway
from tools.manifests.documents import Manifests, name_of
from tools.servers import RabbitMQ, packages
from tools.servers.packages import MissingPackagesError
from tools.servers.prometheus import Prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.servers import S3Server

pytestmark = [pytest.mark.servers, pytest.mark.slow]

_WAITING = {UPLOAD_QUEUE: 7, SWEEP_QUEUE: 3, PLAN_QUEUE: 2}
_TIMEOUT_S = 60


@pytest.fixture
def broker_with_metrics() -> Iterator[RabbitMQ]:
    try:
        packages.ensure({**packages.RABBITMQ_PACKAGES, "prometheus": "prometheus"})
    except MissingPackagesError as error:
        pytest.skip(str(error))
    rabbitmq = RabbitMQ(metrics=True)
    try:
        rabbitmq.start()
        yield rabbitmq
    finally:
        rabbitmq.stop()


def _job(name: str, endpoint: dict[str, Any], target: str, namespace: str) -> dict[str, Any]:
    """A monitor's endpoint, with the label that the Prometheus Operator adds."""
    return {
        "job_name": name,
        "scrape_interval": "1s",
        "metrics_path": endpoint["path"],
        "params": endpoint.get("params", {}),
        "static_configs": [{"targets": [target], "labels": {"namespace": namespace}}],
    }


def _endpoint(manifests: Manifests, monitor: str) -> dict[str, Any]:
    first: dict[str, Any] = manifests.find("PodMonitor", monitor)["spec"]["podMetricsEndpoints"][0]
    return first


def _value(prometheus: Prometheus, query: str, *, at_least: float) -> list[float]:
    """The values of the query's series, once one of them is high enough."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        found = [value for one in prometheus.query(query) for value in one.values.values()]
        if any(value >= at_least for value in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


async def test_each_query_gives_one_value(
    production: Manifests,
    rabbitmq: Manifests,
    broker_with_metrics: RabbitMQ,
    moto: S3Server,
    moto_bucket: str,
) -> None:
    vhost = rabbitmq.find("Vhost", "keyturn")["spec"]["name"]
    address = urlsplit(broker_with_metrics.url)
    broker_with_metrics.control("add_vhost", vhost)
    user = str(address.username)
    broker_with_metrics.control("set_permissions", "-p", vhost, user, ".*", ".*", ".*")
    url = address._replace(path=f"/{vhost}").geturl()
    await declare(url, ["gateway"])
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue, count in _WAITING.items():
            for _ in range(count):
                await channel.default_exchange.publish(aio_pika.Message(b"{}"), queue)
    deployment = Deployment(url, moto, moto_bucket)
    metrics = f"127.0.0.1:{broker_with_metrics.metrics_port}"
    async with gateway(deployment.gateway_env()) as serving:
        jobs = [
            _job("broker", _endpoint(rabbitmq, "broker"), metrics, "keyturn-broker"),
            _job(
                "gateway",
                _endpoint(production, "gateway"),
                f"{serving.host}:{serving.port}",
                production.find("PodMonitor", "gateway")["metadata"]["namespace"],
            ),
        ]
        expected = {
            "worker-upload": _WAITING[UPLOAD_QUEUE],
            "worker-sweep": _WAITING[SWEEP_QUEUE] + _WAITING[PLAN_QUEUE],
            # Its own scrape, at least while that is answered.
            "gateway": 0,
        }
        scaled = production.of("ScaledObject")
        assert {name_of(one) for one in scaled} == expected.keys()
        with Prometheus({"scrape_configs": jobs}) as prometheus:
            for one in scaled:
                (trigger,) = one["spec"]["triggers"]
                query, least = trigger["metadata"]["query"], expected[name_of(one)]
                values = _value(prometheus, query, at_least=least)
                assert len(values) == 1, (query, values)
                assert values[0] == least or (least == 0 and values[0] <= 2), (query, values)
