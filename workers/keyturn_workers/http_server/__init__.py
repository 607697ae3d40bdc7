"""What the gateway and the console have in common as HTTP servers (SPEC 9.2, 16).

| module | what it holds |
| --- | --- |
| `server` | one process: uvicorn, and an orderly end on a signal |
| `listener` | listening sockets, and what the kernel limits on each connection |
| `protocol` | what uvicorn has no setting for: heads, pipelining, idle connections, resets |
| `tls` | the handshake before it, where TLS is on |
| `certificate` | the certificate, and its renewal |
| `client_connection` | the client's side of a connection: slow, silent or gone |
"""
