"""An application that configures OpenTelemetry for itself and publishes: `python -m` this.

It uploads an object twice, rotates the project's key, and prints the ids as JSON. Its settings,
also those of OpenTelemetry, are in its environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings, S3Settings

PROJECT = "traced-project"
SMALL, LARGE = "a name of an object.pdf", "a large one.bin"


async def main(old_key: str, new_key: str) -> dict[str, str]:
    """Do all of it; each step in a span of the application."""
    tracer = trace.get_tracer("application")
    async with Publisher.open(PublisherSettings.read(), s3=S3Settings.read()) as publisher:
        with tracer.start_as_current_span("enroll"):
            enrolled = await publisher.enroll(PROJECT, api_key=old_key)
            await publisher.wait(enrolled)
        with tracer.start_as_current_span("upload"):
            stored = await publisher.upload(PROJECT, SMALL, b"plaintext" * 100)
            await publisher.wait(stored)
        with tracer.start_as_current_span("upload again"):
            refused = await publisher.upload(PROJECT, SMALL, b"other plaintext")
            await publisher.wait(refused)
        with tracer.start_as_current_span("upload large"):
            large = await publisher.upload(PROJECT, LARGE, os.urandom(300_000))
            await publisher.wait(large)
        with tracer.start_as_current_span("rotate"):
            rotated = await publisher.rotate(PROJECT, api_key=new_key)
            await publisher.wait_completed(rotated, timeout_s=60)
    return {"stored": stored, "refused": refused, "large": large, "rotated": rotated}


if __name__ == "__main__":
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
    provider.shutdown()
