"""The measurements of `make bench`: ratios within one run (docs/operations/performance.md).

| module | purpose |
| --- | --- |
| `uploads` | 4 KiB uploads of one worker against bare puts; many projects against one |
| `against_plain`, `plain` | the same against a plain FastStream pipeline: full queue, latency |
| `rotation` | a page worker's writing and proving pass against bare requests |
| `gateway`, `load_client`, `passthrough_server` | downloads and listings through the gateway |
| `smallest` | what one `worker all`, one gateway and one broker do, and their memory |
| `customer_keys` | what a customer key costs: a project with one against one without |
| `layers`, `stack_sampler` | CPU time by layer of the code |
| `bare` | the baseline: plain aioboto3 in a separate process |
| `processes`, `figures` | worker processes and their counters; medians, rows, table, JSON |

The rounds of both sides alternate, so that other load on the machine affects both. All traffic
stays on loopback. A figure that misses its target is marked.
"""
