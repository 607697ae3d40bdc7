"""The gateway against the same server passing stored bytes through, and against the storage.

| module | what it measures or holds |
| --- | --- |
| `measuring` | which parts, on which objects |
| `downloads` | 1 GiB by one client, 64 bodies of 16 MiB at once, 4 KiB objects by the thousand |
| `first_bytes` | the time to the first byte, whole objects and one byte in the middle |
| `keyrings` | requests about keyrings, with every project active |
| `passing` | the other side: the gateway's own server and send loop, without opening anything |
| `asking` | the client: a process of its own that reads and throws away |
| `sides` | the processes, and what each side is asked for |
"""
