"""The part `kms` of the bench: what is measured, with which numbers."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tools.bench import uploads
from tools.bench.kms import derivations, master_key_sweep, provider_calls, tenant_uploads
from tools.bench.kms.providers import local, open_provider
from tools.bench.tenants import enroll_many, names
from tools.servers import new_bucket

if TYPE_CHECKING:
    from pathlib import Path

    from tools.bench.figures import Row
    from tools.bench.kms.providers import ProviderName
    from tools.harness.deployment import Deployment

# The ones whose server is not itself the limit: moto serves one request at a time.
WITH_UPLOADS: Final[tuple[ProviderName, ...]] = ("pkcs11", "vault")
PROJECTS: Final = 1_000
QUICK_PROJECTS: Final = 200


async def measure_derivations(name: ProviderName, *, quick: bool, rounds: int) -> list[Row]:
    """Derivations by one provider."""
    count = derivations.QUICK_COUNT if quick else derivations.COUNT
    async with open_provider(name, os.urandom(32)) as provider:
        return await derivations.measure(provider, count=count, rounds=rounds)


async def measure_uploads(
    deployment: Deployment,
    scratch: Path,
    name: ProviderName,
    rows: list[Row],
    *,
    quick: bool,
    rounds: int,
) -> None:
    """Add the rows of uploads and calls; after each part, so that a failure keeps earlier ones."""
    projects = names(QUICK_PROJECTS if quick else PROJECTS)
    kind, count = deployment.s3.kind, len(projects)
    await uploads.enroll(deployment, scratch)
    await enroll_many(deployment, projects)
    async with open_provider(name, deployment.master_key) as provider:
        found = await tenant_uploads.measure(
            deployment,
            scratch,
            local=local(deployment.master_key),
            provider=provider,
            projects=projects,
            rounds=rounds,
        )
        rows += tenant_uploads.rows(kind, name, count, found)
        refresh = await tenant_uploads.measure_refresh(deployment, scratch, provider, projects)
        rows += provider_calls.rows(
            name,
            projects=count,
            cold=[each.calls for each in found.bounded.cold],
            warm=[each.calls for each in found.bounded.warm],
            refresh=refresh,
            warm_per_s=found.bounded.warm[-1].rate.per_s,
        )
        other = replace(deployment, master_key=os.urandom(32), bucket=new_bucket(deployment.s3))
        swept = await master_key_sweep.measure(other, scratch, provider, projects)
        rows += master_key_sweep.rows(kind, name, count, swept)
