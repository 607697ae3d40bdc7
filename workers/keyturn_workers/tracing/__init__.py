"""Traces by OpenTelemetry, off by default (SPEC 6.11, 11, 13). Needs the extra `otel`.

A process is built from the parts that an `Instrumentation` gives. Without traces these are the
plain ones, and OpenTelemetry is not even imported; with traces they are subclasses and wrappers
that make spans, so that the rest of the product knows nothing of traces.

| module | what it holds |
| --- | --- |
| `setup` | `open_tracing`: chooses the parts for a process |
| `instrumentation` | the plain parts |
| `traced` | those that make spans |
| `environment` | checks OpenTelemetry's own variables. Pure |
| `provider`, `sampling` | the tracer provider, and a bounded end; which traces it records |
| `exporter` | reports once when the receiver is away |
| `scope` | the trace of one delivery or request while it is served |
| `deliveries`, `stages`, `publishing` | the spans of a worker |
| `s3` | requests to the storage |
| `http` | requests to the gateway |
"""

from keyturn_workers.tracing.instrumentation import Instrumentation
from keyturn_workers.tracing.setup import open_tracing

__all__ = ["Instrumentation", "open_tracing"]
