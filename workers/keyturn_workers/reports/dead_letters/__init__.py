"""Dead letters, for workers and commands (SPEC 6.9, 12, 16.1).

| module | contents |
| --- | --- |
| `letters` | a letter: its claims, its redacted fields, and its copy; pure |
| `amqp1` | a reader over AMQP 1.0, for letters that RabbitMQ cannot convert |
| `queue` | dead-letter queues: locked, and read without removing a letter |
| `move` | replaying and discarding letters, in one pass over their queue |
"""
