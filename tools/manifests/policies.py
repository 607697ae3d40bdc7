"""The rules that every rendered deployment of Keyturn keeps.

Each rule is a function from manifests to sentences that say what breaks it, and has broken variants
in `tests/integration/deploy/test_policies.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tools.manifests import cluster_policies, pod_policies, setting_policies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tools.manifests.documents import Manifests

    Policy = Callable[[Manifests], Iterator[str]]

POLICIES: Final[Mapping[str, Policy]] = {
    "restricted": pod_policies.restricted,
    "no-token": pod_policies.no_token,
    "image": pod_policies.image,
    "resources": pod_policies.resources,
    "probes": pod_policies.probes,
    "grace": pod_policies.grace,
    "spread": pod_policies.spread,
    "settings": setting_policies.settings,
    "secrets": setting_policies.secrets,
    "mounts": setting_policies.mounts,
    "disruption": cluster_policies.disruption,
    "default-deny": cluster_policies.default_deny,
    "egress": cluster_policies.egress,
    "ingress": cluster_policies.ingress,
    "services": cluster_policies.services,
    "scaling": cluster_policies.scaling,
}


def violations(manifests: Manifests) -> list[str]:
    """What breaks a rule, each line with the rule's name in front."""
    return [f"{name}: {line}" for name, policy in POLICIES.items() for line in policy(manifests)]
