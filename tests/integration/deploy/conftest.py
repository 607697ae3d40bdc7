"""What kubectl renders, once a session. No cluster runs here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.manifests.documents import KUBERNETES, render
from tools.servers.packages import MissingPackagesError

if TYPE_CHECKING:
    from tools.manifests.documents import Manifests


@pytest.fixture(scope="session")
def small() -> Manifests:
    """One worker for all roles."""
    return _rendered("overlays/small")


@pytest.fixture(scope="session")
def production() -> Manifests:
    """Every role by itself, with TLS, KEDA and monitors."""
    return _rendered("overlays/production")


@pytest.fixture(scope="session")
def rabbitmq() -> Manifests:
    """The example for RabbitMQ's operators."""
    return _rendered("examples/rabbitmq")


@pytest.fixture(scope="session")
def cert_manager() -> Manifests:
    """The example for cert-manager."""
    return _rendered("examples/cert-manager")


@pytest.fixture(scope="session")
def ingress() -> Manifests:
    """The example of an Ingress."""
    return _rendered("examples/ingress")


@pytest.fixture(scope="session")
def gateway_api() -> Manifests:
    """The example of routes of the Gateway API."""
    return _rendered("examples/gateway-api")


@pytest.fixture(scope="session")
def external_secrets() -> Manifests:
    """The example for External Secrets."""
    return _rendered("examples/external-secrets")


def _rendered(folder: str) -> Manifests:
    try:
        return render(KUBERNETES / folder)
    except MissingPackagesError as error:
        pytest.skip(f"kubectl cannot be installed: {error}")
