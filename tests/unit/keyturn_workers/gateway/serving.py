"""The whole application over a bucket in memory, with a fake publisher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from keyturn_workers.gateway.app import application
from keyturn_workers.gateway.delete_routes import DeleteRoutes
from keyturn_workers.gateway.fair_shares import ConcurrencyLimit, ProjectSlots, StagingLedger
from keyturn_workers.gateway.link_routes import LinkRoutes
from keyturn_workers.gateway.listing_routes import ListingRoutes
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.object_lister import ObjectLister
from keyturn_workers.gateway.object_routes import ObjectRoutes
from keyturn_workers.gateway.paths import object_path
from keyturn_workers.gateway.rotation_routes import RotationRoutes
from keyturn_workers.gateway.staging_quota import StagingQuota
from keyturn_workers.gateway.upload_limits import UploadLimits
from keyturn_workers.gateway.upload_routes import UploadRoutes
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
    slot_wait_s: float = 30.0
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
        publisher = cast("Publisher", self.publisher)
        self.limit = ConcurrencyLimit(self.concurrency, self.project_share, "requests")
        self.ledger = StagingLedger(self.staging_max_bytes, self.project_share)
        limits = UploadLimits(
            ProjectSlots(
                self.upload_concurrency, self.project_share, "uploads", wait_s=self.slot_wait_s
            ),
            StagingQuota(self.bench.storage, "gateway", self.ledger),
        )
        self.uploads = UploadRoutes(
            publisher,
            self.bench.opener,
            limits,
            self.metrics,
            max_bytes=self.max_bytes,
            max_pending=self.max_pending,
            max_pending_bytes=self.max_pending_bytes,
            idle_timeout_s=self.idle_timeout_s,
            wait_max_s=self.wait_max_s,
        )
        self.deletes = DeleteRoutes(
            publisher,
            self.bench.opener,
            allowed=self.delete_allowed,
            max_pending=self.max_deletes,
            wait_max_s=self.wait_max_s,
        )
        objects = ObjectRoutes(
            self.bench.auth,
            self.limit,
            self.bench.opener,
            {"PUT": self.uploads.put, "DELETE": self.deletes.delete},
            self.metrics,
            presign_plaintext=self.presign_plaintext,
        )
        links = LinkRoutes(
            self.bench.auth,
            self.limit,
            self.bench.opener,
            deployment=DEPLOYMENT,
            public_url=self.public_url,
            idle_timeout_s=self.idle_timeout_s,
        )
        self.store = SweepStore(self.bench.storage, operator_keys(MASTER_KEYS))
        self.rotations = RotationRoutes(
            self.bench.auth,
            self.limit,
            publisher,
            self.store,
            allowed=self.rotation_allowed,
            max_in_progress=self.max_rotations,
            idle_timeout_s=self.idle_timeout_s,
            wait_max_s=self.wait_max_s,
        )
        self.app = application(
            objects,
            ListingRoutes(self.bench.auth, self.limit, ObjectLister(self.bench.storage)),
            links,
            self.rotations,
            self.metrics,
            self.checks,
            idle_timeout_s=self.idle_timeout_s,
            cors_origins=self.cors_origins,
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
