"""What crosses a process boundary, and all that a publisher needs.

A service in another process imports this package alone: the requests and events
(`keyturn.messages`), where they go (`keyturn.topology`), how an object's
metadata reads (`keyturn.metadata`), the cryptography (`keyturn.crypto`), the
client that publishes and waits (`keyturn.publisher`), and the client that reads and
sends through the gateway (`keyturn.gateway`).

It must never import `workers`.
"""
