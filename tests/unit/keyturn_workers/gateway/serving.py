"""The whole application over a bucket in memory, with a fake publisher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from keyturn_workers.gateway.app import Gateway
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.request import object_path
from keyturn_workers.settings import GatewaySettings
from keyturn_workers.sweep import SweepStore
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.gateway.asgi import Connection, ask
from tests.unit.keyturn_workers.gateway.bench import API_KEY, DEPLOYMENT, KEY, Bench
from tests.unit.keyturn_workers.gateway.publishing import FakePublisher
from tools.harness.local_keys import operator_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn.publisher import Publisher
    from keyturn_workers.worker.health import Check

BEARER = {"authorization": f"Bearer {API_KEY}"}
PATH = object_path("acme", KEY)
ROTATIONS = "/v1/projects/acme/rotations"
DELETES = "/v1/projects/acme/deletes"


async def _holds() -> bool:
    return True


@dataclass
class Serving:
    bench: Bench = field(default_factory=Bench)
    publisher: FakePublisher = field(default_factory=FakePublisher)
    concurrency: int = 64
    idle_timeout_s: float = 30.0
    wait_max_s: float = 20.0
    max_bytes: int = 10**6
    upload_concurrency: int = 4
    project_share: float = 1.0
    staging_max_bytes: int = 2**30
    max_rotations: int = 3
    rotation_allowed: bool = True
    public_url: str | None = None
    max_deletes: int = 3
    max_pending: int = 100
    max_pending_bytes: int = 2**30
    delete_allowed: bool = True
    cors_origins: tuple[str, ...] = ()
    presign_plaintext: bool = False
    checks: Mapping[str, Check] = field(default_factory=lambda: {"storage": _holds})

    def __post_init__(self) -> None:
        self.metrics = GatewayMetrics()
        self.store = SweepStore(self.bench.storage, operator_keys(MASTER_KEYS))
        self.gateway = Gateway(
            self._settings(),
            self.bench.auth,
            self.bench.opener,
            self.bench.storage,
            self.store,
            cast("Publisher", self.publisher),
            self.metrics,
        )
        self.limit = self.gateway.limit
        self.uploads = self.gateway.uploads
        self.ledger = self.uploads.ledger
        self.deletes = self.gateway.deletes
        self.rotations = self.gateway.rotations
        self.app = self.gateway.application(self.checks)

    def _settings(self) -> GatewaySettings:
        return GatewaySettings.model_construct(
            deployment=DEPLOYMENT,
            publisher_name="gateway",
            gateway_concurrency=self.concurrency,
            gateway_idle_timeout_s=self.idle_timeout_s,
            gateway_wait_max_s=self.wait_max_s,
            upload_max_bytes=self.max_bytes,
            gateway_upload_concurrency=self.upload_concurrency,
            gateway_project_share=self.project_share,
            gateway_staging_max_bytes=self.staging_max_bytes,
            gateway_project_rotations=self.max_rotations,
            gateway_rotation="allowed" if self.rotation_allowed else "forbidden",
            gateway_public_url=self.public_url,
            gateway_project_deletes=self.max_deletes,
            gateway_pending=self.max_pending,
            gateway_pending_bytes=self.max_pending_bytes,
            gateway_delete="allowed" if self.delete_allowed else "forbidden",
            gateway_cors_origins=self.cors_origins,
            presign_plaintext=self.presign_plaintext,
        )

    async def ask(
        self, method: str = "GET", target: str = PATH, *, key: str | None = API_KEY, **more: Any
    ) -> Connection:
        """Send one request, with the project's API key by default."""
        headers = dict(more.pop("headers", {}))
        if key is not None:
            headers = {"authorization": f"Bearer {key}", **headers}
        return await ask(self.app, method, target, headers=headers, **more)

    def counted(self, name: str, **labels: str) -> float:
        """Return a counter's value, or 0."""
        full = f"keyturn_gateway_{name}"
        return self.metrics.registry.get_sample_value(full, labels) or 0.0

    def label_values(self, name: str) -> set[str]:
        """Return all values of a label in any sample."""
        return {
            sample.labels[name]
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if name in sample.labels and family.name.startswith("keyturn")
        }
