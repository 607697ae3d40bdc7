"""The gateway's parts in memory: no network, no server."""
