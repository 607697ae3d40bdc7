"""Keyturn's clients: publish requests over AMQP, and read and send objects over HTTP.

    from keyturn import Publisher, PublisherSettings

    async with Publisher.open(PublisherSettings.read()) as publisher:
        upload_id = await publisher.upload("acme", "reports/q3.pdf", Path("q3.pdf"))
        event = await publisher.wait(upload_id)

| module | holds |
| --- | --- |
| `keyturn.publisher` | `Publisher`: enroll, upload, rotate, sweep, delete, and follow events |
| `keyturn.gateway` | `Client` of the HTTP gateway; needs `keyturn[gateway]` |
| `keyturn.sync` | blocking clients of both, for programs without an event loop |
| `keyturn.fsspec` | files by the URL `keyturn://project/key`; needs `keyturn[fsspec]` |
| `keyturn.django` | a storage for Django; needs `keyturn[django]` |
| `keyturn.open` | opens objects by a ciphertext link; needs `keyturn[gateway]` |
| `keyturn.settings` | settings, read from the environment |
| `keyturn.errors` | every exception, in one tree |
| `keyturn.evidence` | evidence that old keys are gone: its format and its verification |
| `keyturn.project_keks` | the file by which an auditor opens one project |
| `keyturn.messages` | requests and events as models |
| `keyturn.counts`, `keyturn.progress` | counts and progress of a sweep: pure, no I/O |
| `keyturn.audit` | checks an audit trail: pure, no I/O |
| `keyturn.topology` | exchanges, queues and streams, and retry delays |
| `keyturn.metadata`, `keyturn.identifiers` | metadata and names in S3 |
| `keyturn.s3`, `keyturn.tls` | S3 clients, and TLS on every connection |
| `keyturn.tracing` | spans of a publisher; needs `keyturn[otel]` |
| `keyturn.crypto` | the cryptography: pure, no I/O |

The names below are imported at their first use, so that `import keyturn` costs nothing and needs no
optional dependency. The package changes nothing in its host process. It must never import
`keyturn_workers`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyturn.errors import (
        CodedError,
        GatewayError,
        KeyturnError,
        PermanentError,
        PublisherError,
        SettingsError,
        TransientError,
    )
    from keyturn.publisher.client import Publisher
    from keyturn.settings import PublisherSettings, S3Settings
else:
    from keyturn.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__, "keyturn.errors", "keyturn.settings", "keyturn.publisher.client"
    )

__all__ = [
    "CodedError",
    "GatewayError",
    "KeyturnError",
    "PermanentError",
    "Publisher",
    "PublisherError",
    "PublisherSettings",
    "S3Settings",
    "SettingsError",
    "TransientError",
]
