"""Between RabbitMQ and a handler: deliveries, retries, dead letters, events (SPEC 6).

| module | what it holds |
| --- | --- |
| `consumer` | `QueueConsumer`: the deliveries of a queue; `MessageConsumer`: one, to its end |
| `request_consumer` | `RequestConsumer`: a `MessageConsumer` that authorizes and answers requests |
| `acks` | acknowledgments with few frames |
| `publisher` | `WorkerPublisher`: everything that a worker publishes, confirmed |
| `event_batches` | events that end together are published together |
| `failures` | retries and dead letters: when, and which copy; pure |
| `declarations` | the topology on the broker |
| `property_tolerance` | AMQP properties that the client libraries reject |

The other `MessageConsumer` is in `sweep.handler`, for the workers' own messages. A `publisher` here
is always the service that signed a request; what a worker itself publishes goes through its
`worker_publisher`.
"""
