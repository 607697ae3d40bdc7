"""The measurements of `make bench`: figures are ratios within one run (SPEC 3, 7, 8).

| module | purpose |
| --- | --- |
| `uploads` | 4 KiB uploads of one worker process against a bare put loop |
| `large_upload` | a 1 GiB staged upload, and the worker's memory during it |
| `sealing` | sealing and opening 256 MiB against OpenSSL and Tink |
| `rotation` | page workers, sizes, scaling, and whole rotations |
| `bare` | the baseline: plain aioboto3 in a separate process |
| `stack_sampler`, `layers` | a worker that samples its own stack, and the layers of the code |
| `processes`, `figures` | worker processes and their counters; medians, rows, table, JSON |

The rounds of both sides alternate, so that other load on the machine affects both. All traffic
stays on loopback. A figure that misses its target is marked.
"""
