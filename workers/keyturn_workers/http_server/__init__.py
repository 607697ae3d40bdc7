"""What the gateway and the console have in common as HTTP servers (SPEC 9.2, 9.7, 16).

| module | what it holds |
| --- | --- |
| `server` | one process: listening sockets, uvicorn, and an orderly end on a signal |
| `protocol` | what uvicorn has no setting for: heads, pipelining, idle connections, resets |
| `tls` | the certificate and its renewal, and the handshake before HTTP |
| `client_connection` | the client's side of a connection: slow, silent or gone |
"""
