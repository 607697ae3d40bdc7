"""Between RabbitMQ and a handler: deliveries, retries, dead letters, events (SPEC 6).

| module | contents |
| --- | --- |
| `routes` | `Route`: a queue as FastStream sees it, with its codec, middlewares and handler |
| `settlement` | `Settlement`: the middleware that settles each delivery |
| `requests` | the codec, the expiry check and the settlement of a queue of requests |
| `consumer` | `QueueConsumer`: acknowledgments and the graceful end of one queue's subscriber |
| `supervisor` | `ConsumerSupervisor`: keeps a queue consumed, on a connection of its own |
| `outcomes` | what a handler returns or raises |
| `acks` | acknowledgments with few frames |
| `publisher` | `WorkerPublisher`: everything that a worker publishes, confirmed |
| `event_batches` | publishes concurrent events together |
| `failures` | when a failed delivery is retried, and the note on its copy; pure |
| `declarations` | the topology on the broker |

The codec and the settlement of the workers' own messages are in `sweep.handler`. A `publisher` here
is always the service that signed a request; a worker itself publishes by its `worker_publisher`.
"""
