"""One driver that loads, breaks and measures a deployment on real servers: `python -m tools.chaos`.

| profile | command | purpose |
| --- | --- | --- |
| `chaos` | `make chaos` | breaks and attacks everything on a schedule by a seed, then checks all |
| `load` | `make load` | drains a long queue, in peace or while workers or the broker are stopped |
| `capacity` | `make capacity` | how many processes a load needs; measures a series of sizes |

`plan` is the pure schedule; `run` performs it with `processes`, `fault_proxy`, `publisher`,
`operator`, `gateway_readers`, `attackers` and `thief`; `evidence` is read from the broker, and
`checks` and `bucket_checks` judge it. `drain`, with `drained` for what it shows, and `capacity` are
the two other profiles.
"""
