"""A long queue drained, and disturbed meanwhile: `make load` (SPEC 6.2, 7).

| module | what it does or holds |
| --- | --- |
| `uploads` | the uploads of a run by their number: key, id and bytes |
| `filling` | a process of its own that publishes them with the product's publisher |
| `crew` | the worker processes: started, told to stop, replaced |
| `tenths` | samples of a drain as tenths: rates, memory, CPU time. Pure |
| `proof` | afterwards: what stands, what was told, what is dead |
| `drain` | the queue drained by 1, 2 and 4 workers, undisturbed |
| `shares`, `attacks` | a tenant while another attacks its gateway: `python -m tools.load.shares` |
| `disturbed` | workers stopped, a rolling deploy and a broker's restart in its middle |

Every wait is bounded. Traffic goes to loopback alone, to servers that the run starts itself.
"""
