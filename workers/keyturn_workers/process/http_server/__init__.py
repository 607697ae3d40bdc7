"""The HTTP server of the gateway and the console (SPEC 9.2, 9.7, 16).

| module | contents |
| --- | --- |
| `server` | one process: listening sockets, uvicorn, and an orderly end on a signal |
| `protocol` | limits without a uvicorn setting: heads, pipelining, idle connections, resets |
| `tls` | the certificate and its renewal, and the handshake before HTTP |
| `client_connection` | the client's side of a connection: slow, silent or gone |
"""
