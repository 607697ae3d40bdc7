"""Every panel and every rule, run by a real Prometheus on what real processes export.

What happens before is in `scene`. Each query of a panel must return values, and one that is not
zero. `MAY_BE_ZERO` lists those whose series are there with zeros only.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

from keyturn.crypto import to_base64
from tests.integration.monitoring.scene import Monitored, monitored
from tests.support.deployed_queries import expressions, metric_names, resolve
from tools.harness.deployment import Deployment
from tools.servers import RabbitMQ, new_bucket, packages
from tools.servers.packages import MissingPackagesError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tools.servers import OpenBao, S3Server

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(400),
]

_FOLDER: Final = Path(__file__).parents[3] / "deploy/grafana/dashboards"
_DASHBOARDS: Final = {path.stem: json.loads(path.read_text()) for path in _FOLDER.glob("*.json")}
_PANELS: Final = {
    f"{name}: {panel['title']}": panel
    for name, dashboard in sorted(_DASHBOARDS.items())
    for panel in dashboard["panels"]
    if panel["type"] != "row"
}
_VARIABLES: Final = {
    f"{name}: {variable['name']}": variable
    for name, dashboard in sorted(_DASHBOARDS.items())
    for variable in dashboard["templating"]["list"]
    if variable["type"] == "query"
}
_VALUES: Final = {"job": ".*", "vhost": ".*", "__rate_interval": "20s", "__range": "5m"}
_BRIEF: Final = "over between two scrapes"
MAY_BE_ZERO: Final = {
    "Nodes that block publishers": "no node had an alarm",
    "Moved by the broker: delivery limit": "no message was delivered 100 times",
    "Audit records waiting": _BRIEF,
    "In progress": _BRIEF,
    "In progress: {{instance}}": _BRIEF,
    "Messages at workers: {{queue}}": _BRIEF,
    "Oldest page or step: {{queue}}": _BRIEF,
    "Oldest request": _BRIEF,
    "Pages waiting": _BRIEF,
    "Queue of control requests: at workers": _BRIEF,
    "Queue of control requests: ready": _BRIEF,
    "Queue of uploads: at workers": _BRIEF,
    "Queues of sweeps: {{queue}} at workers": _BRIEF,
    "Queues of sweeps: {{queue}} ready": _BRIEF,
    "Requests in progress: {{instance}}": _BRIEF,
}


@pytest.fixture(scope="module")
def own_broker() -> Iterator[RabbitMQ]:
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seen(own_broker: RabbitMQ, ceph: S3Server, openbao: OpenBao) -> AsyncIterator[Monitored]:
    """A Prometheus that has seen everything. One of the two master keys is in OpenBao.

    A source is watched, with nothing in it.
    """
    uri = openbao.create_hmac_key("monitored")
    deployment = Deployment(own_broker.url, ceph, new_bucket(ceph))
    keys = json.dumps({"m1": to_base64(deployment.master_key), "vault": uri})
    settings = {
        "KEYTURN_MASTER_KEYS": keys,
        "KEYTURN_ACTIVE_MASTER_KEY": "vault",
        **openbao.environment(),
    }
    drop = {"bucket": new_bucket(ceph), "project": "acme", "key": "drop/{name}"}
    own = deployment.publisher_env()
    watching = {
        "KEYTURN_SOURCES": json.dumps({"drop": drop}),
        **{name: own[name] for name in ("KEYTURN_PUBLISHER_NAME", "KEYTURN_PUBLISHER_KEY")},
    }
    async with monitored(deployment, own_broker, watching=watching, **settings) as running:
        yield running


def _values(seen: Monitored, expr: str) -> list[float]:
    series = seen.prometheus.query_range(expr, seen.began_s, seen.ended_s, 1)
    values = [value for each in series for value in each.values.values()]
    return [value for value in values if math.isfinite(value)]


def _label(panel: dict[str, Any], target: dict[str, Any]) -> str:
    title, legend = panel["title"], target["legendFormat"]
    return title if legend == "__auto" else f"{title}: {legend}"


async def test_no_query_is_excused_that_is_not_there() -> None:
    labels = {_label(panel, t) for panel in _PANELS.values() for t in panel["targets"]}
    assert MAY_BE_ZERO.keys() <= labels


@pytest.mark.parametrize("name", _PANELS)
async def test_a_panel_shows_data(seen: Monitored, name: str) -> None:
    panel = _PANELS[name]
    for target in panel["targets"]:
        found = _values(seen, resolve(target["expr"], _VALUES))
        assert found, target["expr"]
        if _label(panel, target) not in MAY_BE_ZERO:
            assert any(found), f"only zeros: {target['expr']}"


@pytest.mark.parametrize("name", _VARIABLES)
async def test_a_variable_has_choices(seen: Monitored, name: str) -> None:
    variable = _VARIABLES[name]
    metric = variable["definition"].removeprefix("label_values(").split(",")[0]
    assert seen.prometheus.label_values(variable["name"], metric)


async def test_every_rule_is_evaluated(seen: Monitored) -> None:
    rules = seen.prometheus.rules()
    assert len(rules) > 30
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}


async def test_every_metric_that_is_named_is_exported(seen: Monitored) -> None:
    """Those of autoscalers too."""
    named = {
        name for file in expressions().values() for expr in file for name in metric_names(expr)
    }
    assert named - seen.prometheus.label_values("__name__") == set()


async def test_what_happened_fires_alerts_and_nothing_else_does(seen: Monitored) -> None:
    firing = {rule["name"] for rule in seen.prometheus.rules() if rule.get("state") == "firing"}
    # On a very busy machine OpenBao may answer too late.
    assert firing - {"KeyturnRequestsWaitForKms"} == {
        "KeyturnDeadLetters",
        "KeyturnMasterKeyMissing",
        "KeyturnObjectsUnreadable",
        "KeyturnSweepFailures",
    }


async def test_every_job_of_the_example_is_scraped(seen: Monitored) -> None:
    up: dict[str, Any] = {s.labels["job"]: s.values for s in seen.prometheus.query("up == 1")}
    assert up.keys() == {"keyturn-workers", "keyturn-gateway", "rabbitmq", "rabbitmq-detailed"}
