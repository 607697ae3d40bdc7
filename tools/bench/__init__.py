"""The measurements of `make bench`: figures are ratios within one run (SPEC 3, 7, 8).

| module | what it measures or holds |
| --- | --- |
| `uploads` | 4 KiB uploads of one worker process against a bare put loop |
| `big` | a 1 GiB staged upload, and the worker's memory during it |
| `sealing` | sealing and opening 256 MiB against OpenSSL and Tink |
| `rotation` | page workers, sizes, scaling, and whole rotations |
| `bare` | the other side: plain aioboto3 in a process of its own |
| `sampled`, `layers` | a worker that counts where its CPU time goes, and the layers' names |
| `processes`, `figures` | worker processes and their counters; medians, rows, table, JSON |

Ours and theirs alternate, so that what else the machine does meets both. Traffic goes to
loopback alone. A figure that misses its aim is shown as such.
"""
