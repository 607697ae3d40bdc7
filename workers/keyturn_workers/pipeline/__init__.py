"""The workers: what becomes of a message (SPEC 6 to 8, 17).

A delivery goes through `amqp` to the handler of its queue in `upload`, `control` or `sweep`, and
its event goes back through `amqp`. `ingest` publishes requests for what it finds in `sources`.
`objects` brings one object to its desired state. `worker` puts a process together from these, and
nothing here imports it.
"""
