"""The example of docs/howto/publish-python.md is run as it is written there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from keyturn import topology
from keyturn.crypto import to_base64
from keyturn.messages import INLINE_MAX_BYTES, ProjectEnrolled, StagedBody
from tests.integration.publisher.side import (
    EVENTS,
    INTAKE,
    WorkerSide,
    answer_message,
    stored,
    verified,
)
from tests.support.documents import code_blocks

if TYPE_CHECKING:
    from tools.servers.s3 import S3Server

ROOT = Path(__file__).resolve().parents[3]


async def test_example_in_the_documentation_runs(
    vhost_url: str, worker: WorkerSide, moto: S3Server, moto_bucket: str, tmp_path: Path
) -> None:
    report = tmp_path / "q3.pdf"
    report.write_bytes(bytes(INLINE_MAX_BYTES + 1))
    text = (ROOT / "docs" / "howto" / "publish-python.md").read_text(encoding="utf-8")
    program = code_blocks(text, "python")[0]
    environment = moto.environment(moto_bucket) | {
        "KEYTURN_DEPLOYMENT": "test",
        "KEYTURN_AMQP_URL": vhost_url,
        "KEYTURN_PUBLISHER_NAME": "billing",
        "KEYTURN_PUBLISHER_KEY": to_base64(b"p" * 32),
        "KEYTURN_INTAKE_PUBLIC_KEY": f"main:{to_base64(INTAKE.public_bytes)}",
        "KEYTURN_EVENT_PUBLIC_KEY": to_base64(EVENTS.public_bytes),
        "ACME_API_KEY": "k" * 40,
        "REPORT": str(report),
        "PYTHONPATH": str(ROOT),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdout=asyncio.subprocess.PIPE
    )
    message = await worker.next(topology.CONTROL_QUEUE)
    enroll = verified(message)
    enrolled = ProjectEnrolled(
        request_id=enroll.request_id, project="acme", generation=1, at=enroll.requested_at
    )
    await worker.publish(answer_message(message, enrolled))
    message = await worker.next(topology.UPLOAD_QUEUE)
    upload = verified(message)
    assert isinstance(upload.body, StagedBody)
    await worker.publish(answer_message(message, stored(upload.upload_id, key=upload.key)))
    output, _ = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode == 0
    assert b"project.enrolled" in output
    assert b"stored: " in output
