"""A deployment on real servers, driven from outside: for tests and for the other tools.

| modules | what they hold |
| --- | --- |
| `deployment`, `process`, `fork_server`, `preloaded` | a deployment's settings, and its processes |
| `scene`, `worker_under_test`, `tenants`, `world` | deployments with something in them |
| `requests`, `wire`, `http`, `marks` | requests, deliveries and HTTP, byte by byte |
| `bucket`, `stored_objects` | the bucket, read without the workers' code |
| `memory_storage`, `memory_bucket` | the storage port in memory |
| `known_storage`, `local_keys` | shortcuts: measured storages, keys held locally |
| `canaries`, `hostile` | secrets to search for, and hostile text |
| `loopback`, `otlp_receiver` | servers and proxies on loopback |
| `console`, `console_…` | consoles, with data, over HTTP and in a browser |
"""
