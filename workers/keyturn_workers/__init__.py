"""The processes: workers, the gateway, the console, and the command line `keyturn`.

Ten rooms. Each imports only from those below it:

| room | contents |
| --- | --- |
| `cli` | the command line |
| `pipeline` | the workers, which process messages |
| `gateway` | objects over HTTP, for the holder of an API key |
| `console` | the operator's pages: it asks over the broker, and has no keys and no storage |
| `offline` | commands that read the bucket without a worker: verify, export, download |
| `reports` | the state as people see it: status, attention, dead letters |
| `keys` | keyrings and marks, master keys, the audit trail, the records of sweeps |
| `storage` | the exchange with S3 |
| `process` | services that every process needs: settings, logs, health, HTTP |
| `core` | decisions, without I/O |

Of `pipeline`, `gateway`, `console` and `offline`, none imports another.
"""
