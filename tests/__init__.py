"""Keyturn's tests.

| package | contents |
| --- | --- |
| `unit` | a folder for each package; no servers |
| `contract` | schemas, examples and generated files agree with the models |
| `protocol` | the state machine: workers, broker and bucket in memory, and an attacker |
| `integration` | one part on a real broker and a real S3 server |
| `acceptance` | real processes, killed at every step |
| `fuzz` | everything that comes from outside, mutated |
| `vectors` | test vectors, and the program that made them |
| `support` | proxies, certificates and other helpers that these share |

Deployments, worker processes and private servers are in `tools.harness` and `tools.servers`.
"""
