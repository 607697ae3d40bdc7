"""Drains a long queue, with and without disruptions: `make load` (SPEC 6.2, 7).

| module | purpose |
| --- | --- |
| `uploads` | the uploads of a run by number: key, id and bytes |
| `queue_filler` | a separate process that publishes them with the product's publisher |
| `worker_pool` | the worker processes: start, stop, replace |
| `drain_summary` | summarizes samples of a drain: rates, memory, CPU time. Pure |
| `outcome` | counts stored objects, events and dead letters afterwards |
| `drain` | 1, 2 and 4 workers drain the queue undisturbed |
| `disruptions` | stopped workers, a rolling deploy, or a broker restart meanwhile |
| `shares`, `attacks` | one tenant while another attacks: `python -m tools.load.shares` |

Every wait is bounded. All traffic stays on loopback, to servers that the run starts itself.
"""
