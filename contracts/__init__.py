"""What crosses a process boundary, and all that a publisher needs.

A service in another process imports this package alone: the requests and events
(`contracts.messages`), where they go (`contracts.topology`), how an object's
metadata reads (`contracts.metadata`), the cryptography (`contracts.sealing`), the
client that publishes and waits (`contracts.publisher`), and the client that reads and
sends through the gateway (`contracts.reader`).

It must never import `workers`.
"""
