"""What is rendered conforms to its schemas, and schemas refuse what does not exist."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from keyturn_workers.core.grants import parse_grants
from tools import typescript
from tools.manifests.documents import (
    KUBERNETES,
    Manifests,
    RenderError,
    container_of,
    name_of,
    render,
)
from tools.manifests.policies import violations
from tools.manifests.schemas import NPM, invalid
from tools.supply.lock import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FOLDERS = (
    "overlays/small",
    "overlays/production",
    *(f"examples/{one}" for one in ("rabbitmq", "cert-manager", "ingress")),
)
TYPED = ("examples/gateway-api", "examples/external-secrets")
_FIXTURES = {folder: folder.rpartition("/")[2].replace("-", "_") for folder in (*FOLDERS, *TYPED)}


@pytest.fixture
def types() -> None:
    """What the schemas of the Gateway API and of External Secrets are made of."""
    try:
        typescript.install(NPM)
    except typescript.NpmError as error:
        pytest.skip(f"npm cannot install the types: {error}")


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_rendered_conforms_to_its_schemas(
    folder: str, request: pytest.FixtureRequest
) -> None:
    manifests: Manifests = request.getfixturevalue(_FIXTURES[folder])
    assert manifests.documents
    assert list(invalid(manifests)) == []


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize("folder", TYPED)
def test_what_is_rendered_conforms_to_its_types(
    folder: str, request: pytest.FixtureRequest
) -> None:
    test_what_is_rendered_conforms_to_its_schemas(folder, request)


@pytest.mark.parametrize(
    ("component", "on"),
    [
        *(
            (one, "overlays/small")
            for one in ("customer-key-token", "monitoring", "pod-identity", "tls", "tracing")
        ),
        ("customer-key-token", "base"),
        # KEDA's is in the overlay `production`.
        ("hpa", "base"),
    ],
)
def test_each_component_fits(component: str, on: str, tmp_path: Path) -> None:
    lines = [
        "apiVersion: kustomize.config.k8s.io/v1beta1",
        "kind: Kustomization",
        f"resources: [{_from(tmp_path, KUBERNETES / on)}]",
        f"components: [{_from(tmp_path, KUBERNETES / 'components' / component)}]",
        "images: [{name: keyturn, newTag: v1}]" if on == "base" else "",
    ]
    (tmp_path / "kustomization.yaml").write_text("\n".join(lines))
    manifests = render(tmp_path)
    assert list(invalid(manifests)) == []
    assert violations(manifests) == []


def _from(folder: Path, target: Path) -> str:
    """A relative path, which is what kustomize takes."""
    up = "/".join(".." for _ in folder.resolve().parts[1:])
    return f"{up}{target.resolve()}"


def _spec(manifests: Manifests, kind: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = manifests.find(kind, name)["spec"]
    return spec


_REFUSED: dict[str, tuple[str, Callable[[Manifests], object], str]] = {
    "a field of Kubernetes that does not exist": (
        "production",
        lambda m: _spec(m, "Deployment", "gateway").update(replica=3),
        "replica",
    ),
    "a field of Kubernetes of another type": (
        "production",
        lambda m: container_of(m.find("Deployment", "gateway"))["ports"][0].update(
            containerPort="api"
        ),
        "api",
    ),
    "a kind of Kubernetes that does not exist": (
        "production",
        lambda m: m.find("Service", "gateway").update(apiVersion="v2"),
        "v2 Service",
    ),
    "a field of KEDA that does not exist": (
        "production",
        lambda m: _spec(m, "ScaledObject", "gateway").update(minReplicas=2),
        "minReplicas",
    ),
    "a field of KEDA that is missing": (
        "production",
        lambda m: _spec(m, "ScaledObject", "gateway").pop("triggers"),
        "triggers",
    ),
    "a number of KEDA's scaler": (
        "production",
        lambda m: _spec(m, "ScaledObject", "gateway")["triggers"][0]["metadata"].update(
            threshold=100
        ),
        "100",
    ),
    "a field of a monitor that does not exist": (
        "production",
        lambda m: _spec(m, "PodMonitor", "workers")["podMetricsEndpoints"][0].update(url="/"),
        "url",
    ),
    "a field of cert-manager that does not exist": (
        "cert_manager",
        lambda m: _spec(m, "Certificate", "gateway-tls").update(hosts=["a"]),
        "hosts",
    ),
    "a usage that cert-manager does not know": (
        "cert_manager",
        lambda m: _spec(m, "Certificate", "gateway-tls").update(usages=["serving"]),
        "serving",
    ),
    "a field of an HTTPRoute that does not exist": (
        "gateway_api",
        lambda m: _spec(m, "HTTPRoute", "gateway")["rules"][0].update(timeout="0s"),
        "timeout",
    ),
    "a policy that External Secrets does not know": (
        "external_secrets",
        lambda m: _spec(m, "ExternalSecret", "keyturn-worker")["target"].update(
            creationPolicy="Mine"
        ),
        "Mine",
    ),
    "a field of RabbitMQ's that does not exist": (
        "rabbitmq",
        lambda m: _spec(m, "RabbitmqCluster", "keyturn").update(nodes=3),
        "nodes",
    ),
    "a permission of RabbitMQ's that does not exist": (
        "rabbitmq",
        lambda m: _spec(m, "TopicPermission", "worker")["permissions"].update(configure=""),
        "configure",
    ),
}


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize("what", _REFUSED)
def test_a_schema_refuses(what: str, request: pytest.FixtureRequest) -> None:
    fixture, change, says = _REFUSED[what]
    manifests: Manifests = request.getfixturevalue(fixture)
    broken = Manifests(copy.deepcopy(manifests.documents))
    change(broken)
    found = list(invalid(broken))
    assert any(says in line for line in found), found


def test_a_kustomization_with_a_mistake_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]")
    with pytest.raises(RenderError, match=r"missing\.yaml"):
        render(tmp_path)


@pytest.mark.parametrize("overlay", ["small", "production"])
def test_the_image_is_that_of_this_release(overlay: str, request: pytest.FixtureRequest) -> None:
    manifests: Manifests = request.getfixturevalue(overlay)
    version = next(
        line.split('"')[1]
        for line in (ROOT / "workers/pyproject.toml").read_text().splitlines()
        if line.startswith("version = ")
    )
    images = {container_of(one)["image"] for one in manifests.deployments}
    assert images == {f"ghcr.io/keyturn/keyturn:{version}"}


@pytest.mark.parametrize("overlay", ["small", "production"])
def test_no_publisher_is_granted_anything_yet(overlay: str, request: pytest.FixtureRequest) -> None:
    """Workers start with it; an example key that is never replaced would be a way in."""
    manifests: Manifests = request.getfixturevalue(overlay)
    # Without a hash: a change needs no restart.
    data = manifests.find("ConfigMap", "keyturn-publishers")["data"]
    assert parse_grants(data["publishers.json"]) == {}


def test_ingress_and_routes_lead_to_the_services_of_an_overlay(
    small: Manifests, ingress: Manifests, gateway_api: Manifests
) -> None:
    """Under the hosts of the public URLs."""
    services = {name_of(one): one["spec"]["ports"][0] for one in small.of("Service")}
    led: set[tuple[str, str]] = set()
    for one in ingress.of("Ingress"):
        (rule,) = one["spec"]["rules"]
        assert one["spec"]["tls"][0]["hosts"] == [rule["host"]]
        target = rule["http"]["paths"][0]["backend"]["service"]
        assert target["port"]["name"] == services[target["name"]]["name"]
        led.add((rule["host"], target["name"]))
    routed: set[tuple[str, str]] = set()
    for one in gateway_api.of("HTTPRoute"):
        (target,) = one["spec"]["rules"][0]["backendRefs"]
        assert target["port"] == services[target["name"]]["port"]
        routed.add((one["spec"]["hostnames"][0], target["name"]))
    data: dict[str, str] = {}
    for config in small.of("ConfigMap"):
        data |= config["data"]
    public = {
        (data[f"KEYTURN_{name.upper()}_PUBLIC_URL"].removeprefix("https://"), name)
        for name in ("gateway", "console")
    }
    assert led == routed == public


def test_external_secrets_make_each_secret_that_pods_mount(
    small: Manifests, external_secrets: Manifests
) -> None:
    made = {one["spec"]["target"]["name"] for one in external_secrets.of("ExternalSecret")}
    assert made == {
        volume["secret"]["secretName"]
        for one in small.deployments
        for volume in one["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }


def test_every_secret_of_tls_is_made_by_a_certificate(
    production: Manifests, rabbitmq: Manifests, cert_manager: Manifests
) -> None:
    """In the namespace where a pod or the broker mounts it."""
    made = {
        (one["metadata"]["namespace"], one["spec"]["secretName"])
        for one in cert_manager.of("Certificate")
    }
    mounted = {
        ("keyturn", volume["secret"]["secretName"])
        for one in production.deployments
        for volume in one["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume and not volume["secret"]["secretName"].startswith("keyturn-")
    }
    broker = rabbitmq.find("RabbitmqCluster", "keyturn")
    mounted.add((broker["metadata"]["namespace"], broker["spec"]["tls"]["secretName"]))
    assert mounted == made - {("cert-manager", "keyturn-ca")}
