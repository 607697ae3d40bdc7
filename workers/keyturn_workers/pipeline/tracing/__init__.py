"""Traces by OpenTelemetry, off by default (SPEC 6.11, 11, 13). Needs the extra `otel`.

| module | contents |
| --- | --- |
| `startup` | traces for the lifetime of a process |
| `settings` | checks OpenTelemetry's own variables |
| `spans` | the spans of a worker and of a gateway, by instrumentations or by hand |
| `export` | filters and limits the exported spans; handles a receiver that is away |

Without traces, OpenTelemetry is not even imported.
"""
