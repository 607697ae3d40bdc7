"""Modules that every process needs (SPEC 11, 13, 14).

| module | contents |
| --- | --- |
| `settings`, `grants_file` | settings; the file of publishers and its changes |
| `logging`, `health`, `metrics`, `metrics_registry` | structured logs, health checks, metrics |
| `runtime`, `service_manager` | settings of kernel and interpreter; systemd |
| `background` | background work, and its end |
| `wall_clock` | this machine's clock |
| `http_server` | the HTTP server of the gateway and the console |
| `property_tolerance`, `message_copies` | AMQP: odd properties, and copies of messages |
| `code_help` | the meaning of each error code, and the remedy |
"""
