"""The gateway against the same server passing stored bytes through, and against the storage.

| module | purpose |
| --- | --- |
| `measurements` | which parts, on which objects |
| `downloads` | 1 GiB by one client, 64 bodies of 16 MiB at once, 4 KiB objects by the thousand |
| `first_bytes` | the time to the first byte, whole objects and one byte in the middle |
| `keyrings` | requests about keyrings, with every project active |
| `passthrough_server` | the baseline: the gateway's server and send loop, without decryption |
| `load_client` | the client: a separate process that reads and discards responses |
| `sides` | the processes, and the requests to each side |
"""
